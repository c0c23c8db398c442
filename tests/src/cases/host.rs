//! Cases on the host: the data path's library with maps in memory.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result};
use lb_common::{
    addr::Addr,
    backend::{Backend, BackendState},
    flow::{FlowState, Word},
    reason::Reason,
};
use lb_ebpf::{
    atomic::Shared,
    kernel::Route,
    packet::{Link, Packet},
    parse::{Parsed, parse},
    pipeline::{self, Exit, Hook, Step},
    testing::{Cpu, EarlyPacket, Maps, MemoryPacket},
    too_big,
};
use lb_userspace::{
    dataplane::bpf::Program,
    plan::{Plan, tables::BackendRecord},
};

use super::{Machine, Outcome, REPLY_LINK, REPLY_MTU};

/// The data path in memory.
pub struct Host {
    maps: Maps,
}

impl Default for Host {
    fn default() -> Self {
        let mut maps = Maps::new(1024, 1024);
        let words = |mac: [u8; 6]| [0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]]));
        let link = Link { destination: words(REPLY_LINK.0), source: words(REPLY_LINK.1) };
        maps.route = Route::Link { ifindex: 1, link, mtu: REPLY_MTU.into() };
        Self { maps }
    }
}

impl Host {
    /// How many ways of the flow table the busiest client's port has in use, of the 16 it can have. Who is evicted when
    /// there are no more hangs on the clock and on the secret, which every machine has of its own.
    pub fn most_flows(&self) -> usize {
        let mut flows: BTreeMap<[u64; 3], usize> = BTreeMap::new();
        let ways = self.maps.flows.iter().flat_map(|bucket| bucket.words.iter().zip(&bucket.entries));
        for (_, entry) in ways.filter(|(word, _)| Word(word.load()).state() != FlowState::Free) {
            *flows.entry([entry[0].load(), entry[1].load(), entry[2].load() << 32]).or_default() += 1;
        }
        flows.into_values().max().unwrap_or(0)
    }
}

impl Machine for Host {
    fn program(&mut self, plan: &Plan) -> Result<()> {
        let (maps, tables) = (&mut self.maps, &plan.tables);
        maps.frontends = tables.frontends.clone();
        maps.frontend_infos = tables.frontend_infos.clone();
        maps.services = tables.services.iter().map(|(id, word)| (*id, Shared::new(word.to_word()))).collect();
        maps.policies = tables.policies.clone();
        maps.endpoints = tables.endpoints.clone();
        maps.cursors.extend(plan.cursors.iter().map(|(id, cursor)| (*id, Shared::new(*cursor))));
        for (run, words) in &tables.runs {
            maps.write_slots(run.start, words);
        }
        for (id, record) in &tables.backends {
            if maps.backends.contains_key(id) {
                maps.set_state(*id, record.state);
            } else {
                maps.put_backend(*id, written(record));
            }
        }
        Ok(())
    }

    fn set_state(&mut self, backend: IpAddr, state: BackendState) -> Result<()> {
        let address = Addr::from(backend);
        let known = self.maps.backends.iter().filter(|(_, (record, _, _))| record.key.address == address);
        let ids: Vec<_> = known.map(|(id, _)| *id).collect();
        ids.first().with_context(|| format!("no backend {backend}"))?;
        ids.into_iter().for_each(|id| self.maps.set_state(id, state));
        Ok(())
    }

    fn run(&mut self, at: Program, bytes: &[u8]) -> Result<Outcome> {
        let mut packet = MemoryPacket { bytes: bytes.to_vec() };
        let kernel = Cpu::new(&self.maps, 1);
        let result = process(&mut packet, &kernel, at);
        Ok(match result {
            Err(Reason::TooBig) if is_told(&mut packet, &kernel) => Outcome::Told(Reason::TooBig, packet.bytes),
            Ok(Exit::Stack | Exit::Later(_)) => Outcome::Passed(packet.bytes),
            Ok(Exit::Neighbour { .. } | Exit::Peer { .. } | Exit::Link { .. }) => Outcome::Redirected(packet.bytes),
            Err(reason) => Outcome::of(reason),
        })
    }
}

/// What the entry points of the BPF program do, its tail calls included.
fn process(packet: &mut MemoryPacket, kernel: &Cpu<'_>, at: Program) -> Result<Exit, Reason> {
    let parsed = parse(packet)?;
    match at {
        Program::XdpClients | Program::XdpBackends | Program::XdpBoth => {
            let mut early = EarlyPacket(packet.clone());
            let result = process_early(&mut early, kernel, &parsed, at);
            *packet = early.0;
            result
        }
        Program::IngressClients => balance(packet, kernel, &parsed),
        Program::IngressBackends => pipeline::answer(packet, kernel, &parsed, Hook::Ingress),
        Program::IngressBoth => match balance(packet, kernel, &parsed) {
            Err(Reason::NotOurs) => pipeline::answer(packet, kernel, &parsed, Hook::Ingress),
            result => result,
        },
        Program::EgressClients => pipeline::answer(packet, kernel, &parsed, Hook::Egress),
    }
}

/// What the program for packets that do not fit does.
fn is_told(packet: &mut MemoryPacket, kernel: &Cpu<'_>) -> bool {
    parse(packet).is_ok_and(|parsed| too_big::answer(packet, kernel, &parsed).is_some())
}

fn process_early(packet: &mut EarlyPacket, kernel: &Cpu<'_>, parsed: &Parsed, at: Program) -> Result<Exit, Reason> {
    match at {
        Program::XdpClients => balance(packet, kernel, parsed),
        Program::XdpBackends => pipeline::answer(packet, kernel, parsed, Hook::Ingress),
        Program::XdpBoth
        | Program::IngressClients
        | Program::IngressBackends
        | Program::IngressBoth
        | Program::EgressClients => match balance(packet, kernel, parsed) {
            Err(Reason::NotOurs) => pipeline::answer(packet, kernel, parsed, Hook::Ingress),
            result => result,
        },
    }
}

fn balance(packet: &mut impl Packet, kernel: &Cpu<'_>, parsed: &Parsed) -> Result<Exit, Reason> {
    match pipeline::balance(packet, kernel, parsed)? {
        Step::Send(exit) => Ok(exit),
        Step::NewFlow => pipeline::begin_flow(packet, kernel, parsed),
        Step::Query => pipeline::query(packet, kernel, parsed),
    }
}

fn written(record: &BackendRecord) -> Backend {
    Backend {
        way: record.way.to_word(),
        state: record.state.to_word(),
        endpoint: record.endpoint,
        key: record.key,
        service: record.service,
        zero: [0; 6],
    }
}
