//! The packet and the kernel in memory: the data path on the host, with as many CPUs as a test has threads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    vec::Vec,
};

use lb_common::{
    addr::{Family, Protocol},
    backend::{Backend, BackendId, BackendState, Endpoint, Way},
    flow::{FlowState, LOCKS, Tick},
    fragment::{FRAGMENT_TIMEOUT_SECONDS, FragmentKey, FragmentRecord},
    hash::Secret,
    limits::SLOTS_PER_CHUNK,
    reason::Reason,
    reply::{REPLY_SETTLED_SECONDS, REPLY_TIMEOUT_SECONDS},
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
    stats::{ServiceStats, Traffic},
};
use zerocopy::FromBytes;

use crate::{
    atomic::Shared,
    kernel::{FlowBucket, Kernel, ReplyBucket, Route, RouteQuery, SlotChunk},
    packet::{Edit, Link, Packet, Side, TransportEdit},
    parse::IP_OFFSET,
    wire::{DESTINATION_PORT_OFFSET, IpHeader, Ipv4, Ipv6, SOURCE_PORT_OFFSET, checksum::Sum, checksum_offset},
};

pub(crate) mod datagram;
pub mod fuzz;

/// Ticks in a second at 250 Hz, rounded to whole ones.
pub const TICKS_PER_SECOND: u32 = 4;

/// All maps, shared by the CPUs.
pub struct Maps {
    /// The clock.
    pub tick: Shared,
    /// How every reply leaves.
    pub route: Route,
    /// What is balanced.
    pub frontends: BTreeMap<SocketKey, Frontend>,
    /// Their records.
    pub frontend_infos: BTreeMap<FrontendId, FrontendInfo>,
    /// The policies in force.
    pub services: BTreeMap<ServiceId, Shared>,
    /// Their records.
    pub policies: BTreeMap<PolicyId, Policy>,
    /// One chunk of slots.
    pub slots: Box<SlotChunk>,
    /// The services' cursors.
    pub cursors: BTreeMap<ServiceId, Shared>,
    /// The backends, their state and way as shared words apart.
    pub backends: BTreeMap<BackendId, (Backend, Shared, Shared)>,
    /// Where replies come from.
    pub endpoints: BTreeMap<SocketKey, Endpoint>,
    /// The flow table.
    pub flows: Vec<FlowBucket>,
    /// The reply table.
    pub replies: Vec<ReplyBucket>,
    /// Flows by backend.
    pub active: BTreeMap<BackendId, Shared>,
    secret: Secret,
    locks: Vec<Mutex<()>>,
    sweep: Shared,
    fragments: Mutex<BTreeMap<FragmentKey, FragmentRecord>>,
    traffic: Mutex<BTreeMap<BackendId, Traffic>>,
    stats: Mutex<BTreeMap<ServiceId, ServiceStats>>,
}

impl Maps {
    /// Empty maps; both tables with so many buckets, powers of two.
    pub fn new(flow_buckets: usize, reply_buckets: usize) -> Self {
        Self::with_slots(flow_buckets, reply_buckets, no_slots())
    }

    /// Maps that are empty but for the slots, which are large and may have served before.
    pub fn with_slots(flow_buckets: usize, reply_buckets: usize, slots: Box<SlotChunk>) -> Self {
        assert!(flow_buckets.is_power_of_two() && reply_buckets.is_power_of_two());
        let words = || std::array::from_fn(|_| Shared::new(0));
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        Self {
            tick: Shared::new(1000),
            route: Route::Resolve { ifindex: 1 },
            frontends: BTreeMap::new(),
            frontend_infos: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
            slots,
            cursors: BTreeMap::new(),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            flows: (0..flow_buckets)
                .map(|_| FlowBucket { words: words(), entries: std::array::from_fn(|_| words_of_entry()) })
                .collect(),
            replies: (0..reply_buckets)
                .map(|_| ReplyBucket { entries: std::array::from_fn(|_| [Shared::new(0), Shared::new(0)]) })
                .collect(),
            active: BTreeMap::new(),
            secret: Secret(std::array::from_fn(|_| xorshift(&mut state))),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            sweep: Shared::new(0),
            fragments: Mutex::default(),
            traffic: Mutex::default(),
            stats: Mutex::default(),
        }
    }

    /// Adds a backend.
    pub fn put_backend(&mut self, id: BackendId, backend: Backend) {
        let (state, way) = (Shared::new(backend.state as u64), Shared::new(backend.way));
        self.backends.insert(id, (backend, state, way));
        self.active.insert(id, Shared::new(0));
    }

    /// Changes what may be sent to a backend.
    pub fn set_state(&self, id: BackendId, state: BackendState) {
        self.backends[&id].1.store(state.to_word() as u64);
    }

    /// Changes how packets get to a backend.
    pub fn set_way(&self, id: BackendId, way: Way) {
        self.backends[&id].2.store(way.to_word());
    }

    /// Writes words into the chunk of slots.
    pub fn write_slots(&self, start: u32, words: &[u64]) {
        for (slot, word) in self.slots[start as usize..].iter().zip(words) {
            slot.store(*word);
        }
    }

    /// What was counted for a backend.
    pub fn traffic(&self, id: BackendId) -> Traffic {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.get(&id).copied().unwrap_or_default()
    }

    /// What was counted for a service.
    pub fn stats(&self, id: ServiceId) -> ServiceStats {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.get(&id).copied().unwrap_or_default()
    }

    /// Lets time pass.
    pub fn wait_seconds(&self, seconds: u32) {
        self.tick.fetch_add((seconds * TICKS_PER_SECOND) as u64);
    }
}

/// A chunk of slots that lead nowhere.
pub fn no_slots() -> Box<SlotChunk> {
    let slots: Vec<Shared> = (0..SLOTS_PER_CHUNK).map(|_| Shared::new(0)).collect();
    slots.into_boxed_slice().try_into().unwrap_or_else(|_| unreachable!("made with this length"))
}

fn words_of_entry() -> [Shared; lb_common::flow::Entry::WORDS] {
    std::array::from_fn(|_| Shared::new(0))
}

fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The maps as one CPU sees them.
pub struct Cpu<'m> {
    maps: &'m Maps,
    scratch: Shared,
    random: Shared,
}

impl<'m> Cpu<'m> {
    /// A CPU whose random numbers follow `seed`.
    pub fn new(maps: &'m Maps, seed: u64) -> Self {
        Self { maps, scratch: Shared::new(0), random: Shared::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1) }
    }
}

impl Kernel for Cpu<'_> {
    type Secret = Secret;

    fn now(&self) -> Tick {
        Tick(self.maps.tick.load() as u32 & Tick::MASK)
    }

    fn random(&self) -> u32 {
        let mut state = self.random.load();
        let number = xorshift(&mut state);
        self.random.store(state);
        (number >> 32) as u32
    }

    fn scratch(&self) -> Option<&Shared> {
        Some(&self.scratch)
    }

    fn frontend(&self, key: &SocketKey) -> Option<Frontend> {
        self.maps.frontends.get(key).copied()
    }

    fn frontend_info(&self, id: FrontendId) -> Option<FrontendInfo> {
        self.maps.frontend_infos.get(&id).copied()
    }

    fn service(&self, id: ServiceId) -> Option<ServiceWord> {
        self.maps.services.get(&id).map(|word| ServiceWord::from_word(word.load()))
    }

    fn policy(&self, id: PolicyId) -> Option<&Policy> {
        self.maps.policies.get(&id)
    }

    fn slots(&self, chunk: u32) -> Option<&SlotChunk> {
        (chunk == 0).then_some(&self.maps.slots)
    }

    fn cursor(&self, id: ServiceId) -> Option<&Shared> {
        self.maps.cursors.get(&id)
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        let (backend, state, way) = self.maps.backends.get(&id)?;
        Some(Backend { state: state.load() as u32, way: way.load(), ..*backend })
    }

    fn endpoint(&self, key: &SocketKey) -> Option<Endpoint> {
        self.maps.endpoints.get(key).copied()
    }

    fn secret(&self) -> &Secret {
        &self.maps.secret
    }

    fn flow_mask(&self) -> u32 {
        self.maps.flows.len() as u32 - 1
    }

    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        self.maps.flows.get(index as usize)
    }

    fn state_ticks(&self, state_bits: u64) -> u64 {
        match FlowState::from_bits(state_bits).timeout_seconds() {
            Some(seconds) => (seconds * TICKS_PER_SECOND) as u64,
            None => 1 << 30,
        }
    }

    fn locked<R>(&self, lock: u32, change: impl FnOnce() -> R) -> Option<R> {
        let _guard = self.maps.locks.get(lock as usize)?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(change())
    }

    fn active(&self, id: BackendId) -> Option<&Shared> {
        self.maps.active.get(&id)
    }

    fn sweep_position(&self) -> Option<&Shared> {
        Some(&self.maps.sweep)
    }

    fn reply_mask(&self) -> u32 {
        self.maps.replies.len() as u32 - 1
    }

    fn reply_bucket(&self, index: u32) -> Option<&ReplyBucket> {
        self.maps.replies.get(index as usize)
    }

    fn reply_ticks(&self) -> u64 {
        (REPLY_TIMEOUT_SECONDS * TICKS_PER_SECOND) as u64
    }

    fn reply_settled_ticks(&self) -> u64 {
        (REPLY_SETTLED_SECONDS * TICKS_PER_SECOND) as u64
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRecord> {
        self.maps.fragments.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, record: &FragmentRecord) {
        self.maps.fragments.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, *record);
    }

    fn fragment_ticks(&self) -> u64 {
        (FRAGMENT_TIMEOUT_SECONDS * TICKS_PER_SECOND) as u64
    }

    fn count_traffic(&self, id: BackendId, traffic: &Traffic) {
        let mut counters = self.maps.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counters.entry(id).or_default();
        *counter = counter.plus(*traffic);
    }

    fn count_service(&self, id: ServiceId, stats: &ServiceStats) {
        let mut counters = self.maps.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = counters.entry(id).or_default();
        *counter = counter.plus(*stats);
    }

    fn route(&self, _query: &RouteQuery) -> Route {
        self.maps.route
    }
}

/// The link-layer address of the device at which packets in memory come in: the loopback device's, at which the kernel's
/// test runs have them come in.
pub const DEVICE: [u8; 6] = [0; 6];

/// A packet in memory, rewritten as a hook without the checksum helpers would: by following every change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPacket {
    /// The bytes, from the link-layer header on.
    pub bytes: Vec<u8>,
}

impl MemoryPacket {
    fn word(&self, offset: usize) -> Result<u16, Reason> {
        self.read::<u16>(offset).ok_or(Reason::RewriteRefused)
    }

    fn write(&mut self, offset: usize, new: &[u8]) -> Result<(), Reason> {
        let place = self.bytes.get_mut(offset..offset + new.len()).ok_or(Reason::RewriteRefused)?;
        place.copy_from_slice(new);
        Ok(())
    }

    fn rewrite_transport(&mut self, edit: &Edit, transport: &TransportEdit) -> Result<(), Reason> {
        let at = transport.offset + checksum_offset(transport.protocol);
        let field = self.word(at)?;
        // RFC 768: zero means no checksum and stays; a sum that comes out as zero is sent as all ones.
        if transport.protocol == Protocol::TCP || field != 0 {
            let sum = Sum::default()
                .exchange_address(edit.family, &edit.old_address, &edit.new_address)
                .exchange(transport.old_port.0, transport.new_port.0)
                .apply(field);
            let sum = if transport.protocol == Protocol::UDP && sum == 0 { 0xffff } else { sum };
            self.write(at, &sum.to_ne_bytes())?;
        }
        let port = match edit.side {
            Side::Source => SOURCE_PORT_OFFSET,
            Side::Destination => DESTINATION_PORT_OFFSET,
        };
        self.write(transport.offset + port, &transport.new_port.0.to_ne_bytes())
    }

    fn rewrite_ip<I: IpHeader>(&mut self, edit: &Edit, address: &[u8]) -> Result<(), Reason> {
        if edit.is_hop {
            let header: I = self.read(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
            self.write(IP_OFFSET + I::HOP_LIMIT_OFFSET, &[header.hop_limit() - 1])?;
        }
        let offset = match edit.side {
            Side::Source => I::SOURCE_OFFSET,
            Side::Destination => I::DESTINATION_OFFSET,
        };
        self.write(IP_OFFSET + offset, address)
    }
}

impl Packet for MemoryPacket {
    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn segments(&self) -> u64 {
        1
    }

    fn is_to_device(&self) -> bool {
        self.bytes.starts_with(&DEVICE)
    }

    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        T::read_from_prefix(self.bytes.get(offset..)?).ok().map(|(header, _)| header)
    }

    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        if edit.has_transport {
            self.rewrite_transport(edit, &edit.transport)?;
        }
        match edit.family {
            Family::V4 => {
                let header: Ipv4 = self.read(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
                let mut sum = Sum::default().exchange_address(Family::V4, &edit.old_address, &edit.new_address);
                if edit.is_hop {
                    let (old, new) = (header.hop_limit(), header.hop_limit() - 1);
                    sum = sum.exchange(header.hop_word(old), header.hop_word(new));
                }
                self.write(IP_OFFSET + Ipv4::CHECKSUM_OFFSET, &sum.apply(header.checksum()).to_ne_bytes())?;
                self.rewrite_ip::<Ipv4>(edit, &edit.new_address.v4_word().to_ne_bytes())
            }
            Family::V6 => {
                let bytes: Vec<u8> = edit.new_address.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
                self.rewrite_ip::<Ipv6>(edit, &bytes)
            }
        }
    }

    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        let words = link.destination.into_iter().chain(link.source);
        let bytes: Vec<u8> = words.flat_map(u16::to_ne_bytes).collect();
        self.write(0, &bytes)
    }
}
