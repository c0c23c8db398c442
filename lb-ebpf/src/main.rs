//! The BPF program: its entry points. What a verdict means at each hook is in `bpf/`, everything else in the library.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bpf;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_jiffies64,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use bpf::{
    Context,
    kernel::BpfKernel,
    maps::{self, BEGIN_FLOW, QUERY, TOO_BIG},
    tc::{self, TcPacket},
    trace::{self, Decision},
    xdp::{self, XdpPacket},
};
use lb_common::{reason::Reason, trace::Program};
use lb_ebpf::{
    packet::Packet,
    parse::{Parsed, parse},
    pipeline::{self, Hook, Step},
    too_big,
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

/// Tells the sender of a packet that does not fit. It has been counted.
#[classifier]
#[inline(always)]
fn too_big(context: TcContext) -> i32 {
    let mut packet = TcPacket::with_reach(&context, too_big::REACH as u32);
    let answered = match parse(&packet).ok().and_then(maps::remember) {
        Some(parsed) => too_big::answer(&mut packet, &BpfKernel::new(&context), parsed),
        None => None,
    };
    match answered {
        // The packet itself has been told of.
        Some(exit) => tc::send(exit, &mut Decision::pending()),
        None => TC_ACT_SHOT,
    }
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

    /// Whether packets come here from a device, and not from another program of ours.
    #[inline(always)]
    const fn is_first(&self) -> bool {
        match self {
            Self::Clients | Self::Both | Self::Backends(Hook::Ingress) => true,
            Self::Backends(Hook::Egress) | Self::NewFlow | Self::Query => false,
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
    if stage.is_first() {
        tc::restore_link(context);
    }
    let decided = if stage.is_told() { tc::decided(context) } else { None };
    let (program, mut decision) = (stage.program(), Decision::pending());
    let mut packet = TcPacket::new(context);
    let kernel = BpfKernel::new(context);
    let parsed = match parsed(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return tc::refuse(reason, &mut decision),
    };
    let result = match decided {
        Some(decided) => pipeline::carry_on(&mut packet, &kernel, parsed, decided).map(Step::Send),
        None => stage.work(&mut packet, &kernel, parsed),
    };
    let verdict = match result {
        Ok(Step::Send(exit)) => tc::send(exit, &mut decision),
        Ok(Step::NewFlow) => tc::refuse(maps::tail_call(context, BEGIN_FLOW), &mut decision),
        Ok(Step::Query) => tc::refuse(maps::tail_call(context, QUERY), &mut decision),
        Err(Reason::TooBig) => {
            let verdict = tc::refuse(Reason::TooBig, &mut decision);
            trace::tell(context, &packet, program, &decision);
            // Should it come back, the packet is dropped without an answer.
            maps::tail_call(context, TOO_BIG);
            return verdict;
        }
        Err(reason) => tc::refuse(reason, &mut decision),
    };
    trace::tell(context, &packet, program, &decision);
    verdict
}

#[inline(always)]
fn run_early(context: &XdpContext, stage: Stage) -> u32 {
    let (program, mut decision) = (stage.program(), Decision::pending());
    let mut packet = XdpPacket::new(context);
    let parsed = match parsed(&packet) {
        Ok(parsed) => parsed,
        Err(reason) => return xdp::refuse(reason, &mut decision),
    };
    let verdict = match stage.work(&mut packet, &BpfKernel::new(context), parsed) {
        Ok(Step::Send(exit)) => xdp::send(context, exit, &mut decision),
        Ok(Step::NewFlow) => xdp::refuse(maps::xdp_tail_call(context, BEGIN_FLOW), &mut decision),
        Ok(Step::Query) => xdp::refuse(maps::xdp_tail_call(context, QUERY), &mut decision),
        Err(reason) => xdp::refuse(reason, &mut decision),
    };
    trace::tell(context, &packet, program, &decision);
    verdict
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
