//! IPv4 (RFC 791).

use lb_common::addr::{Addr, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{IpHeader, OWN_HOPS, checksum::Sum};

/// The header without its options.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Ipv4 {
    version_and_length: u8,
    service: u8,
    total_length: u16,
    identification: u16,
    fragment: u16,
    time_to_live: u8,
    protocol: Protocol,
    checksum: u16,
    source: u32,
    destination: u32,
}

impl Ipv4 {
    /// Bytes from the header's start to its checksum.
    pub const CHECKSUM_OFFSET: usize = 10;
    const LENGTH_MIN: usize = 20;

    /// The header of a packet that is made here, which no router may cut. Both addresses are of IPv4.
    #[inline(always)]
    pub fn new(service: u8, protocol: Protocol, total_length: u16, source: &Addr, destination: &Addr) -> Self {
        let mut header = Self {
            version_and_length: 0x45,
            service,
            total_length: total_length.to_be(),
            // RFC 6864, section 4.1: nothing identifies what is never a fragment.
            identification: 0,
            fragment: 0x4000_u16.to_be(),
            time_to_live: OWN_HOPS,
            protocol,
            checksum: 0,
            source: source.v4_word(),
            destination: destination.v4_word(),
        };
        let words = [header.version_and_service(), header.total_length, header.fragment, header.hop_word(OWN_HOPS)];
        let addresses = Sum::default().add(header.source).add(header.destination);
        header.checksum = words.into_iter().fold(addresses, |sum, word| sum.add(word as u32)).finish();
        header
    }

    #[inline(always)]
    fn version_and_service(&self) -> u16 {
        u16::from_ne_bytes([self.version_and_length, self.service])
    }

    /// Bytes of the header, its options included.
    #[inline(always)]
    pub fn length(&self) -> usize {
        (self.version_and_length & 0xf) as usize * 4
    }

    /// What is inside.
    #[inline(always)]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Identifies the datagram's fragments, as it lies in the packet.
    #[inline(always)]
    pub fn identification(&self) -> u16 {
        self.identification
    }

    /// Whether this is not the datagram's first fragment.
    #[inline(always)]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment & 0x1fff_u16.to_be() != 0
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub fn has_more_fragments(&self) -> bool {
        self.fragment & 0x2000_u16.to_be() != 0
    }

    /// The header's checksum, as it lies in the packet.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        self.checksum
    }

    /// The time to live and the protocol, as the 16 bits the checksum covers.
    #[inline(always)]
    pub fn hop_word(&self, time_to_live: u8) -> u16 {
        u16::from_ne_bytes([time_to_live, self.protocol.0])
    }
}

impl IpHeader for Ipv4 {
    const SOURCE_OFFSET: usize = 12;
    const DESTINATION_OFFSET: usize = 16;
    const HOP_LIMIT_OFFSET: usize = 8;

    #[inline(always)]
    fn is_sound(&self, available: usize) -> bool {
        let total = self.total(available);
        self.version_and_length >> 4 == 4
            && self.length() >= Self::LENGTH_MIN
            && total >= self.length()
            && total <= available
    }

    #[inline(always)]
    fn total(&self, available: usize) -> usize {
        let total = u16::from_be(self.total_length) as usize;
        if total == 0 && available > u16::MAX as usize { available } else { total }
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        Addr::from_v4_word(self.source)
    }

    #[inline(always)]
    fn destination(&self) -> Addr {
        Addr::from_v4_word(self.destination)
    }

    #[inline(always)]
    fn hop_limit(&self) -> u8 {
        self.time_to_live
    }
}
