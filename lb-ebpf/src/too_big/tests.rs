//! Errors byte by byte, their sums computed anew. The case table (testbed) says the same of the kernel.

use std::{net::IpAddr, vec, vec::Vec};

use lb_common::{
    addr::{Addr, Protocol},
    limits::ERRORS_AT_ONCE,
};

use super::*;
use crate::{
    parse::parse,
    testing::{
        ARRIVED_BY, Cpu, DEVICE, Maps, MemoryPacket,
        datagram::{Datagram, Part, datagram},
    },
    wire::checksum::checksum,
};

const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

fn address(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("a valid address").into()
}

fn ends(family: Family) -> (Addr, Addr) {
    match family {
        Family::V4 => (address("10.100.13.2"), address("10.9.0.1")),
        Family::V6 => (address("fd00:100:13::2"), address("fd00:9::1")),
    }
}

/// From a backend, with so many bytes of payload.
fn sent(family: Family, protocol: Protocol, payload: usize) -> Datagram {
    let (source, destination) = ends(family);
    let payload = (0..payload).map(|n| (n * 7) as u8).collect();
    Datagram { payload, ..datagram(protocol, (source, 53), (destination, 4000)) }
}

fn refused(bytes: Vec<u8>, mtu: u32, kernel: &Cpu<'_>) -> Option<Vec<u8>> {
    let mut packet = MemoryPacket { bytes };
    let parsed = parse(&packet).expect("it can be parsed");
    kernel.note_mtu(mtu);
    let exit = answer(&mut packet, kernel, &parsed)?;
    assert_eq!(exit, Exit::Link { ifindex: ARRIVED_BY });
    Some(packet.bytes)
}

fn answered(bytes: Vec<u8>, mtu: u32) -> Option<Vec<u8>> {
    let maps = Maps::new(1, 1);
    refused(bytes, mtu, &Cpu::new(&maps, 1))
}

/// The whole error but for its IPv4 and ICMP sums, which have to come out as right.
fn check(bytes: Vec<u8>, mtu: u32, told: u16, quoted: usize) {
    let family = if bytes[12..14] == [8, 0] { Family::V4 } else { Family::V6 };
    let error = answered(bytes.clone(), mtu).expect("it is answered");
    let (sender, receiver) = ends(family);
    assert_eq!(error[..14], [&[2; 6], &DEVICE, &bytes[12..14]].concat());
    let ip = &error[14..];
    let icmp = match family {
        Family::V4 => {
            let total = ((28 + quoted) as u16).to_be_bytes();
            assert_eq!(ip[..10], [&[0x45, 0xc0], &total[..], &[0, 0, 0x40, 0, 64, 1]].concat());
            assert_eq!(ip[12..20], [receiver.v4_word().to_ne_bytes(), sender.v4_word().to_ne_bytes()].concat());
            assert_eq!(checksum(ip[..20].iter().copied()), 0);
            assert_eq!(checksum(ip[20..].iter().copied()), 0);
            assert_eq!(ip[20..22], [3, 4]);
            assert_eq!(ip[24..28], [&[0, 0], &told.to_be_bytes()[..]].concat());
            &ip[20..]
        }
        Family::V6 => {
            let length = ((8 + quoted) as u16).to_be_bytes();
            let bytes_of = |address: Addr| address.0.into_iter().flat_map(u32::to_ne_bytes).collect::<Vec<_>>();
            assert_eq!(ip[..8], [&[0x60, 0, 0, 0], &length[..], &[58, 64]].concat());
            assert_eq!(ip[8..40], [bytes_of(receiver), bytes_of(sender)].concat());
            let pseudo = [&ip[8..40], &[0, 0], &length[..], &[0, 0, 0, 58]].concat();
            assert_eq!(checksum(pseudo.into_iter().chain(ip[40..].iter().copied())), 0);
            assert_eq!(ip[40..42], [2, 0]);
            assert_eq!(ip[44..48], [&[0, 0], &told.to_be_bytes()[..]].concat());
            &ip[40..]
        }
    };
    assert_eq!(icmp[8..], bytes[14..14 + quoted], "it quotes what was sent");
}

#[test]
fn the_sender_is_told_what_fits_and_shown_what_it_sent() {
    for protocol in PROTOCOLS {
        check(sent(Family::V4, protocol, 1460).bytes(), 1400, 1400, 548);
        check(sent(Family::V6, protocol, 1440).bytes(), 1400, 1400, 1232);
    }
}

#[test]
fn a_packet_that_may_be_cut_is_answered_as_well() {
    let may_be_cut = Datagram {
        part: Some(Part { identification: 9, offset: 0, has_more: true }),
        ..sent(Family::V4, Protocol::UDP, 1472)
    };
    check(may_be_cut.bytes(), 1400, 1400, 548);
}

#[test]
fn a_sum_that_its_sender_left_unfinished_is_quoted_as_it_came() {
    for family in Family::ALL {
        let mut bytes = Datagram { is_summed: false, ..sent(family, Protocol::TCP, 1440) }.bytes();
        let header = match family {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        // Whatever a sum field holds.
        bytes[14 + header + 16..][..2].copy_from_slice(&[0x12, 0x34]);
        check(bytes, 1400, 1400, if family == Family::V4 { 548 } else { 1232 });
    }
}

#[test]
fn no_mtu_is_told_that_the_family_does_not_have() {
    check(sent(Family::V4, Protocol::TCP, 1460).bytes(), 40, 68, 548);
    check(sent(Family::V4, Protocol::TCP, 1460).bytes(), 65_536, 65_535, 548);
    check(sent(Family::V6, Protocol::TCP, 1440).bytes(), 1000, 1280, 1232);
}

#[test]
fn a_packet_for_a_narrow_link_is_quoted_in_part() {
    check(sent(Family::V4, Protocol::UDP, 519).bytes(), 400, 400, 128);
    check(sent(Family::V4, Protocol::UDP, 520).bytes(), 400, 400, 548);
    check(sent(Family::V4, Protocol::UDP, 100).bytes(), 100, 100, 128);
    assert_eq!(answered(sent(Family::V4, Protocol::UDP, 99).bytes(), 100), None);
    assert_eq!(answered(sent(Family::V6, Protocol::UDP, 1183).bytes(), 1200), None);
}

#[test]
fn who_is_no_single_host_is_not_answered() {
    for (family, source) in [(Family::V4, "127.0.0.1"), (Family::V4, "224.0.0.1"), (Family::V6, "ff02::1")] {
        let datagram = Datagram { source: (address(source), 53), ..sent(family, Protocol::UDP, 1440) };
        assert_eq!(answered(datagram.bytes(), 1400), None, "{source}");
    }
}

#[test]
fn a_later_fragment_is_not_answered() {
    for family in Family::ALL {
        let part = Some(Part { identification: 9, offset: 16, has_more: true });
        let datagram = Datagram { part, ..sent(family, Protocol::UDP, 1440) };
        assert_eq!(answered(datagram.bytes(), 1400), None);
    }
}

#[test]
fn what_was_sent_to_a_group_is_not_answered() {
    for family in Family::ALL {
        let mut bytes = sent(family, Protocol::UDP, 1440).bytes();
        bytes[0] = 1;
        assert_eq!(answered(bytes, 1400), None);
    }
}

#[test]
fn headers_longer_than_a_few_extensions_are_not_answered() {
    let extended = |count| Datagram { extensions: vec![60; count], ..sent(Family::V6, Protocol::TCP, 1440) };
    check(extended(6).bytes(), 1400, 1400, 1232);
    let mut long = extended(1).bytes();
    // One option header of 56 bytes, where six of eight were.
    long.splice(14 + 40..14 + 48, [vec![6, 6, 1, 52], vec![0; 52]].concat());
    let length = u16::from_be_bytes([long[18], long[19]]) + 48;
    long[18..20].copy_from_slice(&length.to_be_bytes());
    assert_eq!(answered(long, 1400), None);
}

#[test]
fn in_one_tick_so_many_are_answered_and_no_more() {
    let maps = Maps::new(1, 1);
    let kernel = Cpu::new(&maps, 1);
    let told = || refused(sent(Family::V4, Protocol::TCP, 1460).bytes(), 1400, &kernel).is_some();
    for _ in 0..3 {
        assert!((0..ERRORS_AT_ONCE).all(|_| told()));
        assert!(!(0..ERRORS_AT_ONCE).any(|_| told()));
        maps.tick.fetch_add(1);
    }
}
