//! What the data path asks of the kernel: its maps, its clock, its routes.

use lb_common::{
    addr::{Addr, Family},
    backend::{Backend, BackendId, Endpoint},
    device::Abilities,
    flow::{self, Tick},
    fragment::{FragmentKey, FragmentRecord},
    hash::SecretWords,
    limits::SLOTS_PER_CHUNK,
    reply::REPLIES_PER_BUCKET,
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
    stats::{ServiceStats, Traffic},
};

use crate::{atomic::Shared, hop::HopRecord, packet::Link};

/// The maps, the clock and the routes.
pub trait Kernel {
    /// The secret that the tables are hashed with.
    type Secret: SecretWords;

    /// Coarse time.
    fn now(&self) -> Tick;
    /// A random number.
    fn random(&self) -> u32;
    /// A word of this CPU's own, for [`forget`].
    fn scratch(&self) -> Option<&Shared>;

    /// The frontend with this address, port and protocol. May be one that was just removed: see [`FrontendInfo`].
    fn frontend(&self, key: &SocketKey) -> Option<Frontend>;
    /// Keeps the frontend of the packet at hand for the program that goes on with it.
    fn hand_over(&self, frontend: &Frontend);
    /// What was handed over with the packet at hand.
    fn handed_over(&self) -> Option<Frontend>;
    /// A frontend's record.
    fn frontend_info(&self, id: FrontendId) -> Option<FrontendInfo>;
    /// Which policy of a service is in force.
    fn service(&self, id: ServiceId) -> Option<ServiceWord>;
    /// A policy's record.
    fn policy(&self, id: PolicyId) -> Option<&Policy>;
    /// One large value of slots.
    fn slots(&self, chunk: u32) -> Option<&SlotChunk>;
    /// A service's cursor.
    fn cursor(&self, id: ServiceId) -> Option<&Shared>;
    /// A backend's record, its state and way as they are now.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// The endpoint with this address, port and protocol.
    fn endpoint(&self, key: &SocketKey) -> Option<Endpoint>;

    /// The secret of the flow and the reply table.
    fn secret(&self) -> &Self::Secret;
    /// Buckets of the flow table, less one.
    fn flow_mask(&self) -> u32;
    /// A bucket of the flow table.
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket>;
    /// Ticks after which a flow whose state has these bits may be evicted.
    fn state_ticks(&self, state_bits: u64) -> u64;
    /// Runs `change` under one of the flow table's locks. Nothing may be looked up in there.
    fn locked<R>(&self, lock: u32, change: impl FnOnce() -> R) -> Option<R>;
    /// Flows a backend has now.
    fn active(&self, id: BackendId) -> Option<&Shared>;
    /// Where the sweep of the flow table goes on.
    fn sweep_position(&self) -> Option<&Shared>;

    /// Buckets of the reply table, less one.
    fn reply_mask(&self) -> u32;
    /// A bucket of the reply table.
    fn reply_bucket(&self, index: u32) -> Option<&ReplyBucket>;
    /// Ticks after the last query in which an answer is still translated.
    fn reply_ticks(&self) -> u64;
    /// Ticks without a query after which an answered entry may be overwritten.
    fn reply_settled_ticks(&self) -> u64;

    /// What was done with a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRecord>;
    /// Remembers what is done with a datagram's first fragment. A full table forgets the oldest.
    fn remember_fragment(&self, key: &FragmentKey, record: &FragmentRecord);
    /// Ticks in which the rest of a datagram may follow.
    fn fragment_ticks(&self) -> u64;

    /// Adds to a backend's counters.
    fn count_traffic(&self, id: BackendId, traffic: &Traffic);
    /// Adds to a service's counters.
    fn count_service(&self, id: ServiceId, stats: &ServiceStats);

    /// How a packet goes on, as the routes say.
    fn route(&self, query: &RouteQuery) -> Route;
    /// The number of the device that the packet came in by.
    fn arrived_by(&self) -> u32;
    /// What a device does with packets that XDP hands to it.
    fn abilities(&self, ifindex: u32) -> Abilities;
    /// Counts the changes of the network that the controller has seen.
    fn network_version(&self) -> u32;
    /// One of this CPU's records of hops to backends.
    fn backend_hop(&self, place: u32) -> Option<&HopRecord>;
    /// One of this CPU's records of hops to clients.
    fn client_hop(&self, place: u32) -> Option<&HopRecord>;
    /// Keeps what fits where the packet at hand does not, for the answer to its sender.
    fn note_mtu(&self, mtu: u32);
    /// What was kept last.
    fn noted_mtu(&self) -> u32;
    /// This CPU's account of the errors it has sent, for [`crate::too_big`].
    fn errors_sent(&self) -> Option<&Shared>;
    /// Errors that one CPU may send in one tick.
    fn errors_per_tick(&self) -> u64;
}

/// Gives `number` back. The kernel's verifier forgets what it knew of it, so that paths that differ in nothing else are
/// followed once.
#[inline(always)]
pub fn forget(scratch: &Shared, number: u64) -> u64 {
    scratch.store(number);
    scratch.load()
}

/// One large value of `SLOTS`.
pub type SlotChunk = [Shared; SLOTS_PER_CHUNK as usize];

/// The word at `index` modulo the chunk's size.
#[inline(always)]
pub fn slot_word(chunk: &SlotChunk, index: u64) -> u64 {
    match chunk.get((index & (SLOTS_PER_CHUNK as u64 - 1)) as usize) {
        Some(word) => word.load(),
        None => 0,
    }
}

/// A bucket of the flow table, laid out as [`flow::Bucket`], every word of it shared.
#[repr(C)]
pub struct FlowBucket {
    /// A [`flow::Word`] for each way.
    pub words: [Shared; flow::WAYS],
    /// A [`flow::Entry`] for each way.
    pub entries: [[Shared; flow::Entry::WORDS]; flow::WAYS],
}

/// A bucket of the reply table, laid out as [`lb_common::reply::ReplyBucket`], every word of it shared.
#[repr(C)]
pub struct ReplyBucket {
    /// The check, then a [`lb_common::reply::ReplyWord`].
    pub entries: [[Shared; 2]; REPLIES_PER_BUCKET],
}

/// From where to where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// The family of both addresses.
    pub family: Family,
    /// Where it comes from.
    pub source: Addr,
    /// Where it goes.
    pub destination: Addr,
    /// The device it has to leave by; zero where the routes choose, as for any packet that came in where this one did.
    pub through: u32,
}

/// How to send a packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Out of this device with these link-layer addresses.
    Link {
        /// The device.
        ifindex: u32,
        /// Its own and the next hop's address.
        link: Link,
        /// The largest packet that fits, in bytes from the IP header on.
        mtu: u32,
    },
    /// Out of this device; the kernel has still to learn the next hop's link-layer address.
    Resolve {
        /// The device.
        ifindex: u32,
    },
    /// There is none, or the host does not forward.
    None,
}
