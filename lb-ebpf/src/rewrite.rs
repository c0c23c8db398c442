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

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use lb_common::addr::Addr;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        parse::parse,
        testing::datagram::{Datagram, datagram},
        wire::checksum::checksum,
    };

    fn any_datagram() -> impl Strategy<Value = Datagram> {
        let address = |family: Family, words: [u32; 4]| match family {
            Family::V4 => Addr::from_v4_word(words[3]),
            Family::V6 => Addr([words[0] | u32::from_ne_bytes([0x20, 0, 0, 0]), words[1], words[2], words[3]]),
        };
        let family = prop::sample::select(Family::ALL.to_vec());
        let protocol = prop::sample::select([Protocol::TCP, Protocol::UDP].to_vec());
        let ends: (_, _, _, _) = (any::<[u32; 4]>(), any::<[u32; 4]>(), any::<u16>(), any::<u16>());
        (family, protocol, ends, prop::collection::vec(any::<u8>(), 0..200)).prop_map(
            move |(family, protocol, (source, destination, from, to), payload)| Datagram {
                payload,
                ..datagram(protocol, (address(family, source), from), (address(family, destination), to))
            },
        )
    }

    /// The sum that a local sender leaves to its device, made from bytes.
    fn pseudo_sum(parsed: &Parsed, length: usize) -> u16 {
        let words = [parsed.source, parsed.destination].into_iter().flat_map(|address| address.0);
        let rest = [0, 0, 0, parsed.protocol.0].into_iter().chain((length as u32).to_be_bytes());
        !checksum(words.flat_map(u32::to_ne_bytes).chain(rest)).to_be()
    }

    proptest! {
        #[test]
        fn what_a_sender_leaves_to_its_device_is_known_and_what_is_finished_is_not_taken_for_it(datagram in any_datagram()) {
            let mut packet = datagram.packet();
            let Ok(parsed) = parse(&packet) else { return Err(TestCaseError::reject("addresses of no packet")) };
            let at = parsed.transport_offset() + checksum_offset(parsed.protocol);
            let left = pseudo_sum(&parsed, packet.bytes.len() - parsed.transport_offset());
            let finished: u16 = packet.get(at).expect("it has one");
            prop_assert_eq!(is_unfinished(&packet, &parsed), finished == left);
            packet.put(at, left).expect("it is in reach");
            prop_assert!(is_unfinished(&packet, &parsed));
            packet.put(at, left.wrapping_add(1)).expect("it is in reach");
            prop_assert!(!is_unfinished(&packet, &parsed));
        }

        #[test]
        fn a_pseudo_header_adds_up_as_its_bytes_do(source: [u32; 4], destination: [u32; 4], protocol: u8, length: u32) {
            let words = source.into_iter().chain(destination).flat_map(u32::to_ne_bytes);
            let rest = [0, 0, 0, protocol].into_iter().chain(length.to_be_bytes());
            let bytes: Vec<u8> = words.chain(rest).collect();
            let sum = PseudoSum::new(&Addr(source), &Addr(destination), Protocol(protocol), length).fold();
            prop_assert_eq!(sum, !checksum(bytes).to_be());
        }
    }

    #[test]
    fn a_pseudo_header_keeps_its_last_carry() {
        let words = [u32::MAX, u32::MAX, 1, 0];
        let sum = PseudoSum::new(&Addr(words), &Addr([0; 4]), Protocol(0), 0).fold();
        assert_eq!(sum, !checksum(words.into_iter().flat_map(u32::to_ne_bytes)).to_be());
    }

    #[test]
    fn of_finished_sums_one_in_65535_looks_unfinished() {
        let end = |last| (Addr::from_v4_word(u32::from_ne_bytes([10, 9, 0, last])), 53);
        let looks = (0..=u16::MAX).filter(|word| {
            let datagram = Datagram { payload: word.to_ne_bytes().to_vec(), ..datagram(Protocol::UDP, end(1), end(2)) };
            let packet = datagram.packet();
            is_unfinished(&packet, &parse(&packet).expect("it is sound"))
        });
        // The word of all ones adds what zero does.
        assert!((1..=2).contains(&looks.count()));
    }

    #[test]
    fn a_later_fragment_has_no_checksum_to_finish() {
        use crate::testing::datagram::Part;
        let end = |last| (Addr::from_v4_word(u32::from_ne_bytes([10, 9, 0, last])), 53);
        let part = Part { identification: 1, offset: 16, has_more: false };
        let later = Datagram { part: Some(part), payload: [0; 40].into(), ..datagram(Protocol::UDP, end(1), end(2)) };
        let mut packet = later.packet();
        let parsed = parse(&packet).expect("it is sound");
        let left = pseudo_sum(&parsed, 40);
        for at in (parsed.transport_offset()..packet.bytes.len()).step_by(2) {
            packet.put(at, left).expect("it is in reach");
        }
        assert!(!is_unfinished(&packet, &parsed));
    }
}
