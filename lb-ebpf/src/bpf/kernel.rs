//! The data path's `Kernel`: maps, clock and routes of the running kernel.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT},
    helpers::{bpf_fib_lookup, bpf_get_prandom_u32, bpf_jiffies64},
};
use lb_common::{
    addr::{Addr, Family},
    backend::{Backend, BackendId, Endpoint},
    device::{Abilities, Device},
    flow::Tick,
    fragment::{FragmentKey, FragmentRecord},
    hash::SecretWords,
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
    stats::{ServiceStats, Traffic},
};
use lb_ebpf::{
    atomic::{Hidden, Shared},
    hop::HopRecord,
    kernel::{FlowBucket, Kernel, ReplyBucket, Route, RouteQuery, SlotChunk},
    packet::Link,
};

use super::{Context, maps};

/// The running kernel, as a packet with this context sees it.
pub(crate) struct BpfKernel<'c, C> {
    context: &'c C,
}

impl<'c, C: Context> BpfKernel<'c, C> {
    /// The kernel around `context`.
    #[inline(always)]
    pub(crate) fn new(context: &'c C) -> Self {
        Self { context }
    }
}

/// The secret in the program's read-only data.
pub(crate) struct ProgramSecret;

impl SecretWords for ProgramSecret {
    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        maps::secret_word(index)
    }
}

impl<C: Context> Kernel for BpfKernel<'_, C> {
    type Secret = ProgramSecret;

    #[inline(always)]
    fn now(&self) -> Tick {
        // SAFETY: the helper has no precondition.
        Tick::from_jiffies(unsafe { bpf_jiffies64() })
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper has no precondition.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn scratch(&self) -> Option<&Shared> {
        maps::scratch()
    }

    #[inline(always)]
    fn frontend(&self, key: &SocketKey) -> Option<Frontend> {
        // SAFETY: read at once by value; that the element may be recycled meanwhile is what FRONTEND_INFO guards.
        unsafe { maps::FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn hand_over(&self, frontend: &Frontend) {
        if let Some(handed) = maps::handed_over() {
            handed.store(frontend.to_word());
        }
    }

    #[inline(always)]
    fn handed_over(&self) -> Option<Frontend> {
        maps::handed_over().map(|handed| Frontend::from_word(handed.load()))
    }

    #[inline(always)]
    fn frontend_info(&self, id: FrontendId) -> Option<FrontendInfo> {
        maps::FRONTEND_INFO.get(id.0).copied()
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<ServiceWord> {
        let word = maps::SERVICES.get_ptr(id.0)?;
        // SAFETY: the pointer is to a live map value; volatile, because the controller swaps the word.
        Some(ServiceWord::from_word(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn policy(&self, id: PolicyId) -> Option<&Policy> {
        maps::POLICIES.get(id.0)
    }

    #[inline(always)]
    fn slots(&self, chunk: u32) -> Option<&SlotChunk> {
        maps::SLOTS.get(chunk)
    }

    #[inline(always)]
    fn cursor(&self, id: ServiceId) -> Option<&Shared> {
        maps::CURSORS.get(id.0).map(|record| &record[0])
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<Backend> {
        let record = maps::BACKENDS.get_ptr(id.0)?;
        // SAFETY: the pointer is to a live map value. State and way are volatile, because the controller swaps them;
        // the rest does not change while anything names the record.
        Some(unsafe {
            Backend {
                way: (&raw const (*record).way).read_volatile(),
                state: (&raw const (*record).state).read_volatile(),
                ..*record
            }
        })
    }

    #[inline(always)]
    fn endpoint(&self, key: &SocketKey) -> Option<Endpoint> {
        // SAFETY: read at once by value; an endpoint is forgotten only when no flow names it.
        unsafe { maps::ENDPOINTS.get(key) }.copied()
    }

    #[inline(always)]
    fn secret(&self) -> &ProgramSecret {
        &ProgramSecret
    }

    #[inline(always)]
    fn flow_mask(&self) -> u32 {
        maps::flow_bucket_mask()
    }

    #[inline(always)]
    fn flow_bucket(&self, index: u32) -> Option<&FlowBucket> {
        maps::FLOWS.get(index)
    }

    #[inline(always)]
    fn state_ticks(&self, state_bits: u64) -> u64 {
        maps::state_ticks(state_bits)
    }

    #[inline(always)]
    fn locked<R>(&self, lock: u32, change: impl FnOnce() -> R) -> Option<R> {
        maps::locked(lock, change)
    }

    #[inline(always)]
    fn active(&self, id: BackendId) -> Option<&Shared> {
        maps::ACTIVE.get(id.0)
    }

    #[inline(always)]
    fn sweep_position(&self) -> Option<&Shared> {
        maps::SWEEP.get(0)
    }

    #[inline(always)]
    fn reply_mask(&self) -> u32 {
        maps::reply_bucket_mask()
    }

    #[inline(always)]
    fn reply_bucket(&self, index: u32) -> Option<&ReplyBucket> {
        maps::REPLIES.get(index)
    }

    #[inline(always)]
    fn reply_ticks(&self) -> u64 {
        maps::reply_ticks() as u64
    }

    #[inline(always)]
    fn reply_settled_ticks(&self) -> u64 {
        maps::reply_settled_ticks() as u64
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentRecord> {
        // SAFETY: read at once by value; a recycled element sends a fragment to a reassembly that then fails.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, record: &FragmentRecord) {
        // Only a lack of memory can refuse it; the later fragments are then counted as unknown.
        let _ = maps::FRAGMENTS.insert(key, record, 0);
    }

    #[inline(always)]
    fn fragment_ticks(&self) -> u64 {
        maps::fragment_ticks() as u64
    }

    #[inline(always)]
    fn count_traffic(&self, id: BackendId, traffic: &Traffic) {
        if let Some(counters) = maps::TRAFFIC.get_ptr_mut(id.0) {
            // SAFETY: the pointer is to this CPU's value of a live map.
            unsafe { *counters = (*counters).plus(*traffic) };
        }
    }

    #[inline(always)]
    fn count_service(&self, id: ServiceId, stats: &ServiceStats) {
        if let Some(counters) = maps::SERVICE_STATS.get_ptr_mut(id.0) {
            // SAFETY: the pointer is to this CPU's value of a live map.
            unsafe { *counters = (*counters).plus(*stats) };
        }
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Route {
        let (ifindex, flags) = match query.through {
            0 => (self.context.ifindex(), 0),
            device => (device, BPF_FIB_LOOKUP_OUTPUT),
        };
        let mut fib = FibQuery::new(query, ifindex);
        // SAFETY: `FibQuery` has the size and layout of the helper's parameter block.
        let result = unsafe {
            bpf_fib_lookup(self.context.pointer(), (&raw mut fib).cast(), size_of::<FibQuery>() as i32, flags)
        };
        match result as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => Route::Link { ifindex: fib.ifindex, link: fib.link(), mtu: fib.mtu() },
            BPF_FIB_LKUP_RET_NO_NEIGH => Route::Resolve { ifindex: fib.ifindex },
            _ => Route::None,
        }
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        self.context.ifindex()
    }

    #[inline(always)]
    fn abilities(&self, ifindex: u32) -> Abilities {
        match maps::device(Device::place(ifindex)) {
            Some(device) if device.ifindex == ifindex => device.abilities,
            Some(_) | None => Abilities::default(),
        }
    }

    #[inline(always)]
    fn network_version(&self) -> u32 {
        maps::NETWORK_VERSION.get(0).map_or(0, |version| version.load() as u32)
    }

    #[inline(always)]
    fn backend_hop(&self, place: u32) -> Option<&HopRecord> {
        maps::backend_hop(place)
    }

    #[inline(always)]
    fn client_hop(&self, place: u32) -> Option<&HopRecord> {
        maps::client_hop(place)
    }

    #[inline(always)]
    fn note_mtu(&self, mtu: u32) {
        if let Some(word) = maps::mtu() {
            word.store(mtu as u64);
        }
    }

    #[inline(always)]
    fn noted_mtu(&self) -> u32 {
        maps::mtu().map_or(0, |word| word.load() as u32)
    }

    #[inline(always)]
    fn errors_sent(&self) -> Option<&Shared> {
        maps::errors_sent()
    }

    #[inline(always)]
    fn errors_per_tick(&self) -> u64 {
        maps::errors_per_tick() as u64
    }
}

/// `struct bpf_fib_lookup` of the kernel's UAPI, in words: the compiler clears single bytes by a call of a loop.
#[repr(C, align(8))]
struct FibQuery {
    family_and_protocol: u32,
    /// The receiver's port, then the length, and after the look-up the MTU.
    port_and_length: u32,
    ifindex: u32,
    service: u32,
    source: [u32; 4],
    destination: [u32; 4],
    /// Four bytes of VLAN, our device's address, the next hop's.
    vlan_and_macs: [u64; 2],
}

/// Zero, of which the compiler does not know it: else it clears what follows each other by a call of a byte loop.
static ZERO: Hidden = Hidden(0);

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

impl FibQuery {
    #[inline(always)]
    fn new(query: &RouteQuery, ifindex: u32) -> Self {
        let (family, source, destination) = match query.family {
            Family::V4 => (AF_INET, v4(&query.source), v4(&query.destination)),
            Family::V6 => (AF_INET6, query.source.by_words().0, query.destination.by_words().0),
        };
        Self {
            family_and_protocol: family.to_le(),
            // The kernel puts the MTU where it finds a length, and every MTU is larger than this one.
            port_and_length: 1_u32.to_le() << 16,
            ifindex,
            service: 0,
            source,
            destination,
            vlan_and_macs: [ZERO.get(), ZERO.get()],
        }
    }

    #[inline(always)]
    fn mtu(&self) -> u32 {
        self.port_and_length >> 16
    }

    #[inline(always)]
    fn link(&self) -> Link {
        let [first, second] = self.vlan_and_macs;
        Link {
            destination: [(second >> 16) as u16, (second >> 32) as u16, (second >> 48) as u16],
            source: [(first >> 32) as u16, (first >> 48) as u16, second as u16],
        }
    }
}

/// The helper takes an IPv4 address in the first word.
#[inline(always)]
fn v4(address: &Addr) -> [u32; 4] {
    [address.v4_word(), 0, 0, 0]
}
