//! Where the fields of a packet lie, told anew and in another way than `parse` does: what is compared must not be taken
//! from what it is compared with.

use std::{net::IpAddr, ops::Range, vec::Vec};

use lb_common::addr::{Addr, Family, Protocol};

use crate::{packet::Side, wire::checksum::checksum};

/// Where the fields of a packet lie that the data path accepted.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) hops: usize,
    /// Where the header of a first fragment or a whole datagram is.
    pub(super) transport: Option<usize>,
    ip_end: usize,
    end: usize,
}

const IP: usize = 14;

impl Layout {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        if bytes[IP] >> 4 == 4 {
            let ip_end = IP + (bytes[IP] & 0xf) as usize * 4;
            let is_later = word(IP + 6) & 0x1fff != 0;
            return Self {
                family: Family::V4,
                protocol: Protocol(bytes[IP + 9]),
                hops: IP + 8,
                transport: (!is_later).then_some(ip_end),
                ip_end,
                end: IP + word(IP + 2) as usize,
            };
        }
        let (mut number, mut at, mut is_later) = (bytes[IP + 6], IP + 40, false);
        while matches!(number, 0 | 43 | 44 | 60) && !is_later {
            let length = if number == 44 { 8 } else { 8 + bytes[at + 1] as usize * 8 };
            is_later = number == 44 && word(at + 2) >= 8;
            number = bytes[at];
            at += length;
        }
        Self {
            family: Family::V6,
            protocol: Protocol(number),
            hops: IP + 7,
            transport: (!is_later).then_some(at),
            ip_end: IP + 40,
            end: IP + 40 + word(IP + 4) as usize,
        }
    }

    /// Where an end's address is.
    pub(super) fn address(&self, side: Side) -> Range<usize> {
        let (at, length) = match (self.family, side) {
            (Family::V4, Side::Source) => (IP + 12, 4),
            (Family::V4, Side::Destination) => (IP + 16, 4),
            (Family::V6, Side::Source) => (IP + 8, 16),
            (Family::V6, Side::Destination) => (IP + 24, 16),
        };
        at..at + length
    }

    /// Where an end's port is.
    pub(super) fn port(&self, side: Side) -> Option<Range<usize>> {
        let at = self.transport?;
        Some(match side {
            Side::Source => at..at + 2,
            Side::Destination => at + 2..at + 4,
        })
    }

    /// Where the IPv4 header's checksum is.
    pub(super) fn ip_sum(&self) -> Option<Range<usize>> {
        match self.family {
            Family::V4 => Some(IP + 10..IP + 12),
            Family::V6 => None,
        }
    }

    /// Where the transport header's checksum is.
    pub(super) fn transport_sum(&self) -> Option<Range<usize>> {
        let at = self.transport? + if self.protocol == Protocol::TCP { 16 } else { 6 };
        Some(at..at + 2)
    }

    /// What the IPv4 header adds up to: zero where its checksum is right.
    pub(super) fn ip_residue(&self, bytes: &[u8]) -> Option<u16> {
        self.ip_sum().map(|_| residue(bytes[IP..self.ip_end].iter().copied()))
    }

    /// What the transport header and what is in it add up to with both addresses; `None` where there is no checksum.
    ///
    /// A rewrite must not change it, whether the checksum was right or not, and also not in a datagram's first fragment,
    /// of which the checksum covers more than is here.
    pub(super) fn transport_residue(&self, bytes: &[u8]) -> Option<u16> {
        let sum = self.transport_sum()?;
        if self.protocol == Protocol::UDP && bytes[sum] == [0, 0] {
            return None;
        }
        let parts = [self.address(Side::Source), self.address(Side::Destination), self.transport?..self.end];
        Some(residue(parts.into_iter().flat_map(|part| &bytes[part]).copied()))
    }
}

/// A sum in which zero has one form.
fn residue(bytes: impl Iterator<Item = u8>) -> u16 {
    match checksum(bytes) {
        0xffff => 0,
        sum => sum,
    }
}

/// An address as it lies in the packet.
pub(super) fn octets(address: &Addr) -> Vec<u8> {
    match address.to_ip() {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}
