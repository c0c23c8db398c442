//! Four bytes → a packet between a client and a frontend or a backend, right in all its lengths and sums.

use std::{net::IpAddr, vec::Vec};

use lb_common::addr::{Addr, Family, Protocol};

use super::{
    Input,
    world::{ENDPOINTS, FRONTENDS},
};
use crate::testing::datagram::{Datagram, Part, datagram};

/// A packet, described by four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Family, protocol, direction, and the frontend or endpoint of the one end.
    pub(super) ends: u8,
    /// Address and port of the other.
    pub(super) client: u8,
    /// The control bits of a TCP segment.
    pub(super) flags: u8,
    /// What kind of packet: see [`PARTS`], [`HOPS`], [`NO_SUM`], [`EXTENSIONS`] and [`LONG`].
    pub(super) shape: u8,
}

/// The IPv6 half of the columns.
pub(super) const V6: u8 = 1;
/// The UDP half of the columns.
pub(super) const UDP: u8 = 2;
/// From an endpoint and not to a frontend.
pub(super) const ANSWER: u8 = 4;
const PEER_SHIFT: u8 = 3;

const PARTS: u8 = 0b11;
/// A first fragment.
pub(super) const FIRST: u8 = 2;
/// A later fragment.
pub(super) const LATER: u8 = 3;
const HOPS_SHIFT: u8 = 2;
const HOPS: [u8; 4] = [64, 2, 1, 0];
/// The last hop.
pub(super) const LAST_HOP: u8 = 2 << HOPS_SHIFT;
/// Without a UDP checksum.
pub(super) const NO_SUM: u8 = 1 << 4;
const EXTENSIONS_SHIFT: u8 = 5;
/// Seven is one more than are followed.
const EXTENSIONS: [usize; 4] = [0, 1, 3, 7];
/// More extension headers than are followed.
pub(super) const TOO_MANY_EXTENSIONS: u8 = 3 << EXTENSIONS_SHIFT;
/// Of odd length, and longer.
pub(super) const LONG: u8 = 1 << 7;

/// Hop-by-hop options, then a route that ends here among destination options.
const CHAIN: [u8; 7] = [0, 60, 43, 60, 60, 60, 60];

/// Addresses of clients; no router forwards for the last one.
const CLIENTS: [[&str; 2]; 4] = [
    ["10.9.0.1", "fd00:9::1"],
    ["10.9.0.2", "fd00:9:1:2:3:4:5:6"],
    ["198.51.100.7", "2001:db8::7"],
    ["127.0.0.1", "fe80::1"],
];

/// Neither a frontend's nor an endpoint's.
const STRANGER: ([&str; 2], u16) = (["203.0.113.1", "2001:db8:ffff::1"], 9);

impl Frame {
    /// A whole packet from a client to a frontend of a column.
    pub(super) const fn asks(column: u8, frontend: u8, client: u8) -> Self {
        Self { ends: column | frontend << PEER_SHIFT, client, flags: 0, shape: 0 }
    }

    /// A whole packet from an endpoint of a column to a client.
    pub(super) const fn answers(column: u8, endpoint: u8, client: u8) -> Self {
        Self { ends: column | ANSWER | endpoint << PEER_SHIFT, client, flags: 0, shape: 0 }
    }

    pub(super) fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(Self { ends: input.byte()?, client: input.byte()?, flags: input.byte()?, shape: input.byte()? })
    }

    pub(super) const fn to_bytes(self) -> [u8; 4] {
        [self.ends, self.client, self.flags, self.shape]
    }

    /// The packet, from or to the `n`-th port after the client's.
    pub(super) fn datagram(self, n: u8) -> Datagram {
        let family = if self.ends & V6 == 0 { Family::V4 } else { Family::V6 };
        let protocol = if self.ends & UDP == 0 { Protocol::TCP } else { Protocol::UDP };
        let peer = (self.ends >> PEER_SHIFT & 3) as usize;
        let (peers, is_answer) = (if self.ends & ANSWER == 0 { FRONTENDS } else { ENDPOINTS }, self.ends & ANSWER != 0);
        let (addresses, port) = peers.get(peer).copied().unwrap_or(STRANGER);
        let peer = (address(family, addresses), port);
        let client = CLIENTS[(self.client & 3) as usize];
        let client = (address(family, client), 4000 + (self.client >> 2) as u16 + n as u16);
        let (source, destination) = if is_answer { (peer, client) } else { (client, peer) };
        let is_long = self.shape & LONG != 0;
        let part = |offset, has_more| Some(Part { identification: 7 + self.client as u16, offset, has_more });
        let extensions = EXTENSIONS[(self.shape >> EXTENSIONS_SHIFT & 3) as usize];
        Datagram {
            hops: HOPS[(self.shape >> HOPS_SHIFT & 3) as usize],
            flags: self.flags,
            is_summed: self.shape & NO_SUM == 0 || protocol == Protocol::TCP,
            part: match self.shape & PARTS {
                FIRST => part(0, true),
                LATER => part(16, false),
                _ => None,
            },
            extensions: match family {
                Family::V4 => Vec::new(),
                Family::V6 => CHAIN[..extensions].to_vec(),
            },
            payload: (0..if is_long { 21 } else { 2 }).map(|at| self.flags ^ at).collect(),
            ..datagram(protocol, source, destination)
        }
    }
}

/// The address of a family, of two in text.
pub(super) fn address(family: Family, [four, six]: [&str; 2]) -> Addr {
    let text = match family {
        Family::V4 => four,
        Family::V6 => six,
    };
    text.parse::<IpAddr>().unwrap_or_else(|_| unreachable!("{text} is an address")).into()
}
