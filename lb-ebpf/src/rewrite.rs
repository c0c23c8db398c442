//! A rewrite by plain writes, each followed in the checksums: where no helper of the kernel does it, at XDP and in memory.
//! The transport checksum has to be a finished one (see [`is_unfinished`]).

use lb_common::{
    addr::{Family, Protocol},
    reason::Reason,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    packet::{Edit, Side, TransportEdit},
    parse::{IP_OFFSET, Parsed},
    wire::{
        DESTINATION_PORT_OFFSET, IpHeader, Ipv4, Ipv6, SOURCE_PORT_OFFSET,
        checksum::{PseudoSum, Sum},
        checksum_offset,
    },
};

/// A packet that can be written anywhere in its headers.
pub trait Bytes {
    /// A value at `offset`.
    fn get<T: FromBytes + Copy>(&self, offset: usize) -> Option<T>;

    /// Writes a value at `offset`.
    ///
    /// # Errors
    /// When that is not within reach.
    fn put<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Result<(), Reason>;
}

/// Changes one end of a packet as `edit` says.
///
/// # Errors
/// When its headers are not within reach; it may be changed in part then.
#[inline(always)]
pub fn rewrite(packet: &mut impl Bytes, edit: &Edit) -> Result<(), Reason> {
    if edit.has_transport {
        rewrite_transport(packet, edit, &edit.transport)?;
    }
    match edit.family {
        Family::V4 => rewrite_ipv4(packet, edit),
        Family::V6 => rewrite_ipv6(packet, edit),
    }
}

/// Whether the packet's transport checksum is one that a local sender left to its device (`CHECKSUM_PARTIAL`): it holds
/// the sum of the pseudo header alone, and a device that is handed the packet by XDP will not finish it.
///
/// One in 65,535 finished checksums looks the same.
#[inline(always)]
pub fn is_unfinished(packet: &impl Bytes, parsed: &Parsed) -> bool {
    if !parsed.has_transport() {
        return false;
    }
    let at = parsed.transport_offset() + checksum_offset(parsed.protocol);
    let pseudo = PseudoSum::new(&parsed.source, &parsed.destination, parsed.protocol, parsed.transport_length);
    packet.get::<u16>(at) == Some(pseudo.fold())
}

#[inline(always)]
fn rewrite_transport(packet: &mut impl Bytes, edit: &Edit, transport: &TransportEdit) -> Result<(), Reason> {
    let at = transport.offset + checksum_offset(transport.protocol);
    let field: u16 = packet.get(at).ok_or(Reason::RewriteRefused)?;
    // RFC 768: zero means no checksum and stays; a sum that comes out as zero is sent as all ones.
    if transport.protocol == Protocol::TCP || field != 0 {
        let sum = Sum::default()
            .exchange_address(edit.family, &edit.old_address, &edit.new_address)
            .exchange(transport.old_port.0, transport.new_port.0)
            .apply(field);
        packet.put(at, if transport.protocol == Protocol::UDP && sum == 0 { 0xffff } else { sum })?;
    }
    let port = match edit.side {
        Side::Source => SOURCE_PORT_OFFSET,
        Side::Destination => DESTINATION_PORT_OFFSET,
    };
    packet.put(transport.offset + port, transport.new_port.0)
}

#[inline(always)]
fn rewrite_ipv4(packet: &mut impl Bytes, edit: &Edit) -> Result<(), Reason> {
    let header: Ipv4 = packet.get(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
    let mut sum = Sum::default().exchange_address(Family::V4, &edit.old_address, &edit.new_address);
    if edit.is_hop {
        let hops = header.hop_limit() - 1;
        sum = sum.exchange(header.hop_word(header.hop_limit()), header.hop_word(hops));
        packet.put(IP_OFFSET + Ipv4::HOP_LIMIT_OFFSET, hops)?;
    }
    packet.put(IP_OFFSET + Ipv4::CHECKSUM_OFFSET, sum.apply(header.checksum()))?;
    packet.put(IP_OFFSET + address_offset::<Ipv4>(edit.side), edit.new_address.v4_word())
}

#[inline(always)]
fn rewrite_ipv6(packet: &mut impl Bytes, edit: &Edit) -> Result<(), Reason> {
    if edit.is_hop {
        let header: Ipv6 = packet.get(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
        packet.put(IP_OFFSET + Ipv6::HOP_LIMIT_OFFSET, header.hop_limit() - 1)?;
    }
    packet.put(IP_OFFSET + address_offset::<Ipv6>(edit.side), edit.new_address.0)
}

/// Bytes from the IP header's start to the address that changes.
#[inline(always)]
pub const fn address_offset<I: IpHeader>(side: Side) -> usize {
    match side {
        Side::Source => I::SOURCE_OFFSET,
        Side::Destination => I::DESTINATION_OFFSET,
    }
}
