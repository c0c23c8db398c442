//! What the data path promises, compared after each packet with what it did.
//!
//! What is expected is found without the data path's own look-ups: by reading whole tables, which are small here.

use std::{collections::BTreeSet, vec::Vec};

use lb_common::{
    addr::Protocol,
    backend::{BackendId, BackendState, Endpoint, EndpointId, Way},
    flow::{Client, Entry, FlowState, Tick, Word},
    hash::reply_place,
    reason::{Action, Reason},
    reply::ReplyWord,
    service::{FrontendId, Index, ServiceId},
};

use super::{
    Place,
    layout::{Layout, octets},
    world::World,
};
use crate::{
    atomic::Shared,
    flow::state::opens_anew,
    kernel::{Kernel, Route},
    packet::{Link, Packet, Side},
    parse::{Fragment, Parsed, parse},
    pipeline::{self, Exit, Hook, Step},
    testing::{Cpu, DEVICE, EarlyPacket, MemoryPacket, TICKS_PER_SECOND, datagram::Datagram},
};

/// A way of the flow table.
#[derive(Clone, Copy, Debug)]
struct Flow {
    word: Word,
    entry: Entry,
}

impl Flow {
    fn is_in_use(&self) -> bool {
        self.word.state() != FlowState::Free
    }
}

/// In which direction a packet was last taken to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heading {
    Forward,
    Back(Hook),
}

/// A packet before and after.
struct Passage<'p> {
    place: Place,
    before: &'p [u8],
    after: &'p [u8],
    parsed: Parsed,
    flows: &'p [Flow],
}

/// What the entry points of the BPF program do at one hook, their tail calls included.
fn enter<P: Packet>(
    packet: &mut P,
    kernel: &Cpu<'_>,
    parsed: &Parsed,
    place: Place,
) -> (Heading, Result<Exit, Reason>) {
    let forward = |packet: &mut P| match pipeline::balance(packet, kernel, parsed)? {
        Step::Send(exit) => Ok(exit),
        Step::NewFlow => pipeline::begin_flow(packet, kernel, parsed),
        Step::Query => pipeline::query(packet, kernel, parsed),
    };
    let hook = match place {
        Place::Clients | Place::ClientsEarly => return (Heading::Forward, forward(packet)),
        Place::Both | Place::BothEarly => match forward(packet) {
            Err(Reason::NotOurs) => Hook::Ingress,
            result => return (Heading::Forward, result),
        },
        Place::Backends | Place::BackendsEarly => Hook::Ingress,
        Place::Egress => Hook::Egress,
    };
    (Heading::Back(hook), pipeline::answer(packet, kernel, parsed, hook))
}

impl World {
    /// Lets a packet come by, and returns why it was not balanced. `described` is what it was made of, if it was left so.
    pub(super) fn pass(&mut self, place: Place, bytes: &[u8], described: Option<&Datagram>) -> Option<Reason> {
        self.packets += 1;
        let flows = self.flows();
        let mut packet = MemoryPacket { bytes: bytes.to_vec() };
        let parsed = match parse(&packet) {
            Ok(parsed) => parsed,
            Err(reason) => {
                assert_eq!(packet.bytes, bytes, "{}: a packet that cannot be read was changed", self.told());
                return Some(reason);
            }
        };
        if let Some(datagram) = described {
            self.is_read_as_described(&parsed, datagram);
        }
        let expected = self.expected_frontend(&parsed, &flows);
        let (heading, result) = self.process(&mut packet, &parsed, place);
        let passage = Passage { place, before: bytes, after: &packet.bytes, parsed, flows: &flows };
        match (heading, result) {
            (Heading::Forward, Ok(exit)) => self.went_to_a_backend(&passage, exit),
            (Heading::Back(hook), Ok(exit)) => self.went_to_a_client(&passage, exit, hook, expected),
            (Heading::Forward, Err(reason)) => self.was_not_sent(&passage, reason),
            (Heading::Back(hook), Err(reason)) => self.was_not_sent_back(&passage, reason, hook, expected),
        }
        let client = match heading {
            Heading::Forward => client(&parsed, Side::Source),
            Heading::Back(_) => client(&parsed, Side::Destination),
        };
        self.tables_agree(client, &flows);
        self.counters_agree();
        result.err()
    }

    /// What the hooks at a place do, one after the other.
    fn process(&self, packet: &mut MemoryPacket, parsed: &Parsed, place: Place) -> (Heading, Result<Exit, Reason>) {
        let kernel = Cpu::new(&self.maps, self.packets);
        let (place, is_early) = place.split();
        if is_early {
            let mut early = EarlyPacket(packet.clone());
            let (heading, result) = enter(&mut early, &kernel, parsed, place);
            if let Ok(Exit::Link { .. }) = result {
                *packet = early.0;
                return (heading, result);
            }
            assert_eq!(early.0, *packet, "{}: XDP changed what it did not send, {result:?}", self.told());
            match result {
                Ok(Exit::Later(decided)) if decided.is_told() => {
                    return (heading, pipeline::carry_on(packet, &kernel, parsed, decided));
                }
                Err(reason) if reason.action() == Action::Drop => return (heading, Err(reason)),
                Ok(_) | Err(_) => {}
            }
        }
        enter(packet, &kernel, parsed, place)
    }

    fn is_read_as_described(&self, parsed: &Parsed, datagram: &Datagram) {
        let ((source, source_port), (destination, destination_port)) = (datagram.source, datagram.destination);
        let told = self.told();
        assert_eq!((parsed.source, parsed.destination), (source, destination), "{told}: addresses");
        assert_eq!((parsed.protocol, parsed.hop_limit), (datagram.protocol, datagram.hops), "{told}: protocol, hops");
        let fragment = match datagram.part {
            None => Fragment::Whole,
            Some(part) if part.offset == 0 => Fragment::First,
            Some(_) => Fragment::Later,
        };
        assert_eq!(parsed.fragment, fragment, "{told}: part of a datagram");
        if fragment != Fragment::Later {
            let ports = (parsed.source_port.number(), parsed.destination_port.number());
            assert_eq!(ports, (source_port, destination_port), "{told}: ports");
        }
    }

    /// A packet was sent to a backend: to one of the service's that may still have it, and to the one it had.
    fn went_to_a_backend(&mut self, passage: &Passage<'_>, exit: Exit) {
        let (parsed, told) = (&passage.parsed, self.told());
        let is_hop = self.way != Way::Stack;
        let (expected, link) = match self.way {
            Way::Stack => (Exit::Stack, None),
            Way::Neighbour { ifindex } => match self.maps.routes_to_backends.get(&ifindex) {
                Some(Route::Link { link, .. }) => (Exit::Link { ifindex }, Some(*link)),
                Some(Route::Resolve { .. } | Route::None) | None => (Exit::Neighbour { ifindex }, None),
            },
            Way::Peer { ifindex } => (Exit::Peer { ifindex }, None),
        };
        assert_eq!(exit, expected, "{told}: it left another way than its backend's");
        let to = self.is_rewritten(passage, Side::Destination, is_hop, link);
        self.sent[0] += 1;
        if parsed.fragment == Fragment::Later {
            let is_backend = self.maps.backends.values().any(|(record, _, _)| octets(&record.key.address) == to.0);
            assert!(is_backend, "{told}: a later fragment was sent to no backend");
            return;
        }
        let frontend = self.maps.frontends.get(&parsed.destination_key()).copied();
        let Some(frontend) = frontend else { panic!("{told}: a packet to no frontend was sent to a backend") };
        let found = self.maps.backends.iter().find(|(_, (record, _, _))| {
            record.service == frontend.service && (octets(&record.key.address), Some(record.key.port.0)) == to
        });
        let Some((backend, (record, _, _))) = found else { panic!("{told}: it was sent to no backend of its service") };
        let (backend, endpoint) = (*backend, record.endpoint);
        let client = client(parsed, Side::Source);
        match self.kept(parsed, passage.flows, frontend.frontend, frontend.service) {
            Some(kept) => assert_eq!(backend, kept, "{told}: a flow went to another backend"),
            None => assert_eq!(self.state(backend), BackendState::Use, "{told}: a backend that leaves was chosen"),
        }
        self.asked.insert((client, endpoint), frontend.frontend);
    }

    /// The backend that a packet to a frontend must go to, because its flow has one.
    fn kept(&self, parsed: &Parsed, flows: &[Flow], frontend: FrontendId, service: ServiceId) -> Option<BackendId> {
        if parsed.protocol == Protocol::UDP && self.is_per_packet(service) {
            return None;
        }
        let client = client(parsed, Side::Source);
        let is_its = |flow: &&Flow| (flow.entry.client, flow.entry.frontend) == (client, frontend);
        let flow = flows.iter().filter(|flow| flow.word.state().is_active()).find(is_its)?;
        let state = self.state(flow.entry.backend);
        let serves = match state {
            BackendState::Use | BackendState::Drain => true,
            BackendState::UdpGone => parsed.protocol == Protocol::TCP,
            BackendState::Dead => false,
        };
        (serves && !opens_anew(flow.word.state(), parsed.flags, state)).then_some(flow.entry.backend)
    }

    /// A packet was sent to no backend: it was not to be.
    fn was_not_sent(&mut self, passage: &Passage<'_>, reason: Reason) {
        let (parsed, told) = (&passage.parsed, self.told());
        assert_eq!(passage.before, passage.after, "{told}: a packet was changed that was not sent, {reason:?}");
        if parsed.fragment == Fragment::Later || !passage.before.starts_with(&DEVICE) {
            return;
        }
        let frontend = self.maps.frontends.get(&parsed.destination_key()).copied();
        let Some(frontend) = frontend else {
            assert_eq!(reason, Reason::NotOurs, "{told}: a packet to no frontend");
            return;
        };
        assert_ne!(reason, Reason::NotOurs, "{told}: a packet to a frontend");
        if reason == Reason::TooBig {
            // Of the other ways the routes say nothing here.
            assert!(self.way == Way::Stack && self.is_narrow(), "{told}: there was room for it");
        }
        if matches!(reason, Reason::HopLimit | Reason::TooBig) {
            self.ended.insert((client(parsed, Side::Source), frontend.frontend));
        } else if self.kept(parsed, passage.flows, frontend.frontend, frontend.service).is_some() {
            panic!("{told}: a packet of a flow was not sent, {reason:?}");
        }
    }

    /// Through which frontend an answer was asked for, by what the tables hold; `None` where by none, or where that
    /// cannot be said of this packet.
    fn expected_frontend(&self, parsed: &Parsed, flows: &[Flow]) -> Option<FrontendId> {
        if parsed.fragment == Fragment::Later {
            return None;
        }
        let endpoint = self.maps.endpoints.get(&parsed.source_key())?;
        let client = client(parsed, Side::Destination);
        let is_its = |flow: &&Flow| (flow.entry.client, flow.entry.endpoint) == (client, endpoint.id);
        if endpoint.flags & Endpoint::FLOWS != 0
            && let Some(flow) = flows.iter().filter(|flow| flow.is_in_use()).find(is_its)
        {
            return Some(flow.entry.frontend);
        }
        if endpoint.flags & Endpoint::REPLIES == 0 || parsed.protocol != Protocol::UDP {
            return None;
        }
        self.awaiting(client, endpoint.id).into_iter().next()
    }

    /// A packet was sent to a client: with the address of the frontend that it asked.
    fn went_to_a_client(&mut self, passage: &Passage<'_>, exit: Exit, hook: Hook, expected: Option<FrontendId>) {
        let (parsed, told) = (&passage.parsed, self.told());
        let is_later = parsed.fragment == Fragment::Later;
        assert!(is_later || expected.is_some(), "{told}: what no one asked for was sent to a client");
        if hook == Hook::Ingress && self.way == Way::Stack {
            assert_eq!(exit, Exit::Stack, "{told}: a reply did not take the way of its backend");
            assert_eq!(passage.before, passage.after, "{told}: a reply was changed before the stack had it");
            return;
        }
        let (expected_exit, link) = match (hook, self.maps.route) {
            (Hook::Egress, _) => (Exit::Stack, None),
            (Hook::Ingress, Route::Link { ifindex, link, .. }) => (Exit::Link { ifindex }, Some(link)),
            (Hook::Ingress, Route::Resolve { ifindex }) => (Exit::Neighbour { ifindex }, None),
            (Hook::Ingress, Route::None) => panic!("{told}: a reply was sent without a route"),
        };
        assert_eq!(exit, expected_exit, "{told}: a reply took another way than its route");
        let from = self.is_rewritten(passage, Side::Source, hook == Hook::Ingress, link);
        self.sent[1] += 1;
        let Some(expected) = expected else {
            let is_frontend = self.maps.frontend_infos.values().any(|info| octets(&info.key.address) == from.0);
            assert!(is_frontend, "{told}: a later fragment came from no frontend");
            return;
        };
        let key = &self.maps.frontend_infos[&expected].key;
        assert_eq!(from, (octets(&key.address), Some(key.port.0)), "{told}: a reply came from another frontend");
        let endpoint = self.maps.endpoints[&parsed.source_key()].id;
        let client = client(parsed, Side::Destination);
        if !self.ended.contains(&(client, expected)) {
            let asked = self.asked.get(&(client, endpoint));
            assert_eq!(asked, Some(&expected), "{told}: a reply came from a frontend that was not asked");
        }
    }

    /// An answer was sent to no client: it was not asked for, or cannot get there.
    fn was_not_sent_back(&self, passage: &Passage<'_>, reason: Reason, hook: Hook, expected: Option<FrontendId>) {
        let (parsed, told) = (&passage.parsed, self.told());
        assert_eq!(passage.before, passage.after, "{told}: a reply was changed that was not sent, {reason:?}");
        if parsed.fragment == Fragment::Later {
            return;
        }
        let is_routed = hook == Hook::Ingress && self.way != Way::Stack;
        let is_excused = match reason {
            Reason::NotOurs => expected.is_none(),
            Reason::HopLimit => is_routed && parsed.hop_limit <= 1,
            Reason::TooBig => is_routed && self.is_narrow(),
            Reason::NoRoute => is_routed && self.maps.route == Route::None,
            Reason::Truncated
            | Reason::Malformed
            | Reason::ExtensionHeaders
            | Reason::FragmentUnknown
            | Reason::NoFlow
            | Reason::SourceScope
            | Reason::NoRuleMatched
            | Reason::NoBackend
            | Reason::FlowTableFull
            | Reason::ReplyTableFull
            | Reason::Clash
            | Reason::Contention
            | Reason::Inconsistent
            | Reason::RewriteRefused => false,
        };
        assert!(is_excused, "{told}: a reply was not sent, {reason:?}, asked through {expected:?}");
    }

    /// Compares a packet that was sent with what it was before, and returns the new end of that side.
    fn is_rewritten(
        &self,
        passage: &Passage<'_>,
        side: Side,
        is_hop: bool,
        link: Option<Link>,
    ) -> (Vec<u8>, Option<u16>) {
        let (before, after, told) = (passage.before, passage.after, self.told());
        assert_eq!(before.len(), after.len(), "{told}: its length");
        let layout = Layout::of(before);
        assert_eq!(before[layout.hops] - u8::from(is_hop), after[layout.hops], "{told}: its hop limit");
        let mut rest = before.to_vec();
        rest[layout.hops] = after[layout.hops];
        let (address, port) = (layout.address(side), layout.port(side));
        let sums = [layout.ip_sum(), layout.transport_sum()];
        for changed in [Some(address.clone()), port.clone()].into_iter().chain(sums).flatten() {
            rest[changed.clone()].copy_from_slice(&after[changed]);
        }
        if let Some(link) = link {
            let words = link.destination.into_iter().chain(link.source);
            rest[..12].copy_from_slice(&words.flat_map(u16::to_ne_bytes).collect::<Vec<u8>>());
        }
        assert_eq!(rest, after, "{told}: more of it was changed than what is translated");
        // Right sums stay right and wrong ones wrong, by as much; a datagram without one is given none.
        assert_eq!(layout.ip_residue(before), layout.ip_residue(after), "{told}: the sum of its header");
        assert_eq!(
            layout.transport_residue(before),
            layout.transport_residue(after),
            "{told}: the sum of its transport header, {:?}",
            passage.place
        );
        let port = port.map(|at| u16::from_ne_bytes([after[at.start], after[at.start + 1]]));
        (after[address].to_vec(), port)
    }

    /// The flow table is consistent, and no room was made in it by ending a flow that may go on.
    fn tables_agree(&self, client: Client, before: &[Flow]) {
        let (flows, told) = (self.flows(), self.told());
        // A packet changes nothing of other clients but for evicting them, so these are looked at when they come by.
        let its: Vec<&Flow> = flows.iter().filter(|flow| flow.is_in_use() && flow.entry.client == client).collect();
        let active = its.iter().filter(|flow| flow.word.state().is_active());
        let frontends: BTreeSet<_> = active.clone().map(|flow| flow.entry.frontend).collect();
        assert_eq!(frontends.len(), active.count(), "{told}: a flow is in the table twice");
        let endpoints: BTreeSet<_> = its.iter().map(|flow| flow.entry.endpoint).collect();
        let pairs: BTreeSet<_> = its.iter().map(|flow| (flow.entry.endpoint, flow.entry.frontend)).collect();
        assert_eq!(endpoints.len(), pairs.len(), "{told}: an endpoint knows a client for two frontends");
        for (id, counted) in &self.maps.active {
            let is_its = |flow: &&Flow| flow.word.state().is_active() && flow.entry.backend == *id;
            let in_table = flows.iter().filter(is_its).count() as u64;
            assert_eq!(counted.load(), in_table, "{told}: active flows of backend {}", id.0);
        }
        for (Flow { word, entry }, after) in before.iter().zip(&flows) {
            assert_ne!(after.word.state(), FlowState::Busy, "{told}: an entry stayed busy");
            if stays(word.state()) && entry.client != client && !self.is_expired(*word) {
                let is_there = after.entry == *entry && after.word.state() == word.state();
                assert!(is_there, "{told}: a flow of another was evicted, {:?} of {entry:?}", word.state());
            }
        }
        for endpoint in self.maps.endpoints.values().filter(|endpoint| endpoint.flags & Endpoint::REPLIES != 0) {
            let awaiting = self.awaiting(client, endpoint.id);
            assert!(awaiting.len() <= 1, "{told}: an endpoint is asked by a client through {awaiting:?}");
        }
    }

    /// A choice is counted once, and so is a packet.
    fn counters_agree(&self) {
        let told = self.told();
        let mut sent = [0, 0];
        for service in self.maps.services.keys() {
            let backends = self.maps.backends.iter().filter(|(_, (record, _, _))| record.service == *service);
            let traffic: Vec<_> = backends.map(|(id, _)| self.maps.traffic(*id)).collect();
            for each in &traffic {
                sent = [sent[0] + each.packets_in, sent[1] + each.packets_out];
            }
            let stats = self.maps.stats(*service);
            let choices: u64 = traffic.iter().map(|each| each.choices).sum();
            let accounted = choices + stats.refused + stats.unmatched;
            assert_eq!(stats.tickets, accounted, "{told}: tickets of service {}, {stats:?}", service.0);
            let cursor = self.maps.cursors.get(service).map_or(0, Shared::load);
            match self.setup.index {
                Index::Random => assert_eq!(cursor, 0, "{told}: chance moved the cursor of service {}", service.0),
                Index::Cursor | Index::Chain => {
                    assert_eq!(cursor, stats.tickets, "{told}: the cursor of service {}", service.0);
                }
            }
        }
        assert_eq!(sent, self.sent, "{told}: packets counted in and out");
    }

    /// Every way of the flow table, in its order.
    fn flows(&self) -> Vec<Flow> {
        let ways = self.maps.flows.iter().flat_map(|bucket| bucket.words.iter().zip(&bucket.entries));
        ways.map(|(word, entry)| {
            let entry = Entry::from_words(std::array::from_fn(|i| entry[i].load()));
            Flow { word: Word(word.load()), entry }
        })
        .collect()
    }

    /// Through which frontends a client awaits answers of an endpoint of per-packet services.
    fn awaiting(&self, client: Client, endpoint: EndpointId) -> BTreeSet<FrontendId> {
        let kernel = Cpu::new(&self.maps, 1);
        let place = reply_place(kernel.secret(), kernel.reply_mask(), client, endpoint);
        let buckets = [place.first, place.second].map(|index| &self.maps.replies[index as usize]);
        let entries = buckets.into_iter().flat_map(|bucket| &bucket.entries);
        entries
            .map(|[guard, word]| (guard.load(), ReplyWord(word.load())))
            .filter(|(guard, word)| {
                word.is_live() && word.is_confirmed() && guard ^ word.frontend_bits() == place.check
            })
            .filter(|(_, word)| self.age(word.seen()) as u64 <= kernel.reply_ticks())
            .map(|(_, word)| word.frontend())
            .collect()
    }

    fn age(&self, seen: Tick) -> u32 {
        let now = self.maps.tick.load() as u32 & Tick::MASK;
        now.wrapping_sub(seen.0) & Tick::MASK
    }

    fn is_expired(&self, word: Word) -> bool {
        word.state().timeout_seconds().is_some_and(|seconds| self.age(word.seen()) > seconds * TICKS_PER_SECOND)
    }

    fn told(&self) -> Told {
        Told { packet: self.packets }
    }
}

/// Where a run was when a promise was broken.
#[derive(Clone, Copy)]
struct Told {
    packet: u64,
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "packet {} of the run", self.packet)
    }
}

/// Whether a flow in this state is never evicted to make room.
const fn stays(state: FlowState) -> bool {
    match state {
        FlowState::Established
        | FlowState::ClientClosed
        | FlowState::BackendClosed
        | FlowState::Udp
        | FlowState::UdpAnswered
        | FlowState::UdpAssured => true,
        FlowState::Free
        | FlowState::Busy
        | FlowState::HalfOpen
        | FlowState::Answered
        | FlowState::Closing
        | FlowState::Moved => false,
    }
}

fn client(parsed: &Parsed, side: Side) -> Client {
    let (address, port) = match side {
        Side::Source => (parsed.source, parsed.source_port),
        Side::Destination => (parsed.destination, parsed.destination_port),
    };
    Client { address, port, protocol: parsed.protocol }
}
