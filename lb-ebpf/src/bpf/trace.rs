//! The decision trace: one record a packet, by way of `aya-log`, at the end of whichever program decided.
//!
//! All of it is behind [`is_on`]. The constant is zero unless the controller was asked for a trace, and the verifier takes
//! out what no packet can reach then.

use aya_ebpf::{helpers::bpf_jiffies64, macros::map, maps::PerCpuArray};
use aya_log_ebpf::info;
use lb_common::{
    addr::{Addr, Family, Port},
    backend::BackendId,
    reason::Reason,
    service::FrontendId,
    trace::{Change, Outcome, Program, RECORDS_PER_WINDOW, Record, TARGET, Tracer},
};
use lb_ebpf::{
    packet::Packet,
    parse::{IP_OFFSET, Parsed},
    pipeline::{Decided, Exit, Step},
    wire::{IpHeader, Ipv4, Ipv6, Ports},
};

use zerocopy::IntoBytes as _;

use super::{Context, maps::constant};

/// Whether anything is traced.
#[unsafe(no_mangle)]
static TRACE: u32 = 0;
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

/// Tells what came of a packet, if it is asked for. A packet that another program goes on with is told of by that one.
#[inline(always)]
pub(crate) fn tell<P: Packet, C: Context>(
    context: &C,
    packet: &P,
    parsed: &Parsed,
    program: Program,
    result: &Result<Step, Reason>,
) {
    if !is_on() {
        return;
    }
    let told = match *result {
        Ok(Step::NewFlow | Step::Query) => return,
        Ok(Step::Send(Exit::Stack)) => Told::of(Outcome::Stack),
        Ok(Step::Send(Exit::Neighbour { ifindex })) => Told { exit: ifindex, ..Told::of(Outcome::Neighbour) },
        Ok(Step::Send(Exit::Peer { ifindex })) => Told { exit: ifindex, ..Told::of(Outcome::Peer) },
        Ok(Step::Send(Exit::Link { ifindex })) => Told { exit: ifindex, ..Told::of(Outcome::Link) },
        Ok(Step::Send(Exit::Later(decided))) => Told { decided, ..Told::of(Outcome::Later) },
        Err(reason) => Told { reason: reason as u8, ..Told::of(Outcome::Refused) },
    };
    write(context, packet, parsed, program, told);
}

#[inline(always)]
fn is_on() -> bool {
    constant(&TRACE) != 0
}

/// What came of a packet, in numbers.
struct Told {
    outcome: Outcome,
    reason: u8,
    exit: u32,
    decided: Decided,
}

impl Told {
    #[inline(always)]
    fn of(outcome: Outcome) -> Self {
        let decided = Decided { frontend: FrontendId(0), backend: BackendId(0) };
        Self { outcome, reason: 0, exit: 0, decided }
    }
}

#[inline(always)]
fn write<P: Packet, C: Context>(context: &C, packet: &P, parsed: &Parsed, program: Program, told: Told) {
    let Some(tracer) = TRACER.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is to this CPU's value of a live map, and nothing else runs on this CPU before it is done.
    let tracer = unsafe { &mut *tracer };
    let (change, given, given_port) = changed(packet, parsed);
    tracer.record = Record {
        source: parsed.source.by_words(),
        destination: parsed.destination.by_words(),
        given,
        source_port: parsed.source_port,
        destination_port: parsed.destination_port,
        given_port,
        protocol: parsed.protocol,
        change: change as u8,
        outcome: told.outcome as u8,
        program: program as u8,
        reason: told.reason,
        is_early: P::IS_EARLY as u8,
        here: context.ifindex(),
        exit: told.exit,
        frontend: told.decided.frontend,
        backend: told.decided.backend,
    };
    let record = &tracer.record;
    if !is_asked_for(record, parsed.family) {
        return;
    }
    // SAFETY: the helper has no precondition.
    let window = unsafe { bpf_jiffies64() }.checked_div(constant(&TRACE_WINDOW) as u64).unwrap_or_default();
    if tracer.window != window {
        tracer.window = window;
        tracer.used = 0;
    }
    if tracer.used >= RECORDS_PER_WINDOW {
        tracer.left_out += 1;
        return;
    }
    tracer.used += 1;
    tracer.written += 1;
    info!(context, target: TARGET, "{:x}", record.as_bytes());
}

/// Which end of the packet is another than before, and what it is now.
#[inline(always)]
fn changed(packet: &impl Packet, parsed: &Parsed) -> (Change, Addr, Port) {
    let (source, destination) = match parsed.family {
        Family::V4 => addresses::<Ipv4>(packet, parsed),
        Family::V6 => addresses::<Ipv6>(packet, parsed),
    };
    let (source_port, destination_port) = match packet.read::<Ports>(parsed.transport_offset()) {
        Some(ports) if parsed.has_transport() => (Port(ports.source), Port(ports.destination)),
        Some(_) | None => (parsed.source_port, parsed.destination_port),
    };
    if !is_same(&source, &parsed.source) || source_port.0 != parsed.source_port.0 {
        return (Change::Source, source, source_port);
    }
    if !is_same(&destination, &parsed.destination) || destination_port.0 != parsed.destination_port.0 {
        return (Change::Destination, destination, destination_port);
    }
    (Change::None, destination, destination_port)
}

#[inline(always)]
fn addresses<I: IpHeader>(packet: &impl Packet, parsed: &Parsed) -> (Addr, Addr) {
    match packet.read::<I>(IP_OFFSET) {
        Some(header) => (header.source(), header.destination()),
        None => (parsed.source.by_words(), parsed.destination.by_words()),
    }
}

/// Whether the filter takes a packet: one end, as it came in or as it is now, has the address and the port.
#[inline(always)]
fn is_asked_for(record: &Record, family: Family) -> bool {
    let number = match family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    is_any_or(constant(&TRACE_FAMILY), number)
        && is_any_or(constant(&TRACE_PROTOCOL), record.protocol.0 as u32)
        && (is_end(&record.source, record.source_port)
            || is_end(&record.destination, record.destination_port)
            || is_end(&record.given, record.given_port))
}

#[inline(always)]
fn is_end(address: &Addr, port: Port) -> bool {
    is_any_or(constant(&TRACE_PORT), port.0 as u32)
        && (TRACE_ADDRESS.iter().all(|word| constant(word) == 0)
            || TRACE_ADDRESS.iter().zip(address.0).all(|(wanted, word)| constant(wanted) == word))
}

#[inline(always)]
const fn is_any_or(wanted: u32, is: u32) -> bool {
    wanted == 0 || wanted == is
}

#[inline(always)]
fn is_same(one: &Addr, other: &Addr) -> bool {
    one.0[0] == other.0[0] && one.0[1] == other.0[1] && one.0[2] == other.0[2] && one.0[3] == other.0[3]
}
