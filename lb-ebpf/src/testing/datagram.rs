//! The bytes of small packets, lengths and checksums right, for the tests of this crate and for fuzzing.

use std::{net::IpAddr, vec, vec::Vec};

use lb_common::addr::{Addr, Protocol};

use super::DEVICE;
#[cfg(test)]
use super::MemoryPacket;
use crate::wire::checksum::checksum;

/// A packet, described. Both ends are of one family.
#[derive(Clone, Debug)]
pub(crate) struct Datagram {
    pub(crate) source: (Addr, u16),
    pub(crate) destination: (Addr, u16),
    pub(crate) protocol: Protocol,
    pub(crate) hops: u8,
    /// The control bits, for TCP.
    pub(crate) flags: u8,
    /// Whether a UDP checksum is given.
    pub(crate) is_summed: bool,
    pub(crate) part: Option<Part>,
    /// Numbers of IPv6 extension headers, eight bytes each.
    pub(crate) extensions: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Which part of a datagram: bytes from its start, and whether more follow. Only the first has ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) identification: u16,
    pub(crate) offset: u16,
    pub(crate) has_more: bool,
}

/// A packet of this protocol between two ends.
pub(crate) fn datagram(protocol: Protocol, source: (Addr, u16), destination: (Addr, u16)) -> Datagram {
    Datagram {
        source,
        destination,
        protocol,
        hops: 64,
        flags: 0x10,
        is_summed: true,
        part: None,
        extensions: Vec::new(),
        payload: Vec::new(),
    }
}

impl Datagram {
    #[cfg(test)]
    pub(crate) fn packet(&self) -> MemoryPacket {
        MemoryPacket { bytes: self.bytes() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let inside = match self.part {
            Some(part) if part.offset > 0 => self.payload.clone(),
            Some(_) | None => self.transport(),
        };
        let mut bytes = [DEVICE, [2; 6]].concat();
        match (self.source.0.to_ip(), self.destination.0.to_ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let fragment = self.part.map_or(0x4000, |part| (part.offset / 8) | (u16::from(part.has_more) << 13));
                let mut header = vec![0x45, 0];
                header.extend((20 + inside.len() as u16).to_be_bytes());
                header.extend(self.part.map_or(7, |part| part.identification).to_be_bytes());
                header.extend(fragment.to_be_bytes());
                header.extend([self.hops, self.protocol.0, 0, 0]);
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(header.iter().copied());
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                bytes.extend([8, 0]);
                bytes.extend(header);
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let chain: Vec<u8> = self.extensions.iter().copied().chain(self.part.map(|_| 44)).collect();
                let next = |at: usize| chain.get(at).copied().unwrap_or(self.protocol.0);
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(((chain.len() * 8 + inside.len()) as u16).to_be_bytes());
                bytes.extend([next(0), self.hops]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                for (at, number) in chain.iter().enumerate() {
                    bytes.extend([next(at + 1), 0]);
                    match self.part {
                        Some(part) if *number == 44 => {
                            bytes.extend((part.offset | u16::from(part.has_more)).to_be_bytes());
                            bytes.extend([0, 0]);
                            bytes.extend(part.identification.to_be_bytes());
                        }
                        Some(_) | None if *number == 43 => bytes.extend([0; 6]), // a route that ends here
                        Some(_) | None => bytes.extend([1, 4, 0, 0, 0, 0]),      // one option that pads
                    }
                }
            }
            (source, destination) => panic!("{source} and {destination} are of two families"),
        }
        bytes.extend(inside);
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [self.source.1, self.destination.1].into_iter().flat_map(u16::to_be_bytes);
        let mut bytes: Vec<u8> = ports.collect();
        let at = match self.protocol {
            Protocol::TCP => {
                bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, self.flags, 0x10, 0, 0, 0, 0, 0]);
                16
            }
            Protocol::UDP => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            Protocol(_) => return self.payload.clone(),
        };
        bytes.extend(&self.payload);
        if self.is_summed {
            let addresses = [self.source.0, self.destination.0];
            // The zeros that map an IPv4 address add nothing to a sum, and its two ones add zero.
            let words = addresses.iter().flat_map(|address| address.0).flat_map(u32::to_ne_bytes);
            let rest = [0, self.protocol.0].into_iter().chain((bytes.len() as u16).to_be_bytes());
            let sum = checksum(words.chain(rest).chain(bytes.iter().copied()));
            let sum = if sum == 0 && self.protocol == Protocol::UDP { 0xffff } else { sum };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}
