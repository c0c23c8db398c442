//! Takes views of the network and waits for changes, by rtnetlink. Decides nothing.

use std::{collections::BTreeSet, fs, io, net::IpAddr, time::Duration};

use lb_common::addr::Family;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::{
    Link, Peer, Question, Route, View,
    wire::{self, Dump, LinkMessage, Message, NeighbourMessage},
};

/// Why the network could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("rtnetlink: {what}: {source}")]
pub struct NetworkError {
    what: &'static str,
    source: io::Error,
}

/// How often a dump that was interrupted by a change is made again.
const DUMPED_AGAIN: usize = 3;

impl NetworkError {
    fn of(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

/// Looks at the network namespace that it was opened in.
pub struct Network {
    socket: Socket,
}

impl Network {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no rtnetlink.
    pub fn open() -> Result<Self, NetworkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetworkError::of("open"))?;
        socket.bind_auto().map_err(NetworkError::of("open"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetworkError::of("open"))?;
        Ok(Self { socket })
    }

    /// Takes a view of the network, with the routes to `backends`.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn view(&self, backends: &BTreeSet<IpAddr>) -> Result<View, NetworkError> {
        let mut view = View::default();
        for message in self.dump(Dump::Links)? {
            if let Message::Link(link) = message {
                view.links.insert(link.ifindex, self.link(link)?);
            }
        }
        for message in self.dump(Dump::Addresses)? {
            if let Message::Address(address) = message
                && address.is_global
            {
                view.addresses.entry(address.ifindex).or_default().insert(address.address);
            }
        }
        for message in self.dump(Dump::Neighbours)? {
            if let Message::Neighbour(NeighbourMessage::Neighbour { ifindex, address, known: Some(neighbour) }) =
                message
            {
                view.neighbours.insert((ifindex, address), neighbour);
            }
        }
        for message in self.dump(Dump::Forwarding)? {
            if let Message::Neighbour(NeighbourMessage::Forwarding { bridge, port, mac }) = message {
                view.forwarding.entry((bridge, mac)).or_default().insert(port);
            }
        }
        for backend in backends {
            view.routes.insert(*backend, self.route(*backend)?);
        }
        view.forwards = Family::ALL.into_iter().filter(|family| forwards(*family)).collect();
        Ok(view)
    }

    /// Has the kernel resolve a neighbour, as if it had a packet for it. The answer comes as a change.
    ///
    /// # Errors
    /// When the kernel refuses to ask.
    pub fn resolve(&self, question: &Question) -> Result<(), NetworkError> {
        const WHAT: &str = "resolve a neighbour";
        if question.is_outdated {
            // That it is gone already is as good.
            self.ask(&wire::forget(question), WHAT)?;
        }
        match self.ask(&wire::resolve(question), WHAT)?.first() {
            Some(Message::Answer(errno)) if *errno != 0 => {
                Err(NetworkError { what: WHAT, source: io::Error::from_raw_os_error(*errno) })
            }
            _ => Ok(()),
        }
    }

    fn link(&self, message: LinkMessage) -> Result<Link, NetworkError> {
        let peer = match (message.kind.as_str(), message.link, message.link_namespace) {
            ("veth", Some(ifindex), Some(namespace)) => Some(self.peer(namespace, ifindex)?),
            _ => None,
        };
        let LinkMessage { name, kind, master, link_layer, mtu, is_running, mac, has_xdp, .. } = message;
        Ok(Link { name, kind, master, peer, link_layer, mtu, is_running, mac, has_xdp, xdp: None })
    }

    fn peer(&self, namespace: i32, ifindex: u32) -> Result<Peer, NetworkError> {
        let answer = self.ask(&wire::link_elsewhere(namespace, ifindex), "look at the other end of a veth")?;
        Ok(match answer.first() {
            Some(Message::Link(LinkMessage { master: Some(_), .. })) => Peer::Port,
            Some(Message::Link(LinkMessage { mac: Some(mac), .. })) => Peer::Station(*mac),
            _ => Peer::Unseen,
        })
    }

    fn route(&self, destination: IpAddr) -> Result<Route, NetworkError> {
        Ok(match self.ask(&wire::route_to(destination), "look up a route")?.first() {
            Some(Message::Route(route)) => *route,
            _ => Route::None,
        })
    }

    /// Sends a question that has one answer.
    fn ask(&self, request: &[u8], what: &'static str) -> Result<Vec<Message>, NetworkError> {
        self.socket.send(request, 0).map_err(NetworkError::of(what))?;
        let (datagram, _) = self.socket.recv_from_full().map_err(NetworkError::of(what))?;
        Ok(wire::messages(&datagram))
    }

    fn dump(&self, what: Dump) -> Result<Vec<Message>, NetworkError> {
        let name = match what {
            Dump::Links => "list links",
            Dump::Addresses => "list addresses",
            Dump::Neighbours => "list neighbours",
            Dump::Forwarding => "list bridges' forwarding tables",
        };
        // The last error keeps the view before in force, which is better than one that misses a link.
        for _ in 0..=DUMPED_AGAIN {
            if let Some(all) = self.dump_once(what, name)? {
                return Ok(all);
            }
        }
        let source = io::Error::other("changed each time while it was listed");
        Err(NetworkError { what: name, source })
    }

    /// The whole dump, or nothing where it was interrupted by a change.
    fn dump_once(&self, what: Dump, name: &'static str) -> Result<Option<Vec<Message>>, NetworkError> {
        self.socket.send(&wire::dump(what), 0).map_err(NetworkError::of(name))?;
        let mut all = Vec::new();
        let mut is_whole = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(NetworkError::of(name))?;
            for message in wire::messages(&datagram) {
                if let Message::Answer(errno) = message {
                    return Err(NetworkError { what: name, source: io::Error::from_raw_os_error(errno) });
                }
                if message == Message::Done {
                    return Ok(is_whole.then_some(all));
                }
                is_whole &= message != Message::Interrupted;
                all.push(message);
            }
        }
    }
}

/// Whether the stack forwards packets of this family. Where that cannot be read, there is no such stack.
fn forwards(family: Family) -> bool {
    let file = match family {
        Family::V4 => "/proc/sys/net/ipv4/ip_forward",
        Family::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    fs::read_to_string(file).is_ok_and(|value| value.trim() != "0")
}

/// Tells when the network has changed.
pub struct Changes {
    socket: TokioSocket,
    /// Something has changed and nobody was told yet.
    is_pending: bool,
}

/// Changes come in bursts; one view answers for all that come within this time.
const BURST: Duration = Duration::from_millis(10);

impl Changes {
    /// Begins to listen in the namespace of the calling thread, within a tokio runtime.
    ///
    /// # Errors
    /// When there is no rtnetlink.
    pub fn open() -> Result<Self, NetworkError> {
        Self::listen().map_err(NetworkError::of("listen"))
    }

    fn listen() -> io::Result<Self> {
        const RTNLGRP_LINK: u32 = 1;
        const RTNLGRP_NEIGH: u32 = 3;
        const RTNLGRP_IPV4_IFADDR: u32 = 5;
        const RTNLGRP_IPV4_ROUTE: u32 = 7;
        const RTNLGRP_IPV6_IFADDR: u32 = 9;
        const RTNLGRP_IPV6_ROUTE: u32 = 11;

        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind_auto()?;
        for group in [
            RTNLGRP_LINK,
            RTNLGRP_NEIGH,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ] {
            socket.socket_ref().add_membership(group)?;
        }
        Ok(Self { socket, is_pending: false })
    }

    /// Waits until something is different from `view`, and for the burst it comes in to end. Nothing is lost when the
    /// wait is given up.
    ///
    /// # Errors
    /// When the socket fails; that it overran only means that something has changed.
    pub async fn next(&mut self, view: &View) -> Result<(), NetworkError> {
        while !self.is_pending {
            self.is_pending = says_anything(self.socket.recv_from_full().await, view)?;
        }
        tokio::time::sleep(BURST).await;
        while self.socket.socket_ref().recv_from_full().is_ok() {}
        self.is_pending = false;
        Ok(())
    }
}

fn says_anything(received: io::Result<(Vec<u8>, SocketAddr)>, view: &View) -> Result<bool, NetworkError> {
    match received {
        Ok((datagram, _)) => Ok(wire::messages(&datagram).iter().any(|message| differs(message, view))),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
        Err(error) => Err(NetworkError { what: "listen", source: error }),
    }
}

/// Whether a notification says anything new. Neighbours change their state all the time; only their address matters,
/// and one that is forgotten is remembered until another address takes its place.
fn differs(message: &Message, view: &View) -> bool {
    match message {
        Message::Neighbour(NeighbourMessage::Neighbour { ifindex, address, known: Some(neighbour) }) => {
            view.neighbours.get(&(*ifindex, *address)) != Some(neighbour)
        }
        Message::Neighbour(NeighbourMessage::Forwarding { bridge, port, mac }) => {
            !view.forwarding.get(&(*bridge, *mac)).is_some_and(|ports: &BTreeSet<u32>| ports.contains(port))
        }
        Message::Neighbour(NeighbourMessage::Neighbour { known: None, .. } | NeighbourMessage::Other)
        | Message::NeighbourGone(_)
        | Message::Answer(_)
        | Message::Interrupted
        | Message::Done
        | Message::Other => false,
        Message::Link(_) | Message::LinkGone(_) | Message::Address(_) | Message::Route(_) => true,
    }
}
