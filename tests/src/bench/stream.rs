//! Packets of a stream: the first one, and how a front makes the next of each.

use zerocopy::IntoBytes as _;

use crate::packet::Packet;

// Shared with the programs: the layout of their map.
#[path = "../../../lb-ebpf/bench/recipe.rs"]
pub mod recipe;

use recipe::{Layout, REACH, Recipe};

/// A packet, and the recipe for those that follow.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What the run begins with; its headers are written over before any program sees it.
    pub packet: Vec<u8>,
    /// What is written.
    pub recipe: Recipe,
}

/// From whom the packets of a stream come, or to whom they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Always the same one.
    One,
    /// One of so many, in no order; a power of two.
    AnyOf(u32),
    /// Each of those once, from this one on, then the next.
    EachFrom(u32),
}

/// Which end of the packets the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

/// The first port of clients.
const FIRST_PORT: u32 = 1024;

impl Stream {
    /// Packets like this one, the client at this end of them. Of its address the last 24 bits have to be zero, and its
    /// port.
    ///
    /// # Panics
    /// When the packet is too short for a front: a mistake in the bench.
    pub fn of(packet: &Packet, client: End, clients: Clients) -> Self {
        let bytes = packet.bytes();
        assert!(bytes.len() >= REACH, "a front writes {REACH} bytes");
        let is_v4 = bytes[12..14] == [0x08, 0x00];
        let layout = match (is_v4, client) {
            (true, End::Source) => Layout::FromClient4,
            (true, End::Destination) => Layout::ToClient4,
            (false, End::Source) => Layout::FromClient6,
            (false, End::Destination) => Layout::ToClient6,
        };
        let mut recipe = Recipe { layout: layout as u32, first_port: FIRST_PORT, ..Recipe::default() };
        recipe.link.as_mut_bytes()[..14].copy_from_slice(&bytes[..14]);
        recipe.headers.as_mut_bytes().copy_from_slice(&bytes[14..REACH]);
        // All 32 bits of a scattered number are in the address or the port, so no two clients are the same.
        (recipe.is_scattered, recipe.address_mask) = (1, 0x00ff_ffff);
        (recipe.port_shift, recipe.port_mask) = (24, 0xff);
        match clients {
            Clients::One => {}
            Clients::AnyOf(count) => {
                assert!(count.is_power_of_two(), "{count} is no power of two");
                // Knuth's MMIX; its high bits are good.
                (recipe.multiplier, recipe.increment) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
                (recipe.shift, recipe.mask) = (33, count - 1);
            }
            Clients::EachFrom(first) => {
                (recipe.multiplier, recipe.increment) = (1, 1);
                (recipe.state, recipe.mask) = (u64::from(first).wrapping_sub(1), u32::MAX);
            }
        }
        Self { packet: bytes, recipe }
    }

    /// Packets like this one in so many flows, a power of two, that differ in the source port alone, so that the
    /// checksum of the IP header stays right.
    pub fn by_port(packet: &Packet, flows: u32) -> Self {
        let mut stream = Self::of(packet, End::Source, Clients::AnyOf(flows));
        let recipe = &mut stream.recipe;
        (recipe.is_scattered, recipe.address_mask) = (0, 0);
        (recipe.port_shift, recipe.port_mask) = (0, flows - 1);
        stream
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::packet::eth;

    fn query() -> Packet {
        eth().ipv4("11.0.0.0", "10.9.0.2").udp(0, 53).payload(&[0; 22])
    }

    fn clients(mut recipe: Recipe, count: u32) -> Vec<(u32, u16)> {
        (0..count)
            .map(|_| {
                let number = recipe.next(0xdead_beef);
                recipe.client(number)
            })
            .collect()
    }

    #[test]
    fn each_client_is_another_one() {
        let stream = Stream::of(&query(), End::Source, Clients::EachFrom(0));
        let clients = clients(stream.recipe, 200_000);
        assert_eq!(clients.iter().collect::<BTreeSet<_>>().len(), 200_000);
        assert!(clients.iter().all(|(address, port)| *address <= 0x00ff_ffff && (1024..1280).contains(port)));
    }

    #[test]
    fn any_of_some_are_those_that_were_each_one() {
        let each = Stream::of(&query(), End::Source, Clients::EachFrom(0));
        let any = Stream::of(&query(), End::Source, Clients::AnyOf(1024));
        let known: BTreeSet<_> = clients(each.recipe, 1024).into_iter().collect();
        let met: BTreeSet<_> = clients(any.recipe, 20_000).into_iter().collect();
        assert_eq!(met, known);
        assert_eq!(clients(Stream::of(&query(), End::Source, Clients::One).recipe, 3), [(0, 1024); 3]);
    }

    #[test]
    fn streams_by_port_change_nothing_else() {
        let met: BTreeSet<_> = clients(Stream::by_port(&query(), 4096).recipe, 100_000).into_iter().collect();
        let expected: BTreeSet<_> = (1024..1024 + 4096).map(|port| (0, port)).collect();
        assert_eq!(met, expected);
    }

    #[test]
    fn the_headers_are_those_of_the_packet() {
        let stream = Stream::of(&query(), End::Source, Clients::One);
        assert_eq!(stream.recipe.headers.as_bytes(), &stream.packet[14..REACH]);
        assert_eq!(&stream.recipe.link.as_bytes()[..14], &stream.packet[..14]);
        assert_eq!(Layout::from_word(stream.recipe.layout), Some(Layout::FromClient4));
        let answer = eth().ipv6("fd00:100:13::2", "fd00:9:1::").udp(53, 0).payload(&[0; 22]);
        let stream = Stream::of(&answer, End::Destination, Clients::One);
        assert_eq!(Layout::from_word(stream.recipe.layout), Some(Layout::ToClient6));
    }
}
