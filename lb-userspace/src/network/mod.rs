//! What the network of this host looks like, and from it the way to each backend and the hooks that takes.
//!
//! [`way`] and [`hooks`] decide, as functions of a [`View`]; [`netlink`] takes views and waits for changes. Nothing here
//! changes the network, but for asking the kernel to resolve a neighbour.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_common::addr::Family;

mod conversation;
pub mod early;
mod frame;
pub mod hooks;
mod netdev;
pub mod netlink;
#[cfg(test)]
pub(crate) mod testing;
pub mod way;
mod wire;

/// One network namespace at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The links, by interface index.
    pub links: BTreeMap<u32, Link>,
    /// The global addresses of each interface, its aliases' included.
    pub addresses: BTreeMap<u32, BTreeSet<IpAddr>>,
    /// The resolved neighbours of each interface.
    pub neighbours: BTreeMap<(u32, IpAddr), Neighbour>,
    /// On which ports of a bridge an address was seen: several where VLANs differ, or while it moves.
    pub forwarding: BTreeMap<(u32, Mac), BTreeSet<u32>>,
    /// How packets to each backend leave.
    pub routes: BTreeMap<IpAddr, Route>,
    /// The families that the host's stack forwards.
    pub forwards: BTreeSet<Family>,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What kind of virtual device it is: `veth`, `bridge`; empty for a real one.
    pub kind: String,
    /// The bridge, bond or VRF it belongs to.
    pub master: Option<u32>,
    /// The other end, of a veth whose other end is in another namespace.
    pub peer: Option<Peer>,
    /// The kind of its link-layer header (`ARPHRD_…`).
    pub link_layer: u16,
    /// The largest packet it takes.
    pub mtu: u32,
    /// Whether it is switched on and its other end as well.
    pub is_running: bool,
    /// Its link-layer address.
    pub mac: Option<Mac>,
    /// Whether an XDP program runs on it, ours or another.
    pub has_xdp: bool,
    /// What it says of XDP, where the kernel tells (from 6.3 on).
    pub xdp: Option<XdpFeatures>,
}

/// What a device says of XDP: the bits of `enum netdev_xdp_act` in `linux/netdev.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

/// The end of a veth that is in another namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A device that its namespace receives packets by.
    Station(Mac),
    /// A port of a bridge, or of something else that takes its packets.
    Port,
    /// The kernel does not let us see it.
    Unseen,
}

/// A resolved neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its link-layer address.
    pub mac: Mac,
    /// Whether somebody wrote it down, rather than the network having been asked.
    pub is_permanent: bool,
}

/// How packets to an address leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// They do not: the address is this host's own.
    Local,
    /// By a device.
    Through {
        /// The device.
        device: u32,
        /// The next hop, where it is not the destination itself.
        gateway: Option<IpAddr>,
    },
    /// By a device, wrapped by the route itself (MPLS, segment routing).
    Encapsulated {
        /// The device.
        device: u32,
    },
    /// There is none.
    None,
}

/// A link-layer address of Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Mac(pub [u8; 6]);

impl View {
    /// The index of the interface of this name.
    pub fn ifindex(&self, name: &str) -> Option<u32> {
        self.links.iter().find(|(_, link)| link.name == name).map(|(ifindex, _)| *ifindex)
    }

    /// The name of an interface, or its index where it is gone.
    pub fn name(&self, ifindex: u32) -> String {
        self.links.get(&ifindex).map_or_else(|| format!("interface {ifindex}"), |link| link.name.clone())
    }

    /// The global addresses of each interface by its name; interfaces without addresses included.
    pub fn addresses_by_name(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let addresses = |ifindex| self.addresses.get(ifindex).cloned().unwrap_or_default();
        self.links.iter().map(|(ifindex, link)| (link.name.clone(), addresses(ifindex))).collect()
    }

    /// The neighbours that the kernel has to be asked for before the way to these backends is known.
    ///
    /// Where links are not what they were in the view `before`, a question that is under way is asked again: whoever
    /// could not hear it a moment ago may now, and the kernel itself would wait for a second.
    pub fn questions(&self, backends: &BTreeSet<IpAddr>, before: &Self) -> BTreeSet<Question> {
        let is_outdated = self.links != before.links;
        let question = |backend| {
            let Some(Route::Through { device, gateway }) = self.routes.get(backend) else { return None };
            let (device, address) = (*device, gateway.unwrap_or(*backend));
            if !self.links.get(&device).is_some_and(Link::is_ethernet) {
                return None;
            }
            match self.neighbours.get(&(device, address)) {
                None => Some(Question { device, address, doubted: None, is_outdated }),
                Some(known) if known.is_permanent || self.is_there(device, known.mac) => None,
                Some(known) => Some(Question { device, address, doubted: Some(known.mac), is_outdated: true }),
            }
        };
        backends.iter().filter_map(question).collect()
    }

    /// Whether anything speaks for a neighbour with this address behind the device. A container that was restarted may
    /// have left its old address in the neighbour table, where nobody would doubt it for many seconds.
    fn is_there(&self, device: u32, mac: Mac) -> bool {
        let is_port = |link: &Link| link.master == Some(device) && link.peer == Some(Peer::Station(mac));
        match self.links.get(&device) {
            Some(link) if link.is_bridge() => {
                self.forwarding.contains_key(&(device, mac)) || self.links.values().any(is_port)
            }
            Some(Link { peer: Some(Peer::Station(station)), .. }) => *station == mac,
            Some(_) => true,
            None => false,
        }
    }
}

/// A neighbour to be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The interface it is at.
    pub device: u32,
    /// Its address.
    pub address: IpAddr,
    /// What the kernel believes and nothing speaks for. To be asked once: where the answer is the same, it is so.
    pub doubted: Option<Mac>,
    /// Whether what the kernel knows of it is to be forgotten first.
    pub is_outdated: bool,
}

impl Link {
    /// `ARPHRD_ETHER`.
    const ETHERNET: u16 = 1;
    /// `ARPHRD_LOOPBACK`.
    const LOOPBACK: u16 = 772;

    /// Whether its packets carry Ethernet headers.
    pub fn is_ethernet(&self) -> bool {
        self.link_layer == Self::ETHERNET
    }

    /// Why no client's packet can be balanced where it comes in by this device; nothing where it can.
    pub fn takes_no_clients(&self) -> Option<&'static str> {
        if self.link_layer == Self::LOOPBACK {
            Some("it is the loopback")
        } else if !self.is_ethernet() {
            Some("it has no link-layer addresses")
        } else if self.kind == "dummy" {
            Some("no packet comes in by a dummy device")
        } else {
            None
        }
    }

    /// Whether it is a physical NIC, or what a virtual machine has for one: Ethernet, and of no virtual kind. The
    /// loopback has no kind either, but is no Ethernet.
    pub fn is_real(&self) -> bool {
        self.kind.is_empty() && self.is_ethernet()
    }

    /// Whether it is a bridge.
    pub fn is_bridge(&self) -> bool {
        self.kind == "bridge"
    }
}

impl XdpFeatures {
    /// `NETDEV_XDP_ACT_BASIC`.
    const BASIC: u64 = 1 << 0;
    /// `NETDEV_XDP_ACT_REDIRECT`.
    const REDIRECT: u64 = 1 << 1;
    /// `NETDEV_XDP_ACT_NDO_XMIT`.
    const NDO_XMIT: u64 = 1 << 2;
    /// `NETDEV_XDP_ACT_NDO_XMIT_SG`.
    const NDO_XMIT_SG: u64 = 1 << 6;

    /// Whether its driver runs programs, which may also redirect (`NETDEV_XDP_ACT_BASIC`, `NETDEV_XDP_ACT_REDIRECT`).
    pub fn takes_programs(self) -> bool {
        self.has(Self::BASIC | Self::REDIRECT)
    }

    /// Whether it sends frames that a program elsewhere redirects to it (`NETDEV_XDP_ACT_NDO_XMIT`). A veth does so
    /// while its other end has GRO on or runs a program.
    pub fn takes_redirected(self) -> bool {
        self.has(Self::NDO_XMIT)
    }

    /// Whether such frames may be of several buffers (`NETDEV_XDP_ACT_NDO_XMIT_SG`).
    pub fn takes_redirected_fragments(self) -> bool {
        self.has(Self::NDO_XMIT_SG)
    }

    fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testing::{BR0, POD, ip, lab, mac, meet};

    #[test]
    fn only_a_nic_is_real() {
        let view = lab();
        let real: Vec<&str> =
            view.links.values().filter(|link| link.is_real()).map(|link| link.name.as_str()).collect();
        assert_eq!(real, ["eth3"]);
    }

    #[test]
    fn a_veth_takes_programs_and_what_is_redirected_while_its_other_end_polls() {
        let said = |bits| {
            let features = XdpFeatures(bits);
            (features.takes_programs(), features.takes_redirected(), features.takes_redirected_fragments())
        };
        assert_eq!(said(0x23), (true, false, false), "a veth");
        assert_eq!(said(0x67), (true, true, true), "a veth whose other end has GRO on");
        assert_eq!(said(0x07), (true, true, false), "a driver of single buffers");
        assert_eq!(said(0x01), (false, false, false), "a driver whose programs cannot redirect");
        assert_eq!(said(0x00), (false, false, false), "a bridge");
    }

    fn questions(view: &View, backend: &str) -> Vec<(u32, String, bool)> {
        let asked = view.questions(&[ip(backend)].into(), view);
        asked.iter().map(|asked| (asked.device, asked.address.to_string(), asked.is_outdated)).collect()
    }

    #[test]
    fn unknown_neighbours_are_asked_for() {
        let view = lab();
        assert_eq!(questions(&view, "10.0.0.2"), []);
        assert_eq!(questions(&view, "10.0.0.4"), [(BR0, "10.0.0.4".to_owned(), false)]);
        assert_eq!(questions(&view, "172.16.0.1"), [(BR0, "10.0.0.9".to_owned(), false)]);
        assert_eq!(questions(&view, "10.9.0.1"), [], "a tunnel has no neighbours");
        assert_eq!(questions(&view, "203.0.113.1"), []);
    }

    #[test]
    fn a_question_is_asked_again_when_a_link_has_come_up() {
        let view = lab();
        let mut before = lab();
        before.links.remove(&testing::V3);
        let asked = view.questions(&[ip("10.0.0.2"), ip("10.0.0.4")].into(), &before);
        assert_eq!(asked, [Question { device: BR0, address: ip("10.0.0.4"), doubted: None, is_outdated: true }].into());
    }

    #[test]
    fn a_neighbour_that_nobody_speaks_for_is_asked_for_again() {
        let mut view = lab();
        meet(&mut view, BR0, "10.0.0.4", mac(77));
        meet(&mut view, POD, "10.1.0.1", mac(77));
        assert_eq!(questions(&view, "10.0.0.4"), [(BR0, "10.0.0.4".to_owned(), true)]);
        assert_eq!(questions(&view, "10.1.0.1"), [(POD, "10.1.0.1".to_owned(), true)]);
        view.forwarding.insert((BR0, mac(77)), [BR0].into());
        assert_eq!(questions(&view, "10.0.0.4"), [], "seen behind some port");
        view.neighbours.insert((POD, ip("10.1.0.1")), Neighbour { mac: mac(77), is_permanent: true });
        assert_eq!(questions(&view, "10.1.0.1"), [], "written down by somebody");
    }
}
