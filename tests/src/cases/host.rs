//! Cases on the host: the data path's library with maps in memory.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use lb_common::{
    addr::Addr,
    backend::{Backend, BackendState},
    device::Abilities,
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

use super::{Handed, LAB, MTU, MUTE, Machine, Outcome, REPLY_LINK, STRANGE};

/// The data path in memory.
pub struct Host {
    maps: Maps,
}

impl Default for Host {
    fn default() -> Self {
        let mut maps = Maps::new(1024, 1024);
        let words = |mac: [u8; 6]| [0, 2, 4].map(|at| u16::from_ne_bytes([mac[at], mac[at + 1]]));
        let link = Link { destination: words(REPLY_LINK.0), source: words(REPLY_LINK.1) };
        let through = |ifindex| Route::Link { ifindex, link, mtu: MTU };
        maps.route = through(LAB);
        maps.routes_to_backends = [LAB, MUTE].map(|ifindex| (ifindex, through(ifindex))).into();
        maps.routes_to_backends.insert(STRANGE, Route::Resolve { ifindex: STRANGE });
        maps.abilities = [LAB, STRANGE].map(|ifindex| (ifindex, Abilities::SENDS)).into();
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
        let outcome = match result {
            Ok(Exit::Later(decided)) => Outcome::Later(if decided.is_told() { Handed::Told } else { Handed::Untold }),
            Ok(Exit::Stack) if at.is_early() => Outcome::Later(Handed::Untold),
            Ok(Exit::Stack) => Outcome::Passed(packet.bytes.clone()),
            Ok(Exit::Neighbour { .. } | Exit::Peer { .. }) if at.is_early() => {
                bail!("XDP can send nothing so: {result:?}")
            }
            Ok(Exit::Neighbour { .. } | Exit::Peer { .. } | Exit::Link { .. }) => {
                Outcome::Redirected(packet.bytes.clone())
            }
            Err(Reason::TooBig) if is_told(&mut packet, &kernel) => Outcome::Told(Reason::TooBig, packet.bytes.clone()),
            Err(reason) => Outcome::of(reason, at),
        };
        if let Outcome::Later(_) = outcome {
            ensure!(packet.bytes == bytes, "a packet that is left to traffic control was changed");
        }
        Ok(outcome)
    }
}

/// What the entry points of the BPF program do, its tail calls included.
fn process(packet: &mut MemoryPacket, kernel: &Cpu<'_>, at: Program) -> Result<Exit, Reason> {
    let parsed = parse(packet)?;
    if !at.is_early() {
        return work(packet, kernel, &parsed, at);
    }
    let mut early = EarlyPacket(packet.clone());
    let result = work(&mut early, kernel, &parsed, at);
    *packet = early.0;
    result
}

/// What the program for packets that do not fit does.
fn is_told(packet: &mut MemoryPacket, kernel: &Cpu<'_>) -> bool {
    parse(packet).is_ok_and(|parsed| too_big::answer(packet, kernel, &parsed).is_some())
}

fn work(packet: &mut impl Packet, kernel: &Cpu<'_>, parsed: &Parsed, at: Program) -> Result<Exit, Reason> {
    match at {
        Program::IngressClients | Program::XdpClients => balance(packet, kernel, parsed),
        Program::IngressBackends | Program::XdpBackends => pipeline::answer(packet, kernel, parsed, Hook::Ingress),
        Program::IngressBoth | Program::XdpBoth => match balance(packet, kernel, parsed) {
            Err(Reason::NotOurs) => pipeline::answer(packet, kernel, parsed, Hook::Ingress),
            result => result,
        },
        Program::EgressClients => pipeline::answer(packet, kernel, parsed, Hook::Egress),
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
