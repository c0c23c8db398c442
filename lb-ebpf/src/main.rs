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
    maps::{self, BEGIN_FLOW, QUERY},
    packet::TcPacket,
};
use lb_common::reason::{Action, Reason};
use lb_ebpf::{
    parse::{Parsed, parse},
    pipeline::{self, Hook, Step},
};

/// Where clients come in.
#[classifier]
fn ingress_clients(context: TcContext) -> i32 {
    run(&context, |packet, parsed| pipeline::balance(packet, &BpfKernel::new(&context), parsed))
}

/// Where replies of backends come in.
#[classifier]
fn ingress_backends(context: TcContext) -> i32 {
    run(&context, |packet, parsed| {
        pipeline::answer(packet, &BpfKernel::new(&context), parsed, Hook::Ingress).map(Step::Send)
    })
}

/// Where both come in.
#[classifier]
fn ingress_both(context: TcContext) -> i32 {
    run(&context, |packet, parsed| match pipeline::balance(packet, &BpfKernel::new(&context), parsed) {
        Err(Reason::NotOurs) => {
            pipeline::answer(packet, &BpfKernel::new(&context), parsed, Hook::Ingress).map(Step::Send)
        }
        result => result,
    })
}

/// Where the stack sends replies out towards clients.
#[classifier]
fn egress_clients(context: TcContext) -> i32 {
    run(&context, |packet, parsed| {
        pipeline::answer(packet, &BpfKernel::new(&context), parsed, Hook::Egress).map(Step::Send)
    })
}

/// Goes on with a packet that opens a flow.
#[classifier]
fn begin_flow(context: TcContext) -> i32 {
    run(&context, |packet, parsed| pipeline::begin_flow(packet, &BpfKernel::new(&context), parsed).map(Step::Send))
}

/// Goes on with a query of a per-packet service.
#[classifier]
fn query(context: TcContext) -> i32 {
    run(&context, |packet, parsed| pipeline::query(packet, &BpfKernel::new(&context), parsed).map(Step::Send))
}

/// The low half of the kernel's jiffies, by which the controller learns their frequency.
#[classifier]
fn read_jiffies(_context: TcContext) -> i32 {
    // SAFETY: the helper has no precondition.
    unsafe { bpf_jiffies64() as i32 }
}

#[inline(always)]
fn run(context: &TcContext, stage: impl FnOnce(&mut TcPacket<'_>, &Parsed) -> Result<Step, Reason>) -> i32 {
    let mut packet = TcPacket::new(context);
    let result = match parse(&packet) {
        Ok(parsed) => match maps::remember(parsed) {
            Some(parsed) => stage(&mut packet, parsed),
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
