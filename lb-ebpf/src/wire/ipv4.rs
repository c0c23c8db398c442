//! IPv4 (RFC 791).

use lb_common::addr::{Addr, Protocol};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::IpHeader;

/// The header without its options.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
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
