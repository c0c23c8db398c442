//! IPv6 and the extension headers that may stand before the transport header (RFC 8200).

use lb_common::addr::{Addr, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{IpHeader, OWN_HOPS};

/// The fixed header.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ipv6 {
    /// One word: the compiler clears single bytes by a call of a loop.
    version_class_and_flow: u32,
    payload_length: u16,
    next_header: Protocol,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

impl Ipv6 {
    /// Bytes of the header.
    pub const LENGTH: usize = 40;

    /// The header of a packet that is made here.
    #[inline(always)]
    pub fn new(next_header: Protocol, payload_length: u16, source: &Addr, destination: &Addr) -> Self {
        Self {
            version_class_and_flow: (6_u32 << 28).to_be(),
            payload_length: payload_length.to_be(),
            next_header,
            hop_limit: OWN_HOPS,
            source: source.0,
            destination: destination.0,
        }
    }

    /// What follows the header.
    #[inline(always)]
    pub fn next_header(&self) -> Protocol {
        self.next_header
    }
}

impl IpHeader for Ipv6 {
    const SOURCE_OFFSET: usize = 8;
    const DESTINATION_OFFSET: usize = 24;
    const HOP_LIMIT_OFFSET: usize = 7;

    #[inline(always)]
    fn is_sound(&self, available: usize) -> bool {
        u32::from_be(self.version_class_and_flow) >> 28 == 6 && self.total(available) <= available
    }

    #[inline(always)]
    fn total(&self, available: usize) -> usize {
        let total = u16::from_be(self.payload_length) as usize + Self::LENGTH;
        if total == Self::LENGTH && available > u16::MAX as usize + Self::LENGTH { available } else { total }
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr(self.source)
    }

    #[inline(always)]
    fn destination(&self) -> Addr {
        Addr(self.destination)
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.hop_limit
    }
}

/// The first eight bytes of any extension header that is followed, the fragment header among them.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Extension {
    next_header: Protocol,
    length: u8,
    fragment: u16,
    identification: [u16; 2],
}

impl Extension {
    /// Extension headers that are followed; a packet with more is passed on.
    pub const MAX: usize = 6;

    /// What follows.
    #[inline(always)]
    pub fn next_header(&self) -> Protocol {
        self.next_header
    }

    /// Bytes of the header, for all but the fragment header.
    #[inline(always)]
    pub fn length(&self) -> usize {
        (self.length as usize + 1) * 8
    }

    /// How many hosts a packet with a routing header has still to visit after its destination.
    #[inline(always)]
    pub fn segments_left(&self) -> u8 {
        u16::from_be(self.fragment) as u8
    }

    /// Whether this is not the datagram's first fragment.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment & 0xfff8_u16.to_be() != 0
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub fn has_more_fragments(&self) -> bool {
        self.fragment & 1_u16.to_be() != 0
    }

    /// Identifies the datagram's fragments, as it lies in the packet.
    #[inline(always)]
    pub fn identification(&self) -> u32 {
        (self.identification[1] as u32) << 16 | self.identification[0] as u32
    }
}

/// What a number in a next-header field stands for, as far as it is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Hop-by-hop options, destination options: skipped.
    Options,
    /// The routing header: skipped at the end of the route.
    Routing,
    /// The fragment header, 8 bytes long.
    Fragment,
    /// Anything else.
    Content,
}

/// What follows.
#[inline(always)]
pub const fn follows(protocol: Protocol) -> Follows {
    match protocol {
        Protocol(0 | 60) => Follows::Options,
        Protocol(43) => Follows::Routing,
        Protocol(44) => Follows::Fragment,
        Protocol(_) => Follows::Content,
    }
}
