//! The BPF program: its entry points. What a verdict means at each hook is in `bpf/`, everything else in the library.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bpf;

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    helpers::bpf_jiffies64,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
#[cfg(feature = "trace")]
use bpf::trace;
use bpf::{
    Context,
    kernel::BpfKernel,
    maps::{self, BEGIN_FLOW, QUERY},
    tc::{self, TcPacket},
    xdp::{self, XdpPacket},
};
use lb_common::reason::Reason;
#[cfg(feature = "trace")]
use lb_common::trace::Program;
use lb_ebpf::{
    packet::Packet,
    parse::{Parsed, parse},
    pipeline::{self, Hook, Step},
};

/// Where clients come in.
#[classifier]
#[inline(always)]
fn ingress_clients(context: TcContext) -> i32 {
    run(&context, Stage::Clients)
}

/// Where replies of backends come in.
#[classifier]
#[inline(always)]
fn ingress_backends(context: TcContext) -> i32 {
    run(&context, Stage::Backends(Hook::Ingress))
}

/// Where both come in.
#[classifier]
#[inline(always)]
fn ingress_both(context: TcContext) -> i32 {
    run(&context, Stage::Both)
}

/// Where the stack sends replies out towards clients.
#[classifier]
#[inline(always)]
fn egress_clients(context: TcContext) -> i32 {
    run(&context, Stage::Backends(Hook::Egress))
}

/// Goes on with a packet that opens a flow.
#[classifier]
#[inline(always)]
fn begin_flow(context: TcContext) -> i32 {
    run(&context, Stage::NewFlow)
}

/// Goes on with a query of a per-packet service.
#[classifier]
#[inline(always)]
fn query(context: TcContext) -> i32 {
    run(&context, Stage::Query)
}

/// Where clients come in, before the kernel has made anything of the packet.
#[xdp(frags)]
#[inline(always)]
fn xdp_clients(context: XdpContext) -> u32 {
    run_early(&context, Stage::Clients)
}

/// Where replies of backends come in.
#[xdp(frags)]
#[inline(always)]
fn xdp_backends(context: XdpContext) -> u32 {
    run_early(&context, Stage::Backends(Hook::Ingress))
}

/// Where both come in.
#[xdp(frags)]
#[inline(always)]
fn xdp_both(context: XdpContext) -> u32 {
    run_early(&context, Stage::Both)
}

/// Goes on with a packet that opens a flow.
#[xdp(frags)]
#[inline(always)]
fn xdp_begin_flow(context: XdpContext) -> u32 {
    run_early(&context, Stage::NewFlow)
}

/// Goes on with a query of a per-packet service.
#[xdp(frags)]
#[inline(always)]
fn xdp_query(context: XdpContext) -> u32 {
    run_early(&context, Stage::Query)
}

/// The low half of the kernel's jiffies, by which the controller learns their frequency.
#[classifier]
#[inline(always)]
fn read_jiffies(_context: TcContext) -> i32 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_jiffies64() as i32 }
}

/// What a program does with a packet that was parsed.
enum Stage {
    Clients,
    Backends(Hook),
    Both,
    NewFlow,
    Query,
}

impl Stage {
    #[inline(always)]
    fn work<P: Packet, C: Context>(
        self,
        packet: &mut P,
        kernel: &BpfKernel<'_, C>,
        parsed: &Parsed,
    ) -> Result<Step, Reason> {
        match self {
            Self::Clients => pipeline::balance(packet, kernel, parsed),
            Self::Backends(hook) => pipeline::answer(packet, kernel, parsed, hook).map(Step::Send),
            Self::Both => match pipeline::balance(packet, kernel, parsed) {
                Err(Reason::NotOurs) => pipeline::answer(packet, kernel, parsed, Hook::Ingress).map(Step::Send),
                result => result,
            },
            Self::NewFlow => pipeline::begin_flow(packet, kernel, parsed).map(Step::Send),
            Self::Query => pipeline::query(packet, kernel, parsed).map(Step::Send),
        }
    }

    /// What the trace calls it.
    #[cfg(feature = "trace")]
    #[inline(always)]
    const fn program(&self) -> Program {
        match self {
            Self::Clients => Program::Clients,
            Self::Backends(Hook::Ingress) => Program::Backends,
            Self::Backends(Hook::Egress) => Program::Egress,
            Self::Both => Program::Both,
            Self::NewFlow => Program::BeginFlow,
            Self::Query => Program::Query,
        }
    }

    /// Whether packets come here that an XDP program of the same interface may have decided on.
    #[inline(always)]
    const fn is_told(&self) -> bool {
        match self {
            Self::Clients | Self::Both => true,
            Self::Backends(_) | Self::NewFlow | Self::Query => false,
        }
    }
}

#[inline(always)]
fn run(context: &TcContext, stage: Stage) -> i32 {
    if tc::has_vlan_tag(context) {
        // The VLAN's own device has a hook of its own, if it is ours.
        return TC_ACT_UNSPEC;
    }
    let decided = if stage.is_told() { tc::decided(context) } else { None };
    #[cfg(feature = "trace")]
    let (program, mut note) = (stage.program(), trace::Note::empty());
    let mut packet = TcPacket::new(context);
    let kernel = BpfKernel::new(context);
    let result = match parsed(&packet) {
        Ok(parsed) => {
            let result = match decided {
                Some(decided) => pipeline::carry_on(&mut packet, &kernel, parsed, decided).map(Step::Send),
                None => stage.work(&mut packet, &kernel, parsed),
            };
            #[cfg(feature = "trace")]
            note.write(&result);
            result
        }
        Err(reason) => Err(reason),
    };
    let verdict = verdict(context, result);
    #[cfg(feature = "trace")]
    trace::tell(context, &packet, program, &note);
    verdict
}

#[inline(always)]
fn verdict(context: &TcContext, result: Result<Step, Reason>) -> i32 {
    match result {
        Ok(Step::Send(exit)) => tc::send(exit),
        Ok(Step::NewFlow) => tc::refuse(maps::tail_call(context, BEGIN_FLOW)),
        Ok(Step::Query) => tc::refuse(maps::tail_call(context, QUERY)),
        Err(reason) => tc::refuse(reason),
    }
}

#[inline(always)]
fn run_early(context: &XdpContext, stage: Stage) -> u32 {
    #[cfg(feature = "trace")]
    let (program, mut note) = (stage.program(), trace::Note::empty());
    let mut packet = XdpPacket::new(context);
    let result = match parsed(&packet) {
        Ok(parsed) => {
            let result = stage.work(&mut packet, &BpfKernel::new(context), parsed);
            #[cfg(feature = "trace")]
            note.write(&result);
            result
        }
        Err(reason) => Err(reason),
    };
    let verdict = early_verdict(context, result);
    #[cfg(feature = "trace")]
    trace::tell(context, &packet, program, &note);
    verdict
}

#[inline(always)]
fn early_verdict(context: &XdpContext, result: Result<Step, Reason>) -> u32 {
    match result {
        Ok(Step::Send(exit)) => xdp::send(context, exit),
        Ok(Step::NewFlow) => xdp::refuse(maps::xdp_tail_call(context, BEGIN_FLOW)),
        Ok(Step::Query) => xdp::refuse(maps::xdp_tail_call(context, QUERY)),
        Err(reason) => xdp::refuse(reason),
    }
}

#[inline(always)]
fn parsed(packet: &impl Packet) -> Result<&'static Parsed, Reason> {
    maps::remember(parse(packet)?).ok_or(Reason::Inconsistent)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the build refuses an object that can panic.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
