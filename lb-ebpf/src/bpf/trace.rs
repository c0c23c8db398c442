//! The decision trace: one record a packet, by way of `aya-log`, at the end of whichever program decided.
//!
//! It is in an object of its own, which the controller loads when it is asked for a trace; in the other nothing of it is.

use aya_ebpf::{helpers::bpf_jiffies64, macros::map, maps::PerCpuArray};
use aya_log_ebpf::info;
use lb_common::{
    addr::{Addr, Family, Port},
    reason::Reason,
    trace::{Change, Outcome, Program, RECORDS_PER_WINDOW, Record, TARGET, Tracer},
};
use lb_ebpf::{
    packet::Packet,
    parse::{IP_OFFSET, Parsed},
    wire::{IpHeader, Ipv4, Ipv6, Ports},
};
use zerocopy::IntoBytes as _;

use super::{
    Context,
    maps::{self, constant},
};

/// The family of what is traced, four or six; zero for both.
#[unsafe(no_mangle)]
static TRACE_FAMILY: u32 = 0;
/// Its protocol; zero for any.
#[unsafe(no_mangle)]
static TRACE_PROTOCOL: u32 = 0;
/// The address that one of its ends has; zero for any.
#[unsafe(no_mangle)]
static TRACE_ADDRESS: [u32; 4] = [0; 4];
/// The port of that end, as it lies in the packet; zero for any.
#[unsafe(no_mangle)]
static TRACE_PORT: u32 = 0;
/// Jiffies in which a CPU writes [`RECORDS_PER_WINDOW`].
#[unsafe(no_mangle)]
static TRACE_WINDOW: u32 = 0;

#[map]
static TRACER: PerCpuArray<Tracer> = PerCpuArray::with_max_entries(1, 0);

/// What came of a packet, kept on the stack while the packet leaves: the outcome, and what belongs to it, in one word.
pub(crate) struct Decision(u64);

/// Nothing to tell: the program that goes on with the packet does.
const PENDING: u64 = u64::MAX;

impl Decision {
    /// None yet.
    #[inline(always)]
    pub(crate) const fn pending() -> Self {
        Self(PENDING)
    }

    /// What came of it. Called where the packet leaves, in each case apart, and kept out of the compiler's sight: else that
    /// would carry along what other cases leave unset, and the verifier refuses to see it kept.
    #[inline(always)]
    pub(crate) fn is(&mut self, outcome: Outcome, number: u32) {
        let word = (outcome as u64) << 32 | number as u64;
        // SAFETY: the reference is valid.
        unsafe { (&raw mut self.0).write_volatile(word) };
    }

    /// It is not balanced.
    #[inline(always)]
    pub(crate) fn is_refusal(&mut self, reason: Reason) {
        self.is(Outcome::Refused, reason as u32);
    }

    #[inline(always)]
    fn get(&self) -> u64 {
        // SAFETY: the reference is valid.
        unsafe { (&raw const self.0).read_volatile() }
    }
}

/// Tells what came of a packet, if it is asked for.
#[inline(always)]
pub(crate) fn tell<P: Packet, C: Context>(context: &C, packet: &P, program: Program, decision: &Decision) {
    let decision = decision.get();
    if decision == PENDING {
        return;
    }
    begin_record(decision, context.ifindex(), program, P::IS_EARLY);
    record_change(packet);
    if is_to_be_written() {
        write_record();
    }
}

// Each step is a function of its own, with registers and a stack of its own: in a program they would take what the packet's
// story needs, and in one function more stack than is left.

/// This CPU's record and what goes with it.
#[inline(always)]
fn tracer() -> Option<&'static mut Tracer> {
    // SAFETY: the pointer is to this CPU's value of a live map, and nothing else runs on this CPU before a packet is done;
    // no step keeps the reference for the next.
    TRACER.get_ptr_mut(0).map(|tracer| unsafe { &mut *tracer })
}

/// Records what came of a packet, and the packet as it came in.
#[inline(never)]
fn begin_record(decision: u64, here: u32, program: Program, is_early: bool) {
    let (Some(tracer), Some(parsed)) = (tracer(), maps::remembered()) else { return };
    tracer.record = Record {
        source: parsed.source.by_words(),
        destination: parsed.destination.by_words(),
        given: parsed.destination.by_words(),
        source_port: parsed.source_port,
        destination_port: parsed.destination_port,
        given_port: parsed.destination_port,
        protocol: parsed.protocol,
        change: Change::None as u8,
        outcome: (decision >> 32) as u8,
        program: program as u8,
        is_early: is_early as u8,
        zero: 0,
        here,
        number: decision as u32,
    };
}

/// Records what was changed of a packet.
#[inline(never)]
fn record_change<P: Packet>(packet: &P) {
    let (Some(tracer), Some(parsed)) = (tracer(), maps::remembered()) else { return };
    match parsed.family {
        Family::V4 => record_change_of::<Ipv4>(packet, parsed, &mut tracer.record),
        Family::V6 => record_change_of::<Ipv6>(packet, parsed, &mut tracer.record),
    }
}

#[inline(always)]
fn record_change_of<I: IpHeader>(packet: &impl Packet, parsed: &Parsed, record: &mut Record) {
    let Some(header) = packet.read::<I>(IP_OFFSET) else { return };
    let (source_port, destination_port) = match packet.read::<Ports>(parsed.transport_offset()) {
        Some(ports) if parsed.has_transport() => (Port(ports.source), Port(ports.destination)),
        Some(_) | None => (parsed.source_port, parsed.destination_port),
    };
    let source = header.source();
    if !is_same(&source, &parsed.source) || source_port.0 != parsed.source_port.0 {
        record.given = source;
        record.given_port = source_port;
        record.change = Change::Source as u8;
        return;
    }
    let destination = header.destination();
    if !is_same(&destination, &parsed.destination) || destination_port.0 != parsed.destination_port.0 {
        record.given = destination;
        record.given_port = destination_port;
        record.change = Change::Destination as u8;
    }
}

/// Whether the record is asked for, and not one too many.
#[inline(never)]
fn is_to_be_written() -> bool {
    let Some(tracer) = tracer() else { return false };
    if !is_asked_for(&tracer.record) {
        return false;
    }
    // SAFETY: the helper has no precondition.
    let window = unsafe { bpf_jiffies64() }.checked_div(constant(&TRACE_WINDOW) as u64).unwrap_or_default();
    if tracer.window != window {
        tracer.window = window;
        tracer.used = 0;
    }
    if tracer.used >= RECORDS_PER_WINDOW {
        tracer.left_out += 1;
        return false;
    }
    tracer.used += 1;
    tracer.written += 1;
    true
}

/// Whether the filter takes a packet: one end, as it came in or as it is now, has the address and the port.
#[inline(always)]
fn is_asked_for(record: &Record) -> bool {
    let family = if record.source.is_v4() { 4 } else { 6 };
    is_any_or(constant(&TRACE_FAMILY), family)
        && is_any_or(constant(&TRACE_PROTOCOL), record.protocol.0 as u32)
        && (is_end(&record.source, record.source_port)
            || is_end(&record.destination, record.destination_port)
            || is_end(&record.given, record.given_port))
}

#[inline(always)]
fn is_end(address: &Addr, port: Port) -> bool {
    let is_any_address = TRACE_ADDRESS.iter().all(|word| constant(word) == 0);
    is_any_or(constant(&TRACE_PORT), port.0 as u32)
        && (is_any_address || TRACE_ADDRESS.iter().zip(address.0).all(|(wanted, word)| constant(wanted) == word))
}

/// Writes the record of this CPU.
#[inline(never)]
fn write_record() {
    let Some(tracer) = tracer() else { return };
    info!((), target: TARGET, "{:x}", tracer.record.as_bytes());
}

#[inline(always)]
const fn is_any_or(wanted: u32, is: u32) -> bool {
    wanted == 0 || wanted == is
}

#[inline(always)]
fn is_same(one: &Addr, other: &Addr) -> bool {
    one.0[0] == other.0[0] && one.0[1] == other.0[1] && one.0[2] == other.0[2] && one.0[3] == other.0[3]
}
