//! Packets through the whole story, in memory. The case table (testbed) says the same of the kernel.

use std::{net::IpAddr, vec, vec::Vec};

use lb_common::{
    addr::{Addr, Family, Port},
    backend::{Backend, EndpointId},
    selector::{NthRule, Slot},
    service::{FrontendInfo, Index, PolicyId, ServiceId, ServiceWord},
};

use super::*;
use crate::{
    atomic::Shared,
    kernel::Route,
    parse::parse,
    testing::{
        Cpu, EarlyPacket, Maps, MemoryPacket,
        datagram::{Datagram, Part, datagram},
    },
};

const SERVICE: ServiceId = ServiceId(1);
const FRONTEND: FrontendId = FrontendId(1);
const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// One service on port 53 with backends 1 and 2 on port 5353, in turn.
struct World {
    family: Family,
    protocol: Protocol,
    maps: Maps,
}

impl World {
    fn new(family: Family, protocol: Protocol) -> Self {
        let mut world = Self { family, protocol, maps: Maps::new(64, 64) };
        let key = world.key(world.frontend());
        let maps = &mut world.maps;
        maps.frontends.insert(key, Frontend { frontend: FRONTEND, service: SERVICE });
        maps.frontend_infos.insert(FRONTEND, FrontendInfo { key, service: SERVICE });
        maps.services.insert(SERVICE, Shared::new(ServiceWord { policy: PolicyId(1), change: 1 }.to_word()));
        maps.cursors.insert(SERVICE, Shared::new(0));
        let slots = [1, 2].map(|n| Slot { backend: BackendId(n), endpoint: EndpointId(n) }.to_word());
        maps.write_slots(0, &slots);
        world.policy(0);
        for n in [1, 2] {
            let key = world.key(world.backend(n as u8));
            let backend = Backend {
                way: Way::Neighbour { ifindex: 1 }.to_word(),
                state: BackendState::Use.to_word(),
                endpoint: EndpointId(n),
                key,
                service: SERVICE,
                zero: [0; 6],
            };
            world.maps.put_backend(BackendId(n), backend);
            let endpoint = Endpoint { id: EndpointId(n), flags: Endpoint::FLOWS, backend: BackendId(n), zero: 0 };
            world.maps.endpoints.insert(key, endpoint);
        }
        world
    }

    fn per_packet(family: Family) -> Self {
        let mut world = Self::new(family, Protocol::UDP);
        world.policy(Policy::PER_PACKET);
        world.maps.endpoints.values_mut().for_each(|endpoint| endpoint.flags = Endpoint::REPLIES);
        world
    }

    fn policy(&mut self, flags: u32) {
        let index = Index::Cursor.to_word();
        let (slots_chunk, slots_start, slots_count) = (0, 0, 2);
        let policy = Policy {
            index,
            flags,
            slots_chunk,
            slots_start,
            slots_count,
            service: SERVICE,
            others_count: 0,
            zero: [0; 9],
        };
        self.maps.policies.insert(PolicyId(1), policy);
    }

    fn address(&self, four: &str, six: &str) -> Addr {
        let text = match self.family {
            Family::V4 => four,
            Family::V6 => six,
        };
        text.parse::<IpAddr>().expect("a valid address").into()
    }

    fn client(&self) -> (Addr, u16) {
        (self.address("10.9.0.1", "fd00:9:1:2:3:4:5:6"), 4000)
    }

    fn frontend(&self) -> (Addr, u16) {
        (self.address("192.0.2.53", "2001:db8:a:b:c:d:e:53"), 53)
    }

    fn backend(&self, n: u8) -> (Addr, u16) {
        let mut address = self.address("10.100.13.0", "fd00:100:13:7:8:9:a:0");
        address.0[3] = address.0[3].wrapping_add(u32::from_ne_bytes([0, 0, 0, n]));
        (address, 5353)
    }

    fn key(&self, (address, port): (Addr, u16)) -> SocketKey {
        SocketKey::new(address, Port::new(port), self.protocol)
    }

    fn asks(&self) -> Datagram {
        Datagram { payload: b"query".to_vec(), ..datagram(self.protocol, self.client(), self.frontend()) }
    }

    fn opens(&self) -> Datagram {
        Datagram { flags: 0x02, ..self.asks() }
    }

    fn answers(&self, backend: u8) -> Datagram {
        Datagram { payload: b"answer".to_vec(), ..datagram(self.protocol, self.backend(backend), self.client()) }
    }

    /// At the hook where clients come in.
    fn forward(&self, datagram: &Datagram) -> Result<(Exit, Vec<u8>), Reason> {
        self.run(datagram, |packet, kernel, parsed| match balance(packet, kernel, parsed)? {
            Step::Send(exit) => Ok(exit),
            Step::NewFlow => begin_flow(packet, kernel, parsed),
            Step::Query => query(packet, kernel, parsed),
        })
    }

    /// At a hook where answers come by.
    fn back(&self, datagram: &Datagram, hook: Hook) -> Result<(Exit, Vec<u8>), Reason> {
        self.run(datagram, |packet, kernel, parsed| answer(packet, kernel, parsed, hook))
    }

    fn run(
        &self,
        datagram: &Datagram,
        stage: impl FnOnce(&mut MemoryPacket, &Cpu<'_>, &Parsed) -> Result<Exit, Reason>,
    ) -> Result<(Exit, Vec<u8>), Reason> {
        let mut packet = datagram.packet();
        let parsed = parse(&packet)?;
        let exit = stage(&mut packet, &Cpu::new(&self.maps, 1), &parsed)?;
        Ok((exit, packet.bytes))
    }

    fn is_sent_to(&self, asked: &Datagram, backend: u8) {
        let sent = Datagram { destination: self.backend(backend), hops: asked.hops - 1, ..asked.clone() };
        assert_eq!(self.forward(asked), Ok((NEIGHBOUR, sent.bytes())), "{:?} to {backend}", self.family);
    }

    fn is_sent_back(&self, answered: &Datagram) {
        let sent = Datagram { source: self.frontend(), hops: answered.hops - 1, ..answered.clone() };
        assert_eq!(self.back(answered, Hook::Ingress), Ok((NEIGHBOUR, sent.bytes())), "{:?}", self.family);
    }
}

const NEIGHBOUR: Exit = Exit::Neighbour { ifindex: 1 };

fn worlds(protocols: &[Protocol]) -> Vec<World> {
    let of = |family| protocols.iter().map(move |protocol| World::new(family, *protocol));
    Family::ALL.into_iter().flat_map(of).collect()
}

#[test]
fn all_sums_follow_a_translation_both_ways() {
    for world in worlds(&PROTOCOLS) {
        world.is_sent_to(&world.opens(), 1);
        world.is_sent_back(&Datagram { flags: 0x12, ..world.answers(1) });
        world.is_sent_to(&world.asks(), 1);
    }
}

#[test]
fn a_datagram_without_a_sum_is_given_none() {
    let world = World::new(Family::V4, Protocol::UDP);
    world.is_sent_to(&Datagram { is_summed: false, ..world.asks() }, 1);
    world.is_sent_back(&Datagram { is_summed: false, ..world.answers(1) });
}

#[test]
fn a_sum_that_comes_out_as_zero_is_sent_as_all_ones() {
    for world in worlds(&[Protocol::UDP]) {
        // As the backend gets it, the payload completes the sum.
        let blank = Datagram { payload: vec![0; 2], ..world.asks() };
        let sent = Datagram { destination: world.backend(1), hops: 63, ..blank.clone() }.bytes();
        let at = sent.len() - 4;
        let asked = Datagram { payload: sent[at..at + 2].to_vec(), ..blank };
        let (_, bytes) = world.forward(&asked).expect("it is sent");
        assert_eq!(bytes[at..at + 2], [0xff, 0xff]);
    }
}

#[test]
fn a_frontend_whose_element_was_recycled_is_not_ours() {
    for mut world in worlds(&PROTOCOLS) {
        // The look-up of one key came upon the value of another.
        let recycled = FrontendInfo { key: world.key(world.backend(9)), service: SERVICE };
        world.maps.frontend_infos.insert(FRONTEND, recycled);
        assert_eq!(world.forward(&world.opens()), Err(Reason::NotOurs));
        world.maps.frontend_infos.clear();
        assert_eq!(world.forward(&world.opens()), Err(Reason::NotOurs));
    }
}

#[test]
fn a_service_without_a_policy_has_no_backend() {
    for world in worlds(&PROTOCOLS) {
        world.maps.services[&SERVICE].store(0);
        assert_eq!(world.forward(&world.opens()), Err(Reason::NoBackend));
    }
}

#[test]
fn the_last_hop_is_not_passed_in_either_direction() {
    for world in worlds(&PROTOCOLS) {
        world.is_sent_to(&Datagram { hops: 2, ..world.opens() }, 1);
        assert_eq!(world.forward(&Datagram { hops: 1, ..world.asks() }), Err(Reason::HopLimit));
        world.is_sent_back(&Datagram { hops: 2, ..world.answers(1) });
        assert_eq!(world.back(&Datagram { hops: 1, ..world.answers(1) }, Hook::Ingress), Err(Reason::HopLimit));
    }
}

#[test]
fn a_segment_of_no_connection_opens_none() {
    for world in worlds(&[Protocol::TCP]) {
        assert_eq!(world.forward(&world.asks()), Err(Reason::NoFlow));
        assert_eq!(world.maps.cursors[&SERVICE].load(), 0);
    }
}

#[test]
fn a_connection_that_is_over_opens_anew_at_another_backend() {
    for world in worlds(&[Protocol::TCP]) {
        world.is_sent_to(&world.opens(), 1);
        world.is_sent_back(&Datagram { flags: 0x14, ..world.answers(1) });
        world.is_sent_to(&world.opens(), 2);
        assert_eq!(world.maps.active[&BackendId(1)].load(), 0);
    }
}

#[test]
fn a_removed_backend_loses_udp_and_keeps_tcp() {
    for world in worlds(&PROTOCOLS) {
        world.is_sent_to(&world.opens(), 1);
        world.maps.set_state(BackendId(1), BackendState::UdpGone);
        world.is_sent_to(&world.asks(), if world.protocol == Protocol::UDP { 2 } else { 1 });
        world.is_sent_back(&world.answers(1));
    }
}

#[test]
fn a_drained_backend_keeps_what_it_has_and_a_dead_one_nothing() {
    for world in worlds(&PROTOCOLS) {
        world.is_sent_to(&world.opens(), 1);
        world.maps.set_state(BackendId(1), BackendState::Drain);
        world.is_sent_to(&world.asks(), 1);
        world.maps.set_state(BackendId(1), BackendState::Dead);
        world.is_sent_to(&world.opens(), 2);
    }
}

#[test]
fn flows_go_on_when_their_service_has_nothing_left_to_choose() {
    for mut world in worlds(&PROTOCOLS) {
        world.is_sent_to(&world.opens(), 1);
        world.maps.set_state(BackendId(1), BackendState::Drain);
        for policy in world.maps.policies.values_mut() {
            policy.slots_count = 0;
        }
        world.is_sent_to(&world.asks(), 1);
        world.is_sent_back(&world.answers(1));
        let (address, port) = world.client();
        let other = Datagram { source: (address, port + 1), ..world.opens() };
        assert_eq!(world.forward(&other), Err(Reason::NoBackend));
    }
}

#[test]
fn each_query_of_a_per_packet_service_is_a_choice_of_its_own() {
    for world in Family::ALL.map(World::per_packet) {
        for backend in [1, 2, 1] {
            world.is_sent_to(&world.asks(), backend);
        }
        for backend in [2, 1, 1] {
            world.is_sent_back(&world.answers(backend));
        }
        assert!(world.maps.active.values().all(|active| active.load() == 0));
    }
}

#[test]
fn what_nobody_asked_for_is_not_ours() {
    for world in worlds(&PROTOCOLS).into_iter().chain(Family::ALL.map(World::per_packet)) {
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(world.back(&world.answers(1), hook), Err(Reason::NotOurs));
        }
    }
}

#[test]
fn through_the_stack_an_answer_is_rewritten_on_its_way_out_only() {
    for world in worlds(&PROTOCOLS) {
        world.maps.set_way(BackendId(1), Way::Stack);
        // The stack itself counts the hop.
        let sent = Datagram { destination: world.backend(1), ..world.opens() };
        assert_eq!(world.forward(&world.opens()), Ok((Exit::Stack, sent.bytes())));
        let answered = world.answers(1);
        assert_eq!(world.back(&answered, Hook::Ingress), Ok((Exit::Stack, answered.bytes())));
        let sent = Datagram { source: world.frontend(), ..answered.clone() };
        assert_eq!(world.back(&answered, Hook::Egress), Ok((Exit::Stack, sent.bytes())));
    }
}

#[test]
fn an_answer_that_cannot_leave_is_counted() {
    for mut world in worlds(&PROTOCOLS) {
        world.is_sent_to(&world.opens(), 1);
        let answer = world.answers(1);
        let size = answer.bytes().len() as u32 - 14;
        let narrow = |mtu| Route::Link { ifindex: 1, link: Link::default(), mtu };
        for (route, expected) in
            [(narrow(size - 1), Some(Reason::TooBig)), (narrow(size), None), (Route::None, Some(Reason::NoRoute))]
        {
            world.maps.route = route;
            assert_eq!(world.back(&answer, Hook::Ingress).err(), expected, "{route:?}");
        }
    }
}

fn part(offset: u16, has_more: bool) -> Option<Part> {
    Some(Part { identification: 99, offset, has_more })
}

#[test]
fn later_fragments_follow_their_first_in_its_direction_only() {
    for world in worlds(&[Protocol::UDP]).into_iter().chain(Family::ALL.map(World::per_packet)) {
        let later = Datagram { part: part(16, false), ..world.asks() };
        assert_eq!(world.forward(&later), Err(Reason::FragmentUnknown));
        world.is_sent_to(&Datagram { part: part(0, true), ..world.asks() }, 1);
        world.is_sent_to(&later, 1);
        assert_eq!(world.back(&later, Hook::Ingress), Err(Reason::NotOurs));

        let later = Datagram { part: part(16, false), ..world.answers(1) };
        assert_eq!(world.back(&later, Hook::Ingress), Err(Reason::FragmentUnknown));
        world.is_sent_back(&Datagram { part: part(0, true), ..world.answers(1) });
        world.is_sent_back(&later);
        assert_eq!(world.forward(&later), Err(Reason::NotOurs));
    }
}

#[test]
fn a_fragment_long_after_its_first_is_not_sent() {
    for world in worlds(&[Protocol::UDP]) {
        world.is_sent_to(&Datagram { part: part(0, true), ..world.asks() }, 1);
        world.maps.wait_seconds(lb_common::fragment::FRAGMENT_TIMEOUT_SECONDS + 3);
        assert_eq!(world.forward(&Datagram { part: part(16, false), ..world.asks() }), Err(Reason::FragmentUnknown));
    }
}

#[test]
fn a_fragment_to_a_removed_backend_is_not_sent() {
    for world in worlds(&[Protocol::UDP]) {
        world.is_sent_to(&Datagram { part: part(0, true), ..world.asks() }, 1);
        world.maps.set_state(BackendId(1), BackendState::UdpGone);
        assert_eq!(world.forward(&Datagram { part: part(16, false), ..world.asks() }), Err(Reason::FragmentUnknown));
    }
}

const LINK: Link = Link { destination: [1, 2, 3], source: [4, 5, 6] };
const EXIT: u32 = 7;
const TOLD: Decided = Decided(1);

impl World {
    /// With backends and clients behind a device that takes packets from XDP and sends packets of this size.
    fn behind_link(mut self, mtu: u32) -> Self {
        self.maps.route = Route::Link { ifindex: EXIT, link: LINK, mtu };
        self.maps.routes_to_backends.insert(EXIT, self.maps.route);
        self.maps.abilities.insert(EXIT, Abilities::SENDS);
        for backend in [1, 2] {
            self.maps.set_way(BackendId(backend), Way::Neighbour { ifindex: EXIT });
        }
        self
    }

    /// At XDP where clients come in.
    fn forward_early(&self, bytes: Vec<u8>) -> Result<(Exit, Vec<u8>), Reason> {
        self.run_early(bytes, |packet, kernel, parsed| match balance(packet, kernel, parsed)? {
            Step::Send(exit) => Ok(exit),
            Step::NewFlow => begin_flow(packet, kernel, parsed),
            Step::Query => query(packet, kernel, parsed),
        })
    }

    /// At XDP where answers come in.
    fn back_early(&self, bytes: Vec<u8>) -> Result<(Exit, Vec<u8>), Reason> {
        self.run_early(bytes, |packet, kernel, parsed| answer(packet, kernel, parsed, Hook::Ingress))
    }

    fn run_early(
        &self,
        bytes: Vec<u8>,
        stage: impl FnOnce(&mut EarlyPacket, &Cpu<'_>, &Parsed) -> Result<Exit, Reason>,
    ) -> Result<(Exit, Vec<u8>), Reason> {
        let mut packet = EarlyPacket(MemoryPacket { bytes });
        let parsed = parse(&packet)?;
        let exit = stage(&mut packet, &Cpu::new(&self.maps, 1), &parsed)?;
        Ok((exit, packet.0.bytes))
    }

    /// At traffic control behind an XDP program that has decided.
    fn carried_on(&self, datagram: &Datagram, decided: Decided) -> Result<(Exit, Vec<u8>), Reason> {
        self.run(datagram, |packet, kernel, parsed| carry_on(packet, kernel, parsed, decided))
    }

    fn is_left(&self, asked: &Datagram, decided: Decided) {
        let bytes = asked.bytes();
        assert_eq!(self.forward_early(bytes.clone()), Ok((Exit::Later(decided), bytes)), "{:?}", self.family);
    }

    fn choices(&self) -> u64 {
        [1, 2].map(|backend| self.maps.traffic(BackendId(backend)).choices).iter().sum()
    }
}

fn with_link(sent: &Datagram) -> Vec<u8> {
    let mut bytes = sent.bytes();
    bytes[..12].copy_from_slice(zerocopy::IntoBytes::as_bytes(&LINK));
    bytes
}

#[test]
fn an_early_hook_sends_with_link_addresses_both_ways() {
    for world in worlds(&PROTOCOLS) {
        let world = world.behind_link(1500);
        let asked = world.opens();
        let sent = Datagram { destination: world.backend(1), hops: 63, ..asked.clone() };
        assert_eq!(world.forward_early(asked.bytes()), Ok((Exit::Link { ifindex: EXIT }, with_link(&sent))));
        let answered = Datagram { flags: 0x12, ..world.answers(1) };
        let sent = Datagram { source: world.frontend(), hops: 63, ..answered.clone() };
        assert_eq!(world.back_early(answered.bytes()), Ok((Exit::Link { ifindex: EXIT }, with_link(&sent))));
        let traffic = world.maps.traffic(BackendId(1));
        assert_eq!((traffic.choices, traffic.packets_in, traffic.packets_out), (1, 1, 1));
    }
}

#[test]
fn what_an_early_hook_cannot_send_is_left_as_it_is_with_what_was_decided() {
    let ways = |world: &mut World, at: usize| match at {
        0 => world.maps.set_way(BackendId(1), Way::Stack),
        1 => world.maps.set_way(BackendId(1), Way::Peer { ifindex: EXIT }),
        2 => drop(world.maps.routes_to_backends.insert(EXIT, Route::Resolve { ifindex: EXIT })),
        3 => drop(world.maps.routes_to_backends.remove(&EXIT)),
        _ => drop(world.maps.abilities.remove(&EXIT)),
    };
    for at in 0..5 {
        for world in worlds(&PROTOCOLS) {
            let mut world = world.behind_link(1500);
            ways(&mut world, at);
            world.is_left(&world.opens(), TOLD);
        }
    }
}

#[test]
fn an_answer_that_an_early_hook_cannot_send_is_left_as_it_is() {
    for world in worlds(&PROTOCOLS) {
        let mut world = world.behind_link(1500);
        world.forward_early(world.opens().bytes()).expect("it is sent");
        let bytes = world.answers(1).bytes();
        let left = |world: &World| {
            assert_eq!(world.back_early(bytes.clone()), Ok((Exit::Later(Decided::NOTHING), bytes.clone())));
        };
        world.maps.abilities.clear();
        left(&world);
        world.maps.abilities.insert(EXIT, Abilities::SENDS);
        for route in [
            Route::Resolve { ifindex: EXIT },
            Route::None,
            Route::Link { ifindex: EXIT, link: LINK, mtu: bytes.len() as u32 - 15 },
        ] {
            world.maps.route = route;
            left(&world);
        }
        world.maps.set_way(BackendId(1), Way::Stack);
        assert_eq!(world.back_early(bytes.clone()), Ok((Exit::Stack, bytes.clone())), "its egress hook rewrites it");
        assert_eq!(world.maps.traffic(BackendId(1)).packets_out, 0, "counted where it is sent");
    }
}

#[test]
fn a_choice_is_counted_once_though_two_hooks_see_the_packet() {
    let mixed = worlds(&PROTOCOLS).into_iter().chain(Family::ALL.map(World::per_packet));
    for world in mixed {
        let mut world = world.behind_link(1500);
        world.maps.abilities.clear();
        let asked = world.opens();
        world.is_left(&asked, TOLD);
        let before = world.maps.traffic(BackendId(1));
        assert_eq!((before.choices, before.packets_in, before.bytes_in), (1, 0, 0));
        let sent = Datagram { destination: world.backend(1), hops: 63, ..asked.clone() };
        assert_eq!(world.carried_on(&asked, TOLD), Ok((Exit::Link { ifindex: EXIT }, with_link(&sent))));
        let after = world.maps.traffic(BackendId(1));
        assert_eq!((after.choices, after.packets_in), (1, 1));
        assert_eq!(world.maps.stats(SERVICE).tickets, 1);
        assert_eq!(world.choices(), 1);
    }
}

#[test]
fn what_no_rule_takes_at_an_early_hook_draws_one_ticket() {
    let per_packet = Family::ALL.map(World::per_packet).into_iter();
    for mut world in worlds(&PROTOCOLS).into_iter().chain(per_packet) {
        let policy = world.maps.policies.get_mut(&PolicyId(1)).expect("the world has one");
        (policy.index, policy.slots_count) = (Index::Chain.to_word(), 1);
        let slot = Slot { backend: BackendId(1), endpoint: EndpointId(1) };
        world.maps.write_slots(0, &NthRule { every: 2, packet: 1, slot }.to_words());
        let world = world.behind_link(1500);
        let unmatched = Decided::UNMATCHED;
        assert!(unmatched.is_told());
        world.is_left(&world.opens(), unmatched);
        assert_eq!(world.carried_on(&world.opens(), unmatched), Err(Reason::NoRuleMatched));
        let stats = world.maps.stats(SERVICE);
        assert_eq!((stats.tickets, stats.unmatched, stats.refused), (1, 1, 0));
        assert_eq!(world.maps.cursors[&SERVICE].load(), 1);
    }
}

#[test]
fn an_early_hook_drops_the_last_hop_only_where_it_would_send() {
    for world in worlds(&PROTOCOLS) {
        let mut world = world.behind_link(1500);
        let last = Datagram { hops: 1, ..world.opens() };
        assert_eq!(world.forward_early(last.bytes()), Err(Reason::HopLimit));
        world.maps.abilities.clear();
        world.is_left(&last, TOLD);
        assert_eq!(world.carried_on(&last, TOLD), Err(Reason::HopLimit));
    }
}

#[test]
fn an_unfinished_checksum_is_left_to_who_can_have_it_finished() {
    for world in worlds(&PROTOCOLS) {
        let world = world.behind_link(1500);
        let bytes = unfinished(&world.opens());
        assert_eq!(world.forward_early(bytes.clone()), Ok((Exit::Later(TOLD), bytes)));
        let bytes = unfinished(&world.answers(1));
        assert_eq!(world.back_early(bytes.clone()), Ok((Exit::Later(Decided::NOTHING), bytes)));
    }
}

/// The packet as a local sender makes it, whose device shall finish the checksum: it holds the pseudo header's sum.
fn unfinished(datagram: &Datagram) -> Vec<u8> {
    let mut bytes = datagram.bytes();
    let parsed = parse(&datagram.packet()).expect("it is sound");
    let length = bytes.len() - parsed.transport_offset();
    let ends = [parsed.source, parsed.destination];
    let pseudo = ends.iter().flat_map(|address| address.0).flat_map(u32::to_ne_bytes);
    let rest = [0, parsed.protocol.0].into_iter().chain((length as u16).to_be_bytes());
    let at = parsed.transport_offset() + crate::wire::checksum_offset(parsed.protocol);
    let sum = !crate::wire::checksum::checksum(pseudo.chain(rest));
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn what_does_not_fit_is_left_by_an_early_hook_and_refused_by_a_later_one() {
    for world in worlds(&PROTOCOLS) {
        let asked = world.opens();
        let size = asked.bytes().len() as u32 - 14;
        let narrow = world.behind_link(size - 1);
        narrow.is_left(&asked, TOLD);
        let mut packet = asked.packet();
        let parsed = parse(&packet).expect("it is sound");
        let cpu = Cpu::new(&narrow.maps, 1);
        assert_eq!(carry_on(&mut packet, &cpu, &parsed, TOLD), Err(Reason::TooBig));
        assert_eq!((cpu.noted_mtu(), packet.bytes), (size - 1, asked.bytes()), "its sender is told of what it sent");

        let wide = World::new(narrow.family, narrow.protocol).behind_link(size);
        let (exit, _) = wide.forward_early(asked.bytes()).expect("it fits exactly");
        assert_eq!(exit, Exit::Link { ifindex: EXIT });
    }
}

/// A packet that stands for several on the wire.
struct Merged {
    packet: MemoryPacket,
    segment: usize,
}

impl Packet for Merged {
    const IS_EARLY: bool = false;

    fn length(&self) -> usize {
        self.packet.length()
    }

    fn segments(&self) -> u64 {
        3
    }

    fn largest(&self, parsed: &Parsed) -> usize {
        parsed.headers() + self.segment
    }

    fn can_be_handed(&self, parsed: &Parsed, device: Abilities) -> bool {
        self.packet.can_be_handed(parsed, device)
    }

    fn is_to_device(&self) -> bool {
        self.packet.is_to_device()
    }

    fn read<T: zerocopy::FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        self.packet.read(offset)
    }

    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        self.packet.rewrite(edit)
    }

    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        self.packet.set_link(link)
    }
}

#[test]
fn merged_segments_fit_where_each_of_them_does() {
    for world in worlds(&PROTOCOLS) {
        let asked = Datagram { payload: vec![1; 3000], ..world.opens() };
        let headers = parse(&asked.packet()).expect("it is sound").headers();
        for (segment, expected) in
            [(1500 - headers, Ok(Exit::Link { ifindex: EXIT })), (1501 - headers, Err(Reason::TooBig))]
        {
            let world = World::new(world.family, world.protocol).behind_link(1500);
            let mut packet = Merged { packet: asked.packet(), segment };
            let parsed = parse(&packet).expect("it is sound");
            let kernel = Cpu::new(&world.maps, 1);
            assert_eq!(balance(&mut packet, &kernel, &parsed), Ok(Step::NewFlow));
            let sent = begin_flow(&mut packet, &kernel, &parsed);
            assert_eq!(sent, expected, "{:?} {:?}", world.family, world.protocol);
            assert_eq!(world.maps.traffic(BackendId(1)).packets_in, if sent.is_ok() { 3 } else { 0 });
        }
    }
}

#[test]
fn an_early_hook_follows_fragments_that_a_later_one_began() {
    for world in worlds(&[Protocol::UDP]) {
        let mut world = world.behind_link(1500);
        world.maps.abilities.clear();
        let (first, later) =
            (Datagram { part: part(0, true), ..world.asks() }, Datagram { part: part(16, false), ..world.asks() });
        world.is_left(&first, TOLD);
        assert_eq!(world.forward_early(later.bytes()), Err(Reason::FragmentUnknown));
        world.carried_on(&first, TOLD).expect("it is sent");
        world.is_left(&later, Decided::NOTHING);
        world.maps.abilities.insert(EXIT, Abilities::SENDS);
        let sent = Datagram { destination: world.backend(1), hops: 63, ..later.clone() };
        assert_eq!(world.forward_early(later.bytes()), Ok((Exit::Link { ifindex: EXIT }, with_link(&sent))));
    }
}
