//! rtnetlink messages as values, and values as rtnetlink messages. Pure: sockets are in [`super::netlink`].
//!
//! Only what [`super::View`] needs is decoded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    Mac, Neighbour, Question, Route,
    frame::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, Request, attributes, i32_at, text, u16_at, u32_at},
};

/// One rtnetlink message, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A link is there, or has changed.
    Link(LinkMessage),
    /// A link is gone.
    LinkGone(u32),
    /// An address is there, or is gone; which of the two only a dump needs to know.
    Address(AddressMessage),
    /// A neighbour or an entry of a bridge's forwarding table.
    Neighbour(NeighbourMessage),
    /// The same, but gone.
    NeighbourGone(NeighbourMessage),
    /// A route: the answer to a question, or a change.
    Route(Route),
}

/// What a link message says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkMessage {
    pub(super) ifindex: u32,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) master: Option<u32>,
    /// The other end of a pair, or the device this one sits on.
    pub(super) link: Option<u32>,
    /// The id of the namespace that `link` is in, if not this one.
    pub(super) link_namespace: Option<i32>,
    pub(super) link_layer: u16,
    pub(super) mtu: u32,
    pub(super) is_running: bool,
    pub(super) mac: Option<Mac>,
    pub(super) has_xdp: bool,
}

/// What an address message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddressMessage {
    pub(super) ifindex: u32,
    pub(super) address: IpAddr,
    pub(super) is_global: bool,
}

/// What a neighbour message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NeighbourMessage {
    /// An ARP or neighbour discovery entry; not `known` while it is not resolved.
    Neighbour { ifindex: u32, address: IpAddr, known: Option<Neighbour> },
    /// A learned or static entry of a bridge's forwarding table; the bridge's own addresses are [`Self::Other`].
    Forwarding { bridge: u32, port: u32, mac: Mac },
    /// Neither.
    Other,
}

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;

const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// The dumps a view is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dump {
    Links,
    Addresses,
    Neighbours,
    Forwarding,
}

/// Asks for all of one kind.
pub(super) fn dump(what: Dump) -> Vec<u8> {
    match what {
        Dump::Links => {
            let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, &[0; 16]);
            skip_statistics(&mut request);
            request.finish()
        }
        Dump::Addresses => Request::new(RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, &[0; 8]).finish(),
        Dump::Neighbours => Request::new(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, &[0; 12]).finish(),
        Dump::Forwarding => {
            let mut body = [0; 12];
            body[0] = AF_BRIDGE;
            Request::new(RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, &body).finish()
        }
    }
}

/// Asks for one link of another namespace.
pub(super) fn link_elsewhere(namespace: i32, ifindex: u32) -> Vec<u8> {
    const IFLA_TARGET_NETNSID: u16 = 46;
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let mut request = Request::new(RTM_GETLINK, NLM_F_REQUEST, &body);
    request.attribute(IFLA_TARGET_NETNSID, &namespace.to_ne_bytes());
    skip_statistics(&mut request);
    request.finish()
}

/// Asks how packets to `destination` leave.
pub(super) fn route_to(destination: IpAddr) -> Vec<u8> {
    const RTA_DST: u16 = 1;
    let (family, bytes) = family_and_bytes(destination);
    let mut body = [0; 12];
    body[0] = family;
    body[1] = bytes.len() as u8 * 8;
    let mut request = Request::new(RTM_GETROUTE, NLM_F_REQUEST, &body);
    request.attribute(RTA_DST, &bytes);
    request.finish()
}

/// Has the kernel resolve a neighbour as if it had a packet for it.
pub(super) fn resolve(question: &Question) -> Vec<u8> {
    const NTF_USE: u8 = 1;
    neighbour_request(RTM_NEWNEIGH, NLM_F_CREATE, NTF_USE, question)
}

/// Has the kernel forget a neighbour.
pub(super) fn forget(question: &Question) -> Vec<u8> {
    neighbour_request(RTM_DELNEIGH, 0, 0, question)
}

fn neighbour_request(kind: u16, flags: u16, neighbour_flags: u8, question: &Question) -> Vec<u8> {
    let (family, bytes) = family_and_bytes(question.address);
    let mut body = [0; 12];
    body[0] = family;
    body[4..8].copy_from_slice(&question.device.to_ne_bytes());
    body[10] = neighbour_flags;
    let mut request = Request::new(kind, NLM_F_REQUEST | NLM_F_ACK | flags, &body);
    request.attribute(NDA_DST, &bytes);
    request.finish()
}

/// Leaves out the counters, which are most of a link message.
fn skip_statistics(request: &mut Request) {
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    request.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
}

fn family_and_bytes(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    }
}

/// Reads a message of this kind.
pub(super) fn message(kind: u16, body: &[u8]) -> Option<Message> {
    Some(match kind {
        // A bridge tells of its ports in messages of its own family, which say less and do not end the link.
        RTM_NEWLINK | RTM_DELLINK if body.first() == Some(&AF_BRIDGE) => Message::Link(link(body)?),
        RTM_NEWLINK => Message::Link(link(body)?),
        RTM_DELLINK => Message::LinkGone(u32_at(body, 4)?),
        RTM_NEWADDR | RTM_DELADDR => Message::Address(address(body)?),
        RTM_NEWNEIGH => Message::Neighbour(neighbour(body)?),
        RTM_DELNEIGH => Message::NeighbourGone(neighbour(body)?),
        RTM_NEWROUTE | RTM_DELROUTE => Message::Route(route(body)?),
        _ => return None,
    })
}

fn link(body: &[u8]) -> Option<LinkMessage> {
    const IFF_RUNNING: u32 = 0x40;
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINK: u16 = 5;
    const IFLA_MASTER: u16 = 10;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_XDP: u16 = 43;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_XDP_ATTACHED: u16 = 2;

    let mut link = LinkMessage {
        link_layer: u16_at(body, 2)?,
        ifindex: u32_at(body, 4)?,
        is_running: u32_at(body, 8)? & IFF_RUNNING != 0,
        ..LinkMessage::default()
    };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_IFNAME => link.name = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_LINK => link.link = u32_at(value, 0).filter(|index| *index != 0),
            IFLA_MASTER => link.master = u32_at(value, 0).filter(|index| *index != 0),
            IFLA_XDP => {
                let attached = attributes(value).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED);
                link.has_xdp = attached.is_some_and(|(_, mode)| mode != [0]);
            }
            IFLA_LINK_NETNSID => link.link_namespace = i32_at(value, 0),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, name)| text(name)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(link)
}

fn address(body: &[u8]) -> Option<AddressMessage> {
    const RT_SCOPE_UNIVERSE: u8 = 0;
    const IFA_F_DADFAILED: u32 = 0x08;
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    const IFA_FLAGS: u16 = 8;

    let mut flags = u32::from(*body.get(2)?);
    let (mut own, mut peer) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            IFA_LOCAL => own = ip(value),
            IFA_ADDRESS => peer = ip(value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(AddressMessage {
        ifindex: u32_at(body, 4)?,
        // On a point-to-point link IFA_ADDRESS is the other end.
        address: own.or(peer)?,
        is_global: body.get(3) == Some(&RT_SCOPE_UNIVERSE) && flags & IFA_F_DADFAILED == 0,
    })
}

const NDA_DST: u16 = 1;

fn neighbour(body: &[u8]) -> Option<NeighbourMessage> {
    const NUD_INCOMPLETE: u16 = 0x01;
    const NUD_FAILED: u16 = 0x20;
    const NUD_NOARP: u16 = 0x40;
    const NUD_PERMANENT: u16 = 0x80;
    const NDA_LLADDR: u16 = 2;
    const NDA_MASTER: u16 = 9;

    let ifindex = u32_at(body, 4)?;
    let state = u16_at(body, 8)?;
    let (mut destination, mut mac, mut bridge) = (None, None, None);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            NDA_DST => destination = ip(value),
            NDA_LLADDR => mac = value.try_into().ok().map(Mac),
            NDA_MASTER => bridge = u32_at(value, 0),
            _ => {}
        }
    }
    if body.first() == Some(&AF_BRIDGE) {
        return Some(match (bridge, mac) {
            // In a bridge's table, "permanent" marks the addresses of the bridge and of its ports themselves.
            (Some(bridge), Some(mac)) if state & NUD_PERMANENT == 0 => {
                NeighbourMessage::Forwarding { bridge, port: ifindex, mac }
            }
            _ => NeighbourMessage::Other,
        });
    }
    let resolved = state != 0 && state & (NUD_INCOMPLETE | NUD_FAILED | NUD_NOARP) == 0;
    Some(match destination {
        Some(address) => {
            let known = mac.filter(|_| resolved).map(|mac| Neighbour { mac, is_permanent: state & NUD_PERMANENT != 0 });
            NeighbourMessage::Neighbour { ifindex, address, known }
        }
        None => NeighbourMessage::Other,
    })
}

fn route(body: &[u8]) -> Option<Route> {
    const RTN_UNICAST: u8 = 1;
    const RTN_LOCAL: u8 = 2;
    const RTA_OIF: u16 = 4;
    const RTA_GATEWAY: u16 = 5;
    const RTA_VIA: u16 = 18;
    const RTA_ENCAP: u16 = 22;

    let (mut device, mut gateway, mut encapsulated) = (None, None, false);
    for (kind, value) in attributes(body.get(12..)?) {
        match kind {
            RTA_OIF => device = u32_at(value, 0),
            RTA_GATEWAY => gateway = ip(value),
            // A gateway of the other family: the family, then the address.
            RTA_VIA => gateway = value.get(2..).and_then(ip),
            RTA_ENCAP => encapsulated = true,
            _ => {}
        }
    }
    Some(match (*body.get(7)?, device) {
        (RTN_LOCAL, _) => Route::Local,
        (RTN_UNICAST, Some(device)) if encapsulated => Route::Encapsulated { device },
        (RTN_UNICAST, Some(device)) => Route::Through { device, gateway },
        _ => Route::None,
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Ipv6Addr::from(sixteen).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::network::frame::{Frame, frames};

    fn address_of(text: &str) -> IpAddr {
        text.parse().expect("a valid address")
    }

    fn messages(datagram: &[u8]) -> Vec<Message> {
        let message = |frame| match frame {
            Frame::Message(message) => message,
            Frame::Answer(_) | Frame::Interrupted | Frame::Done | Frame::Other => panic!("not read: {frame:?}"),
        };
        frames(datagram, super::message).into_iter().map(message).collect()
    }

    #[test]
    fn a_link_message_is_read_whatever_else_it_carries() {
        let mut body = [0; 16];
        body[2..4].copy_from_slice(&1_u16.to_ne_bytes());
        body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        body[8..12].copy_from_slice(&0x41_u32.to_ne_bytes());
        let mut message = Request::new(RTM_NEWLINK, 0, &body);
        message.attribute(3, b"veth0\0");
        message.attribute(999, &[1, 2, 3, 4, 5]);
        message.attribute(1, &[2, 0, 0, 0, 0, 9]);
        message.attribute(4, &1500_u32.to_ne_bytes());
        message.attribute(5, &3_u32.to_ne_bytes());
        message.attribute(10, &4_u32.to_ne_bytes());
        message.attribute(37, &0_i32.to_ne_bytes());
        // A nested attribute: its length, its kind, "veth".
        message.attribute(18 | 0x8000, &[&9_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes()[..], b"veth\0"].concat());
        // Another: 2, a byte that says how the program is run.
        message.attribute(43 | 0x8000, &[&5_u16.to_ne_bytes()[..], &2_u16.to_ne_bytes()[..], &[1]].concat());
        assert_eq!(
            messages(&message.finish()),
            [Message::Link(LinkMessage {
                ifindex: 7,
                name: "veth0".into(),
                kind: "veth".into(),
                master: Some(4),
                link: Some(3),
                link_namespace: Some(0),
                link_layer: 1,
                mtu: 1500,
                is_running: true,
                mac: Some(Mac([2, 0, 0, 0, 0, 9])),
                has_xdp: true,
            })]
        );
    }

    #[test]
    fn an_unresolved_neighbour_has_no_mac() {
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let learned = Some(Neighbour { mac, is_permanent: false });
        let written = Some(Neighbour { mac, is_permanent: true });
        for (state, known) in
            [(0x01_u16, None), (0x02, learned), (0x04, learned), (0x20, None), (0x40, None), (0x80, written), (0, None)]
        {
            let mut body = [0; 12];
            body[0] = AF_INET;
            body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            let mut message = Request::new(RTM_NEWNEIGH, 0, &body);
            message.attribute(1, &[10, 0, 0, 2]);
            message.attribute(2, &[2, 0, 0, 0, 0, 9]);
            let address = address_of("10.0.0.2");
            let expected = NeighbourMessage::Neighbour { ifindex: 7, address, known };
            assert_eq!(messages(&message.finish()), [Message::Neighbour(expected)], "state {state:#x}");
        }
    }

    #[test]
    fn a_bridges_own_addresses_are_not_where_a_backend_is() {
        for (state, expected) in [
            (0x02_u16, NeighbourMessage::Forwarding { bridge: 4, port: 7, mac: Mac([2, 0, 0, 0, 0, 9]) }),
            (0x80, NeighbourMessage::Other),
        ] {
            let mut body = [0; 12];
            body[0] = AF_BRIDGE;
            body[4..8].copy_from_slice(&7_u32.to_ne_bytes());
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            let mut message = Request::new(RTM_NEWNEIGH, 0, &body);
            message.attribute(2, &[2, 0, 0, 0, 0, 9]);
            message.attribute(9, &4_u32.to_ne_bytes());
            assert_eq!(messages(&message.finish()), [Message::Neighbour(expected)], "state {state:#x}");
        }
    }

    #[test]
    fn a_route_says_its_device_and_gateway_of_either_family() {
        type Attributes<'a> = &'a [(u16, &'a [u8])];
        let cases: [(u8, Attributes<'_>, Route); 5] = [
            (1, &[(4, &7_u32.to_ne_bytes())], Route::Through { device: 7, gateway: None }),
            (
                1,
                &[(4, &7_u32.to_ne_bytes()), (5, &[10, 0, 0, 1])],
                Route::Through { device: 7, gateway: Some(address_of("10.0.0.1")) },
            ),
            (
                1,
                &[(4, &7_u32.to_ne_bytes()), (18, &[10, 0, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])],
                Route::Through { device: 7, gateway: Some(address_of("fd00::1")) },
            ),
            (2, &[(4, &1_u32.to_ne_bytes())], Route::Local),
            (6, &[], Route::None),
        ];
        for (kind, attributes, expected) in cases {
            let mut body = [0; 12];
            body[7] = kind;
            let mut message = Request::new(RTM_NEWROUTE, 0, &body);
            for (kind, value) in attributes {
                message.attribute(*kind, value);
            }
            assert_eq!(messages(&message.finish()), [Message::Route(expected)]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 16_u16..32) {
            message(kind, &bytes);
        }
    }
}
