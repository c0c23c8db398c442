//! Headers that are read, and those that cannot be.

use std::{net::IpAddr, vec, vec::Vec};

use lb_common::addr::{Addr, Port, Protocol};

use super::*;
use crate::testing::{
    MemoryPacket,
    datagram::{Datagram, Part, datagram},
};

const HEADERS: [(Family, usize); 2] = [(Family::V4, IP_OFFSET + 20), (Family::V6, IP_OFFSET + 40)];

fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("a valid address").into()
}

fn sample(family: Family, protocol: Protocol) -> Datagram {
    let (source, destination) = match family {
        Family::V4 => (addr("10.9.0.1"), addr("192.0.2.53")),
        Family::V6 => (addr("fd00:9::1"), addr("2001:db8::53")),
    };
    Datagram { payload: vec![1, 2, 3], ..datagram(protocol, (source, 4000), (destination, 53)) }
}

fn reason(bytes: Vec<u8>) -> Option<Reason> {
    parse(&MemoryPacket { bytes }).err()
}

/// What parsing says when the byte at an offset is another.
fn with_byte(datagram: &Datagram, offset: usize, byte: u8) -> Option<Reason> {
    let mut bytes = datagram.bytes();
    bytes[offset] = byte;
    reason(bytes)
}

#[test]
fn both_families_are_read() {
    for (family, headers) in HEADERS {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let sample = Datagram { hops: 9, flags: 0x12, ..sample(family, protocol) };
            let parsed = parse(&sample.packet()).expect("it is sound");
            assert_eq!((parsed.family, parsed.protocol, parsed.hop_limit), (family, protocol, 9));
            assert_eq!((parsed.source, parsed.destination), (sample.source.0, sample.destination.0));
            assert_eq!((parsed.source_port, parsed.destination_port), (Port::new(4000), Port::new(53)));
            assert_eq!((parsed.transport_offset(), parsed.fragment), (headers, Fragment::Whole));
            assert_eq!(parsed.flags.0, if protocol == Protocol::TCP { 0x12 } else { 0 });
        }
    }
}

#[test]
fn what_is_no_tcp_or_udp_over_ip_is_not_ours() {
    assert_eq!(reason(vec![0; 60]), Some(Reason::NotOurs), "no IP");
    for (family, _) in HEADERS {
        assert_eq!(reason(sample(family, Protocol(1)).bytes()), Some(Reason::NotOurs));
    }
}

#[test]
fn a_packet_cut_anywhere_is_refused() {
    for (family, headers) in HEADERS {
        let bytes = sample(family, Protocol::UDP).bytes();
        for length in 0..bytes.len() {
            let expected = if length < headers { Reason::Truncated } else { Reason::Malformed };
            assert_eq!(reason(bytes[..length].to_vec()), Some(expected), "{family}, {length} bytes");
        }
    }
}

#[test]
fn a_transport_header_that_does_not_fit_the_packet_is_truncated() {
    for (family, _) in HEADERS {
        for (protocol, length) in [(Protocol::UDP, 8), (Protocol::TCP, 20)] {
            // The lengths of the headers before it are right.
            let mut bytes = Datagram { payload: vec![0x55; length - 1], ..sample(family, Protocol(1)) }.bytes();
            let at = if family == Family::V4 { IP_OFFSET + 9 } else { IP_OFFSET + 6 };
            bytes[at] = protocol.0;
            assert_eq!(reason(bytes), Some(Reason::Truncated), "{family}, {protocol}");
        }
    }
}

#[test]
fn the_version_is_that_of_the_ethertype() {
    assert_eq!(with_byte(&sample(Family::V4, Protocol::UDP), IP_OFFSET, 0x65), Some(Reason::Malformed));
    assert_eq!(with_byte(&sample(Family::V6, Protocol::UDP), IP_OFFSET, 0x40), Some(Reason::Malformed));
}

#[test]
fn an_ipv4_header_shorter_than_its_least_is_malformed() {
    // The port would be read as the length of UDP, and be a sound one.
    let sample = Datagram { source: (addr("10.9.0.1"), 12), ..sample(Family::V4, Protocol::UDP) };
    assert_eq!(with_byte(&sample, IP_OFFSET, 0x44), Some(Reason::Malformed));
}

#[test]
fn an_ipv4_packet_shorter_than_its_header_is_malformed() {
    let sample = sample(Family::V4, Protocol::UDP);
    assert_eq!(with_byte(&sample, IP_OFFSET + 3, 19), Some(Reason::Malformed));
    assert_eq!(with_byte(&sample, IP_OFFSET + 3, 0), Some(Reason::Malformed));
}

#[test]
fn a_length_of_zero_stands_for_more_than_the_field_can_say() {
    for (family, _) in HEADERS {
        let mut bytes = sample(family, Protocol::TCP).bytes();
        let field = if family == Family::V4 { IP_OFFSET + 2 } else { IP_OFFSET + 4 };
        bytes[field..field + 2].fill(0);
        assert!(reason(bytes.clone()).is_some(), "{family}");
        bytes.resize(IP_OFFSET + 70_000, 0);
        assert_eq!(reason(bytes), None, "{family}: segments merged by the device");
    }
}

#[test]
fn padding_of_the_link_is_no_part_of_the_packet() {
    for (family, headers) in HEADERS {
        for (protocol, least) in [(Protocol::UDP, 8), (Protocol::TCP, 20)] {
            let mut bytes = sample(family, protocol).bytes();
            let tell = |bytes: &mut Vec<u8>, inside: usize| match family {
                Family::V4 => bytes[IP_OFFSET + 3] = 20 + inside as u8,
                Family::V6 => bytes[IP_OFFSET + 5] = inside as u8,
            };
            bytes.resize(headers + 60, 0);
            tell(&mut bytes, least - 1);
            assert_eq!(reason(bytes.clone()), Some(Reason::Truncated), "{family}, {protocol}");
            tell(&mut bytes, least + 3);
            assert_eq!(reason(bytes.clone()), None, "{family}, {protocol}");
            // What its own header says is more than there is.
            match protocol {
                Protocol::TCP => bytes[headers + 12] = 6 << 4,
                Protocol(_) => bytes[headers + 5] = 12,
            }
            assert_eq!(reason(bytes), Some(Reason::Malformed), "{family}, {protocol}");
        }
    }
}

#[test]
fn a_first_fragment_may_end_before_its_datagram_does() {
    for (family, headers) in HEADERS {
        let part = Part { identification: 7, offset: 0, has_more: true };
        let first = Datagram { part: Some(part), ..sample(family, Protocol::UDP) };
        let header = if family == Family::V4 { headers } else { headers + 8 };
        assert_eq!(with_byte(&first, header + 4, 9), None, "{family}");
    }
}

#[test]
fn an_ipv6_packet_between_mapped_addresses_is_malformed() {
    let sample = sample(Family::V6, Protocol::UDP);
    for at in [IP_OFFSET + 8, IP_OFFSET + 24] {
        let mut bytes = sample.bytes();
        bytes[at..at + 12].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        assert_eq!(reason(bytes), Some(Reason::Malformed));
    }
}

#[test]
fn a_packet_that_goes_on_from_here_is_not_for_a_backend() {
    let sample = Datagram { extensions: vec![43], ..sample(Family::V6, Protocol::UDP) };
    assert_eq!(with_byte(&sample, IP_OFFSET + 40 + 3, 0), None);
    assert_eq!(with_byte(&sample, IP_OFFSET + 40 + 3, 1), Some(Reason::ExtensionHeaders));
}

#[test]
fn fragments_of_one_datagram_have_one_key_though_options_come_before_its_ports() {
    let part = |offset| Some(Part { identification: 7, offset, has_more: true });
    let first = Datagram { part: part(0), ..sample(Family::V6, Protocol::UDP) };
    let mut bytes = Datagram { payload: vec![0; 16], part: part(8), ..sample(Family::V6, Protocol::UDP) }.bytes();
    bytes[IP_OFFSET + 40] = 60;
    let later = parse(&MemoryPacket { bytes: bytes.clone() }).expect("it is sound");
    assert_eq!(later.fragment, Fragment::Later);
    assert_eq!(later.fragment_key(), parse(&first.packet()).expect("it is sound").fragment_key());
    bytes[IP_OFFSET + 40] = 58;
    assert_eq!(reason(bytes), Some(Reason::NotOurs), "of ICMPv6");
}

#[test]
fn a_tcp_header_shorter_than_its_least_is_malformed() {
    for (family, headers) in HEADERS {
        assert_eq!(with_byte(&sample(family, Protocol::TCP), headers + 12, 4 << 4), Some(Reason::Malformed));
    }
}

#[test]
fn a_udp_length_below_its_header_is_malformed() {
    for (family, headers) in HEADERS {
        let sample = sample(family, Protocol::UDP);
        assert_eq!(with_byte(&sample, headers + 5, 7), Some(Reason::Malformed));
        assert_eq!(with_byte(&sample, headers + 5, 8), None);
        assert_eq!(with_byte(&sample, headers + 5, 0), Some(Reason::Malformed));
    }
}

#[test]
fn fragments_are_told_apart() {
    for (family, _) in HEADERS {
        let fragment = |offset, has_more| {
            let part = Part { identification: 7, offset, has_more };
            let parsed = parse(&Datagram { part: Some(part), ..sample(family, Protocol::UDP) }.packet());
            parsed.expect("it is sound").fragment
        };
        assert!(fragment(0, true) == Fragment::First, "{family}");
        assert_eq!(fragment(0, false), Fragment::Whole, "{family}");
        for offset in (3..16).map(|bit| 1 << bit) {
            for has_more in [true, false] {
                assert!(fragment(offset, has_more) == Fragment::Later, "{family} at {offset}");
            }
        }
    }
}

#[test]
fn as_many_extension_headers_as_promised_are_stepped_over() {
    let of = |count| Datagram { extensions: vec![60; count], ..sample(Family::V6, Protocol::UDP) };
    let parsed = parse(&of(Extension::MAX).packet()).expect("six are followed");
    assert_eq!(parsed.transport_offset(), IP_OFFSET + 40 + 6 * 8);
    assert_eq!(reason(of(Extension::MAX + 1).bytes()), Some(Reason::ExtensionHeaders));
}
