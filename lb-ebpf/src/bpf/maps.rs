//! The maps. The controller gives them their sizes, pins them and fills them; this is their one declaration.

use core::{arch::asm, mem::MaybeUninit};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_spin_lock},
    btf_maps,
    helpers::{bpf_spin_lock as lock, bpf_spin_unlock as unlock},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    backend::{Backend, Endpoint},
    device::{DEVICES as DEVICE_COUNT, Device, HOPS},
    flow::LOCKS as LOCK_COUNT,
    fragment::{FragmentKey, FragmentRecord},
    hash::Secret,
    reason::Reason,
    service::{Frontend, FrontendInfo, Policy, SocketKey},
    stats::{EarlyStats, ServiceStats, Traffic},
};
use lb_ebpf::{
    atomic::Shared,
    hop::HopRecord,
    kernel::{FlowBucket, ReplyBucket, SlotChunk},
    parse::Parsed,
};

// Sizes of 1 are placeholders: the controller sets max_entries before it loads.

#[map]
pub(crate) static FRONTENDS: HashMap<SocketKey, Frontend> = HashMap::with_max_entries(1, 0);
#[map]
pub(crate) static FRONTEND_INFO: Array<FrontendInfo> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static SERVICES: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static POLICIES: Array<Policy> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static SLOTS: Array<SlotChunk> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static ENDPOINTS: HashMap<SocketKey, Endpoint> = HashMap::with_max_entries(1, 0);
/// The first word of each record is the cursor; the rest keeps cursors apart in the cache.
#[map]
pub(crate) static CURSORS: Array<[Shared; 8]> = Array::with_max_entries(1, BPF_F_MMAPABLE);
// Mmapable also because that aligns the buckets to cache lines.
#[map]
pub(crate) static FLOWS: Array<FlowBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static REPLIES: Array<ReplyBucket> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentRecord> = LruHashMap::with_max_entries(1, 0);
#[map]
pub(crate) static ACTIVE: Array<Shared> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub(crate) static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static SERVICE_STATS: PerCpuArray<ServiceStats> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);
#[map]
pub(crate) static SWEEP: Array<Shared> = Array::with_max_entries(1, 0);
/// Layout version, sizes and secret, for the controller that adopts these maps. No program reads it.
#[map]
pub(crate) static SETTINGS: Array<[u64; 32]> = Array::with_max_entries(1, 0);
/// What the verifier is made to forget: see [`remember`].
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);
/// The devices that XDP programs run on or send out of.
#[map]
static DEVICES: Array<Device> = Array::with_max_entries(DEVICE_COUNT, BPF_F_MMAPABLE);
/// Counts the changes of the network that the controller has seen.
#[map]
pub(crate) static NETWORK_VERSION: Array<Shared> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static EARLY_STATS: PerCpuArray<EarlyStats> = PerCpuArray::with_max_entries(DEVICE_COUNT, 0);
#[map]
static BACKEND_HOPS: PerCpuArray<HopRecord> = PerCpuArray::with_max_entries(HOPS, 0);
#[map]
static CLIENT_HOPS: PerCpuArray<HopRecord> = PerCpuArray::with_max_entries(HOPS, 0);
/// What programs of the TC hook go on in. A program array takes programs of one type.
#[map]
static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(3, 0);
/// The same for the XDP hook.
#[map]
static XDP_PROGRAMS: ProgramArray = ProgramArray::with_max_entries(2, 0);
/// Apart from the buckets, because an array with locks cannot be mapped.
#[btf_map]
pub(crate) static LOCKS: btf_maps::Array<Lock, { LOCK_COUNT as usize }> = btf_maps::Array::new();

/// A lock in a cache line of its own.
#[repr(C)]
pub(crate) struct Lock {
    lock: bpf_spin_lock,
    pad: [u32; 15],
}

/// Where the program that begins a flow stands in both program arrays.
pub(crate) const BEGIN_FLOW: u32 = 0;
/// Where the program for a query of a per-packet service stands in both.
pub(crate) const QUERY: u32 = 1;
/// Where `too_big` stands in `PROGRAMS`.
pub(crate) const TOO_BIG: u32 = 2;

// Read-only data, set by the controller before it loads. Read through `constant`, else the compiler believes the values here.

#[unsafe(no_mangle)]
static FLOW_BUCKET_MASK: u32 = 0;
#[unsafe(no_mangle)]
static REPLY_BUCKET_MASK: u32 = 0;
#[unsafe(no_mangle)]
static SECRET: [u64; Secret::WORDS] = [0; Secret::WORDS];
#[unsafe(no_mangle)]
static STATE_TICKS: [u64; 16] = [0; 16];
#[unsafe(no_mangle)]
static REPLY_TICKS: u32 = 0;
#[unsafe(no_mangle)]
static REPLY_SETTLED_TICKS: u32 = 0;
#[unsafe(no_mangle)]
static FRAGMENT_TICKS: u32 = 0;
#[unsafe(no_mangle)]
static ERRORS_PER_TICK: u32 = 0;

#[inline(always)]
pub(crate) fn flow_bucket_mask() -> u32 {
    constant(&FLOW_BUCKET_MASK)
}

#[inline(always)]
pub(crate) fn reply_bucket_mask() -> u32 {
    constant(&REPLY_BUCKET_MASK)
}

#[inline(always)]
pub(crate) fn reply_ticks() -> u32 {
    constant(&REPLY_TICKS)
}

#[inline(always)]
pub(crate) fn reply_settled_ticks() -> u32 {
    constant(&REPLY_SETTLED_TICKS)
}

#[inline(always)]
pub(crate) fn fragment_ticks() -> u32 {
    constant(&FRAGMENT_TICKS)
}

#[inline(always)]
pub(crate) fn errors_per_tick() -> u32 {
    constant(&ERRORS_PER_TICK)
}

/// Ticks by the four bits of a flow's state.
#[inline(always)]
pub(crate) fn state_ticks(bits: u64) -> u64 {
    // SAFETY: four bits index sixteen words.
    unsafe { (&raw const STATE_TICKS).cast::<u64>().add((bits & 15) as usize).read_volatile() }
}

/// A word of the secret; `index` is a constant below its length at every call.
#[inline(always)]
pub(crate) fn secret_word(index: usize) -> u64 {
    // SAFETY: the callers are the hashes of lb-common, whose indices its tests check against `Secret::WORDS`.
    unsafe { (&raw const SECRET).cast::<u64>().add(index).read_volatile() }
}

#[inline(always)]
pub(crate) fn constant(value: &'static u32) -> u32 {
    // SAFETY: a reference to a static is valid; volatile hides the value from the compiler.
    unsafe { (&raw const *value).read_volatile() }
}

struct Scratch {
    parsed: MaybeUninit<Parsed>,
    number: Shared,
    handed_over: Shared,
    mtu: Shared,
    errors_sent: Shared,
}

/// Keeps `parsed` where the verifier knows nothing of it. Else it would follow all that comes after once for each way
/// in which headers can be read.
///
/// The value stays until the next packet on this CPU; nothing else runs on it before this one is done.
#[inline(always)]
pub(crate) fn remember(parsed: Parsed) -> Option<&'static Parsed> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map, and the field was written before it is read. The empty
    // assembly keeps the compiler from using what it has just stored.
    unsafe {
        (*scratch).parsed.write(parsed);
        asm!("");
        Some((*scratch).parsed.assume_init_ref())
    }
}

/// What [`remember`] keeps; only for a packet for which it was called.
#[cfg(feature = "trace")]
#[inline(always)]
pub(crate) fn remembered() -> Option<&'static Parsed> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map, and the caller's packet was remembered in it.
    Some(unsafe { (*scratch).parsed.assume_init_ref() })
}

/// A word of this CPU's own.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static Shared> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map.
    Some(unsafe { &(*scratch).number })
}

/// What is handed over to the program that goes on with this CPU's packet.
#[inline(always)]
pub(crate) fn handed_over() -> Option<&'static Shared> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map.
    Some(unsafe { &(*scratch).handed_over })
}

/// What would fit where this CPU's packet does not.
#[inline(always)]
pub(crate) fn mtu() -> Option<&'static Shared> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map.
    Some(unsafe { &(*scratch).mtu })
}

/// This CPU's account of the errors it has sent.
#[inline(always)]
pub(crate) fn errors_sent() -> Option<&'static Shared> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map.
    Some(unsafe { &(*scratch).errors_sent })
}

/// Counts a packet that is not forwarded.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(counter) = REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: the pointer is to this CPU's value of a map that is never freed while the program runs.
        unsafe { *counter += 1 };
    }
}

/// A record of [`DEVICES`].
#[inline(always)]
pub(crate) fn device(place: u32) -> Option<&'static Device> {
    DEVICES.get(place)
}

/// Counts a packet of ours that came in by the device at `place` and that XDP sent, or left.
#[inline(always)]
pub(crate) fn count_early(place: u32, stats: EarlyStats) {
    if let Some(counters) = EARLY_STATS.get_ptr_mut(place) {
        // SAFETY: the pointer is to this CPU's value of a map that is never freed while the program runs.
        unsafe { *counters = (*counters).plus(stats) };
    }
}

/// One of this CPU's records of hops to backends.
#[inline(always)]
pub(crate) fn backend_hop(place: u32) -> Option<&'static HopRecord> {
    // SAFETY: the pointer is to this CPU's value of a map that is never freed while the program runs.
    BACKEND_HOPS.get_ptr(place).map(|record| unsafe { &*record })
}

/// One of this CPU's records of hops to clients.
#[inline(always)]
pub(crate) fn client_hop(place: u32) -> Option<&'static HopRecord> {
    // SAFETY: the pointer is to this CPU's value of a map that is never freed while the program runs.
    CLIENT_HOPS.get_ptr(place).map(|record| unsafe { &*record })
}

/// Goes on in another program of the TC hook; comes back only when it is missing.
#[inline(always)]
pub(crate) fn tail_call(context: &TcContext, program: u32) -> Reason {
    // SAFETY: all programs of the array take the same context.
    unsafe { PROGRAMS.tail_call(context, program) };
    Reason::Inconsistent
}

/// The same at the XDP hook.
#[inline(always)]
pub(crate) fn xdp_tail_call(context: &XdpContext, program: u32) -> Reason {
    // SAFETY: all programs of the array take the same context.
    unsafe { XDP_PROGRAMS.tail_call(context, program) };
    Reason::Inconsistent
}

/// Runs `change` under a lock.
#[inline(always)]
pub(crate) fn locked<R>(index: u32, change: impl FnOnce() -> R) -> Option<R> {
    let entry = LOCKS.get_ptr_mut(index)?;
    // SAFETY: the map's value begins with a lock that its BTF declares; nothing in between calls a helper.
    unsafe {
        let spin = &raw mut (*entry).lock;
        lock(spin);
        let result = change();
        unlock(spin);
        Some(result)
    }
}
