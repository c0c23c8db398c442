//! A packet at the XDP hook, and how it leaves there: out of a device, or to the TC program of the same interface, which
//! sees whatever this hook leaves alone.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT},
        xdp_md,
    },
    helpers::{bpf_redirect, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    device::{Abilities, Device},
    reason::{Action, Reason},
    stats::EarlyStats,
    trace::Outcome,
};
use lb_ebpf::{
    packet::{Edit, Link, Packet},
    parse::{IP_OFFSET, Parsed},
    pipeline::{Decided, Exit},
    rewrite::{self, Bytes},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Context, maps, note::Note, trace::Decision, word_of};

impl Context for XdpContext {
    #[inline(always)]
    fn pointer(&self) -> *mut c_void {
        self.ctx.cast()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { word_of::<{ offset_of!(xdp_md, ingress_ifindex) }>(self.pointer()) }
    }
}

/// The verdict by which a packet leaves.
#[inline(always)]
pub(crate) fn send(context: &XdpContext, exit: Exit, decision: &mut Decision) -> u32 {
    match exit {
        Exit::Link { ifindex } => {
            decision.is(Outcome::Link, ifindex);
            count(context, EarlyStats { sent: 1, left: 0 });
            // SAFETY: the helper takes numbers only.
            match unsafe { bpf_redirect(ifindex, 0) } as u32 {
                XDP_REDIRECT => XDP_REDIRECT,
                _ => XDP_DROP,
            }
        }
        Exit::Later(decided) => {
            decision.is(Outcome::Later, decided.0);
            count(context, EarlyStats { sent: 0, left: 1 });
            leave_note(context, decided);
            XDP_PASS
        }
        // Untouched: the TC program comes to the same.
        Exit::Stack | Exit::Neighbour { .. } | Exit::Peer { .. } => {
            decision.is(Outcome::Later, Decided::NOTHING.0);
            count(context, EarlyStats { sent: 0, left: 1 });
            XDP_PASS
        }
    }
}

/// The verdict on a packet that is not balanced here. What passes is counted by the TC program, which sees it next.
#[inline(always)]
pub(crate) fn refuse(reason: Reason, decision: &mut Decision) -> u32 {
    decision.is_refusal(reason);
    match reason.action() {
        Action::Pass => XDP_PASS,
        Action::Drop => {
            maps::count(reason);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn count(context: &XdpContext, stats: EarlyStats) {
    maps::count_early(Device::place(context.ifindex()), stats);
}

/// Where a driver has no room for a note, the TC program finds a flow again, and a query or what no rule takes
/// becomes another choice.
#[inline(always)]
fn leave_note(context: &XdpContext, decided: Decided) {
    if !decided.is_told() {
        return;
    }
    // SAFETY: the helper takes the context; every pointer into the packet is derived anew afterwards.
    if unsafe { bpf_xdp_adjust_meta(context.ctx, -(size_of::<Note>() as i32)) } != 0 {
        return;
    }
    let note = context.metadata();
    if note + size_of::<Note>() <= context.data() {
        // SAFETY: the end of the note was just compared.
        unsafe { (*(note as *mut Note)).write(decided) };
    }
}

/// A packet at the XDP hook.
pub(crate) struct XdpPacket<'c> {
    context: &'c XdpContext,
}

impl<'c> XdpPacket<'c> {
    /// The packet of `context`.
    #[inline(always)]
    pub(crate) fn new(context: &'c XdpContext) -> Self {
        Self { context }
    }

    /// A pointer to a `T` at `offset`, if all of it is in reach.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.context.data() + offset;
        // The verifier takes only this form: a pointer into the packet, compared with its end.
        if start + size_of::<T>() > self.context.data_end() { None } else { Some(start as *mut T) }
    }
}

impl Bytes for XdpPacket<'_> {
    #[inline(always)]
    fn get<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared the end, and any bytes are a `T`. BPF on the supported machines loads words at any
        // address.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn put<T: IntoBytes + Immutable + Copy>(&mut self, offset: usize, value: T) -> Result<(), Reason> {
        let place = self.at::<T>(offset).ok_or(Reason::RewriteRefused)?;
        // SAFETY: `at` has compared the end. BPF on the supported machines stores words at any address.
        unsafe { *place = value };
        Ok(())
    }
}

impl Packet for XdpPacket<'_> {
    const IS_EARLY: bool = true;

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the helper takes the context and has no other precondition.
        unsafe { bpf_xdp_get_buff_len(self.context.ctx) as usize }
    }

    #[inline(always)]
    fn segments(&self) -> u64 {
        1
    }

    #[inline(always)]
    fn largest(&self, parsed: &Parsed) -> usize {
        // What was merged is longer than any link takes, and is left to the TC program, which knows how it is parted.
        parsed.length as usize
    }

    #[inline(always)]
    fn can_be_handed(&self, parsed: &Parsed, device: Abilities) -> bool {
        let is_in_pieces = IP_OFFSET + parsed.length as usize > self.context.data_end() - self.context.data();
        let needed = if is_in_pieces { Abilities::SENDS.with(Abilities::SENDS_PIECES) } else { Abilities::SENDS };
        device.has(needed) && !rewrite::is_unfinished(self, parsed)
    }

    #[inline(always)]
    fn is_to_device(&self) -> bool {
        let ifindex = self.context.ifindex();
        let (Some(device), Some(to)) = (maps::device(Device::place(ifindex)), self.get::<[u16; 3]>(0)) else {
            return false;
        };
        let address = device.address;
        device.ifindex == ifindex && address[0] == to[0] && address[1] == to[1] && address[2] == to[2]
    }

    #[inline(always)]
    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        self.get(offset)
    }

    #[inline(always)]
    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        rewrite::rewrite(self, edit)
    }

    #[inline(always)]
    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        self.put(0, *link)
    }
}
