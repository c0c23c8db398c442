//! The packet and the kernel in memory: the data path on the host, with as many CPUs as a test has threads.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    vec::Vec,
};

use lb_common::{
    backend::{Backend, BackendId, BackendState, Endpoint, Way},
    device::Abilities,
    flow::{FlowState, LOCKS, Tick},
    fragment::{FRAGMENT_TIMEOUT_SECONDS, FragmentKey, FragmentRecord},
    hash::Secret,
    limits::{ERRORS_AT_ONCE, SLOTS_PER_CHUNK},
    reason::Reason,
    reply::{REPLY_SETTLED_SECONDS, REPLY_TIMEOUT_SECONDS},
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
    stats::{ServiceStats, Traffic},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{
    atomic::Shared,
    hop::HopRecord,
    kernel::{FlowBucket, Kernel, ReplyBucket, Route, RouteQuery, SlotChunk},
    packet::{Answerable, Edit, Link, Packet},
    parse::{IP_OFFSET, Parsed},
    rewrite::{self, Bytes},
    wire::checksum::Sum,
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
    /// What the routes say of backends, by the device that these are to be reached by.
    pub routes_to_backends: BTreeMap<u32, Route>,
    /// What devices do with packets that an early hook hands to them; the others take none.
    pub abilities: BTreeMap<u32, Abilities>,
    /// Counts the changes of the network.
    pub network_version: Shared,
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
            routes_to_backends: BTreeMap::new(),
            abilities: BTreeMap::new(),
            network_version: Shared::new(1),
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
    hops: Vec<HopRecord>,
    handed_over: Shared,
    mtu: Shared,
    errors_sent: Shared,
}

/// Records of hops to backends, and as many to clients.
const HOPS: usize = 16;

impl<'m> Cpu<'m> {
    /// A CPU whose random numbers follow `seed`.
    pub fn new(maps: &'m Maps, seed: u64) -> Self {
        Self {
            maps,
            scratch: Shared::new(0),
            random: Shared::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1),
            hops: (0..2 * HOPS).map(|_| std::array::from_fn(|_| Shared::new(0))).collect(),
            handed_over: Shared::new(0),
            mtu: Shared::new(0),
            errors_sent: Shared::new(0),
        }
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

    fn hand_over(&self, frontend: &Frontend) {
        self.handed_over.store(frontend.to_word());
    }

    fn handed_over(&self) -> Option<Frontend> {
        Some(Frontend::from_word(self.handed_over.load()))
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

    fn route(&self, query: &RouteQuery) -> Route {
        match query.through {
            0 => self.maps.route,
            device => self.maps.routes_to_backends.get(&device).copied().unwrap_or(Route::None),
        }
    }

    fn arrived_by(&self) -> u32 {
        ARRIVED_BY
    }

    fn abilities(&self, ifindex: u32) -> Abilities {
        self.maps.abilities.get(&ifindex).copied().unwrap_or_default()
    }

    fn network_version(&self) -> u32 {
        self.maps.network_version.load() as u32
    }

    fn backend_hop(&self, place: u32) -> Option<&HopRecord> {
        self.hops.get(place as usize % HOPS)
    }

    fn client_hop(&self, place: u32) -> Option<&HopRecord> {
        self.hops.get(HOPS + place as usize % HOPS)
    }

    fn note_mtu(&self, mtu: u32) {
        self.mtu.store(mtu as u64);
    }

    fn noted_mtu(&self) -> u32 {
        self.mtu.load() as u32
    }

    fn errors_sent(&self) -> Option<&Shared> {
        Some(&self.errors_sent)
    }

    fn errors_per_tick(&self) -> u64 {
        ERRORS_AT_ONCE as u64
    }
}

/// The device by which packets in memory come in.
pub const ARRIVED_BY: u32 = 7;

/// The link-layer address of the device at which packets in memory come in: the loopback device's, at which the kernel's
/// test runs have them come in.
pub const DEVICE: [u8; 6] = [0; 6];

/// A packet in memory, rewritten as a hook without the checksum helpers would: by following every change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPacket {
    /// The bytes, from the link-layer header on.
    pub bytes: Vec<u8>,
}

impl Bytes for MemoryPacket {
    fn get<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        T::read_from_prefix(self.bytes.get(offset..)?).ok().map(|(header, _)| header)
    }

    fn put<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Result<(), Reason> {
        let new = value.as_bytes();
        let place = self.bytes.get_mut(offset..offset + new.len()).ok_or(Reason::RewriteRefused)?;
        place.copy_from_slice(new);
        Ok(())
    }
}

impl Packet for MemoryPacket {
    const IS_EARLY: bool = false;

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn segments(&self) -> u64 {
        1
    }

    fn is_to_device(&self) -> bool {
        self.bytes.starts_with(&DEVICE)
    }

    fn largest(&self, parsed: &Parsed) -> usize {
        parsed.length as usize
    }

    fn can_be_handed(&self, _parsed: &Parsed, _device: Abilities) -> bool {
        true
    }

    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        self.get(offset)
    }

    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        rewrite::rewrite(self, edit)
    }

    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        self.put(0, *link)
    }
}

impl Answerable for MemoryPacket {
    fn sum<const LENGTH: usize>(&self, offset: usize) -> Option<Sum> {
        let (words, []) = self.bytes.get(offset..offset + LENGTH)?.as_chunks() else { return None };
        Some(words.iter().fold(Sum::default(), |sum, word| sum.add(u32::from_ne_bytes(*word))))
    }

    fn enclose<T: IntoBytes + Immutable>(&mut self, kept: usize, header: &T) -> Result<(), Reason> {
        if self.bytes.len() < IP_OFFSET + kept {
            return Err(Reason::RewriteRefused);
        }
        self.bytes.truncate(IP_OFFSET + kept);
        self.bytes.splice(IP_OFFSET..IP_OFFSET, header.as_bytes().iter().copied());
        Ok(())
    }
}

/// The same at an early hook, which can hand a packet to a device and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlyPacket(pub MemoryPacket);

impl Packet for EarlyPacket {
    const IS_EARLY: bool = true;

    fn length(&self) -> usize {
        self.0.length()
    }

    fn segments(&self) -> u64 {
        self.0.segments()
    }

    fn largest(&self, parsed: &Parsed) -> usize {
        self.0.largest(parsed)
    }

    fn can_be_handed(&self, parsed: &Parsed, device: Abilities) -> bool {
        device.has(Abilities::SENDS) && !rewrite::is_unfinished(&self.0, parsed)
    }

    fn is_to_device(&self) -> bool {
        self.0.is_to_device()
    }

    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        self.0.read(offset)
    }

    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        self.0.rewrite(edit)
    }

    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        self.0.set_link(link)
    }
}
