//! Takes views of the network and waits for changes, by rtnetlink and by what devices say of XDP. Decides nothing.

use std::{collections::BTreeSet, fs, io, net::IpAddr, time::Duration};

use lb_common::addr::Family;
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::{
    Link, Peer, Question, Route, View,
    conversation::Conversation,
    frame::{Frame, frames},
    netdev::{self, Device, Netdev},
    wire::{self, Dump, LinkMessage, Message, NeighbourMessage},
};

/// Why the network could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("netlink: {what}: {source}")]
pub struct NetworkError {
    what: &'static str,
    source: io::Error,
}

impl NetworkError {
    fn of(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self { what, source }
    }
}

/// Looks at the network namespace that it was opened in.
pub struct Network {
    route: Conversation,
    /// Nothing where the kernel does not tell what devices say of XDP.
    netdev: Option<Netdev>,
}

impl Network {
    /// Opens the namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no rtnetlink or no generic netlink.
    pub fn open() -> Result<Self, NetworkError> {
        let open = || Ok(Self { route: Conversation::open(NETLINK_ROUTE)?, netdev: Netdev::open()? });
        open().map_err(NetworkError::of("open"))
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
        for Device { ifindex, xdp } in self.devices()? {
            if let Some(link) = view.links.get_mut(&ifindex) {
                link.xdp = Some(xdp);
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
        match self.ask(&wire::resolve(question), WHAT)? {
            Frame::Answer(errno) if errno != 0 => {
                Err(NetworkError { what: WHAT, source: io::Error::from_raw_os_error(errno) })
            }
            Frame::Answer(_) | Frame::Message(_) | Frame::Interrupted | Frame::Done | Frame::Other => Ok(()),
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

    fn devices(&self) -> Result<Vec<Device>, NetworkError> {
        let devices = self.netdev.as_ref().map_or(Ok(Vec::new()), Netdev::devices);
        devices.map_err(NetworkError::of("list what devices say of XDP"))
    }

    fn peer(&self, namespace: i32, ifindex: u32) -> Result<Peer, NetworkError> {
        let answer = self.ask(&wire::link_elsewhere(namespace, ifindex), "look at the other end of a veth")?;
        Ok(match answer.message() {
            Some(Message::Link(LinkMessage { master: Some(_), .. })) => Peer::Port,
            Some(Message::Link(LinkMessage { mac: Some(mac), .. })) => Peer::Station(mac),
            _ => Peer::Unseen,
        })
    }

    fn route(&self, destination: IpAddr) -> Result<Route, NetworkError> {
        Ok(match self.ask(&wire::route_to(destination), "look up a route")?.message() {
            Some(Message::Route(route)) => route,
            _ => Route::None,
        })
    }

    /// Sends a question that has one answer.
    fn ask(&self, request: &[u8], what: &'static str) -> Result<Frame<Message>, NetworkError> {
        self.route.ask(request, wire::message).map_err(NetworkError::of(what))
    }

    fn dump(&self, what: Dump) -> Result<Vec<Message>, NetworkError> {
        let name = match what {
            Dump::Links => "list links",
            Dump::Addresses => "list addresses",
            Dump::Neighbours => "list neighbours",
            Dump::Forwarding => "list bridges' forwarding tables",
        };
        self.route.dump(&wire::dump(what), wire::message).map_err(NetworkError::of(name))
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
    /// What devices say of XDP; nothing where the kernel does not tell.
    netdev: Option<TokioSocket>,
    /// Something has changed and nobody was told yet.
    is_pending: bool,
}

/// Changes come in bursts; one view answers for all that come within this time.
const BURST: Duration = Duration::from_millis(10);

impl Changes {
    /// Begins to listen in the namespace of the calling thread, within a tokio runtime.
    ///
    /// # Errors
    /// When there is no rtnetlink or no generic netlink.
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
        Ok(Self { socket, netdev: netdev::listen()?, is_pending: false })
    }

    /// Waits until something is different from `view`, and for the burst it comes in to end. Nothing is lost when the
    /// wait is given up.
    ///
    /// # Errors
    /// When the socket fails; that it overran only means that something has changed.
    pub async fn next(&mut self, view: &View) -> Result<(), NetworkError> {
        while !self.is_pending {
            self.is_pending = tokio::select! {
                received = self.socket.recv_from_full() => {
                    says_anything(received, wire::message, |message| differs(message, view))?
                }
                received = heard(self.netdev.as_ref()) => {
                    says_anything(received, netdev::device, |device| differs_in_xdp(device, view))?
                }
            };
        }
        tokio::time::sleep(BURST).await;
        for socket in [Some(&self.socket), self.netdev.as_ref()].into_iter().flatten() {
            while socket.socket_ref().recv_from_full().is_ok() {}
        }
        self.is_pending = false;
        Ok(())
    }
}

type Received = io::Result<(Vec<u8>, SocketAddr)>;

/// What comes by a socket; where there is none, nothing ever does.
async fn heard(socket: Option<&TokioSocket>) -> Received {
    match socket {
        Some(socket) => socket.recv_from_full().await,
        None => std::future::pending().await,
    }
}

fn says_anything<M>(
    received: Received,
    message: impl Fn(u16, &[u8]) -> Option<M>,
    is_new: impl Fn(&M) -> bool,
) -> Result<bool, NetworkError> {
    match received {
        Ok((datagram, _)) => Ok(frames(&datagram, message).iter().any(|frame| match frame {
            Frame::Message(message) => is_new(message),
            Frame::Answer(_) | Frame::Interrupted | Frame::Done | Frame::Other => false,
        })),
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
        | Message::NeighbourGone(_) => false,
        Message::Link(_) | Message::LinkGone(_) | Message::Address(_) | Message::Route(_) => true,
    }
}

/// Whether a device that is known says something new of XDP; of one that is not, rtnetlink tells.
fn differs_in_xdp(device: &Device, view: &View) -> bool {
    view.links.get(&device.ifindex).is_some_and(|link| link.xdp != Some(device.xdp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{
        XdpFeatures,
        testing::{V1, lab},
    };

    #[test]
    fn a_known_device_that_says_something_else_of_xdp_is_news() {
        let mut view = lab();
        let says_news = |view: &View, ifindex, bits| differs_in_xdp(&Device { ifindex, xdp: XdpFeatures(bits) }, view);
        assert!(!says_news(&view, V1, 0x23), "as it was");
        assert!(says_news(&view, V1, 0x67));
        assert!(!says_news(&view, 99, 0x67), "a device that nobody knows");
        view.links.get_mut(&V1).expect("the lab has v1").xdp = None;
        assert!(says_news(&view, V1, 0x23), "it had not spoken when the view was taken");
    }
}
