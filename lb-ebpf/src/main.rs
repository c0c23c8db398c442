//! The BPF program: entry points, and what a verdict means at the TC hook. Everything else is the library's.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod bpf;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_jiffies64,
    macros::classifier,
    programs::TcContext,
};
use bpf::{
    exit,
    kernel::BpfKernel,
    maps::{self, BEGIN_FLOW, QUERY, TOO_BIG},
    packet::TcPacket,
};
use lb_common::reason::{Action, Reason};
use lb_ebpf::{
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
        Some(exit) => exit::send(exit),
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
    fn work(self, packet: &mut TcPacket<'_>, kernel: &BpfKernel<'_>, parsed: &Parsed) -> Result<Step, Reason> {
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
}

#[inline(always)]
fn run(context: &TcContext, stage: Stage) -> i32 {
    if bpf::packet::has_vlan_tag(context) {
        // The VLAN's own device has a hook of its own, if it is ours.
        return TC_ACT_UNSPEC;
    }
    let mut packet = TcPacket::new(context);
    let result = match parse(&packet) {
        Ok(parsed) => match maps::remember(parsed) {
            Some(parsed) => stage.work(&mut packet, &BpfKernel::new(context), parsed),
            None => Err(Reason::Inconsistent),
        },
        Err(reason) => Err(reason),
    };
    let reason = match result {
        Ok(Step::Send(exit)) => return exit::send(exit),
        Ok(Step::NewFlow) => maps::tail_call(context, BEGIN_FLOW),
        Ok(Step::Query) => maps::tail_call(context, QUERY),
        Err(reason) => reason,
    };
    maps::count(reason);
    if reason == Reason::TooBig {
        // Should it come back, the packet is dropped without an answer.
        maps::tail_call(context, TOO_BIG);
    }
    match reason.action() {
        // "Unspecified" lets whatever program comes next on this hook have the packet.
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
    }
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
