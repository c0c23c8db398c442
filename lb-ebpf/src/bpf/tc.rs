//! A packet at the TC hook, and how it leaves there.
//!
//! The layer-4 checksum goes through the kernel's helper, because what a local stack sent carries an unfinished one
//! (`CHECKSUM_PARTIAL`) and what a device received may carry a sum of all bytes (`CHECKSUM_COMPLETE`).

use core::{
    ffi::c_void,
    mem::{MaybeUninit, offset_of},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_hdr_start_off::BPF_HDR_START_MAC,
    },
    helpers::{
        bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_load_bytes_relative, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use lb_common::{
    addr::{Addr, Family, Protocol},
    device::Abilities,
    reason::{Action, Reason},
    trace::Outcome,
};
use lb_ebpf::{
    packet::{Answerable, Edit, Link, Packet, Side, TransportEdit},
    parse::{IP_OFFSET, Parsed},
    pipeline::{Decided, Exit},
    rewrite::address_offset,
    too_big::HEADERS_MAX,
    wire::{DESTINATION_PORT_OFFSET, IpHeader, Ipv4, Ipv6, SOURCE_PORT_OFFSET, checksum::Sum, checksum_offset},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Context, maps, note::Note, trace::Decision, word_of};

/// Bytes that are made directly readable when the packet has them: Ethernet, IPv6, a few extension headers, TCP.
const HEADERS: u32 = 128;

/// Bytes that the kernel sums in one call.
const SUMMED_MAX: usize = 512;

/// The kernel's word for a packet to the device's own address (`linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

impl Context for TcContext {
    #[inline(always)]
    fn pointer(&self) -> *mut c_void {
        self.skb.skb.cast()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is the program's own.
        unsafe { word_of::<{ offset_of!(__sk_buff, ifindex) }>(self.pointer()) }
    }
}

/// The verdict by which a packet leaves.
#[inline(always)]
pub(crate) fn send(exit: Exit, decision: &mut Decision) -> i32 {
    let verdict = match exit {
        // Nothing is left to a later hook from here, but that one would get it.
        Exit::Stack | Exit::Later(_) => {
            decision.is(Outcome::Stack, 0);
            return TC_ACT_UNSPEC;
        }
        Exit::Neighbour { ifindex } => {
            decision.is(Outcome::Neighbour, ifindex);
            // SAFETY: a null parameter block of length zero lets the kernel look up route and neighbour itself.
            unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) }
        }
        Exit::Peer { ifindex } => {
            decision.is(Outcome::Peer, ifindex);
            // SAFETY: the helper takes numbers only.
            unsafe { bpf_redirect_peer(ifindex, 0) }
        }
        Exit::Link { ifindex } => {
            decision.is(Outcome::Link, ifindex);
            // SAFETY: the helper takes numbers only.
            unsafe { bpf_redirect(ifindex, 0) }
        }
    };
    if verdict < 0 { TC_ACT_SHOT } else { verdict as i32 }
}

/// The verdict on a packet that is not balanced.
#[inline(always)]
pub(crate) fn refuse(reason: Reason, decision: &mut Decision) -> i32 {
    decision.is_refusal(reason);
    maps::count(reason);
    match reason.action() {
        // "Unspecified" lets whatever program comes next on this hook have the packet.
        Action::Pass => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
    }
}

/// Puts the link-layer header back in front of the packet, if it is not there.
///
/// A kernel that copies a packet for XDP in the stack forgets how long that header is, and then begins the packet behind
/// it (seen with 6.18: `skb_pp_cow_data` leaves `mac_len` at zero). A packet that comes in has been measured without it.
#[inline(always)]
pub(crate) fn restore_link(context: &TcContext) {
    let skb = context.skb.skb;
    // SAFETY: the context's pointer is valid while the program runs.
    if unsafe { (*skb).len != (*skb).wire_len } {
        return;
    }
    // Not cleared before, which would be done byte by byte.
    let mut header = MaybeUninit::<[u16; IP_OFFSET / 2]>::uninit();
    let length = IP_OFFSET as u32;
    // SAFETY: the helper writes that many bytes to live memory, zeros if it fails, and checks the packet's bounds itself.
    let loaded =
        unsafe { bpf_skb_load_bytes_relative(skb.cast(), 0, header.as_mut_ptr().cast(), length, BPF_HDR_START_MAC) };
    // SAFETY: the helper has just written all of it, and any bytes are words.
    let header = unsafe { header.assume_init_ref() };
    // Whoever measures otherwise, as a test of the kernel's does, has the header where it belongs.
    if loaded != 0 || begins_with(context, header) {
        return;
    }
    // SAFETY: the helper takes the context; every pointer into the packet is derived anew afterwards.
    if unsafe { bpf_skb_change_head(skb, length, 0) } == 0 {
        // SAFETY: the helper copies that many bytes from a live array and checks the packet's bounds itself.
        unsafe { bpf_skb_store_bytes(skb, 0, header.as_ptr().cast(), length, 0) };
    }
}

#[inline(always)]
fn begins_with(context: &TcContext, header: &[u16; IP_OFFSET / 2]) -> bool {
    let start = context.data();
    if start + IP_OFFSET > context.data_end() {
        return false;
    }
    let mut differences = 0;
    for (at, word) in header.iter().enumerate() {
        // SAFETY: the end of the header was just compared. BPF on the supported machines loads words at any address.
        differences |= unsafe { *((start + at * 2) as *const u16) } ^ word;
    }
    differences == 0
}

/// What the XDP program of the same interface has decided for this packet, if it left it to us. Read before the packet's
/// bytes are asked for.
#[inline(always)]
pub(crate) fn decided(context: &TcContext) -> Option<Decided> {
    // SAFETY: the context's pointer is valid while the program runs.
    let (note, end) = unsafe { ((*context.skb.skb).data_meta as usize, context.data()) };
    if note + size_of::<Note>() > end {
        return None;
    }
    // SAFETY: the end of the note was just compared.
    unsafe { (*(note as *const Note)).read() }
}

/// Whether the packet carries a VLAN tag, which the kernel has taken out of its bytes.
#[inline(always)]
pub(crate) fn has_vlan_tag(context: &TcContext) -> bool {
    const VLAN_ID: u32 = 0xfff;
    // SAFETY: the context's pointer is valid while the program runs.
    unsafe { (*context.skb.skb).vlan_present != 0 && (*context.skb.skb).vlan_tci & VLAN_ID != 0 }
}

/// A packet at the TC hook.
pub(crate) struct TcPacket<'c> {
    context: &'c TcContext,
}

impl<'c> TcPacket<'c> {
    /// The packet of `context`, its headers in reach.
    #[inline(always)]
    pub(crate) fn new(context: &'c TcContext) -> Self {
        Self::with_reach(context, HEADERS)
    }

    /// The packet of `context`, so many bytes of it in reach when it has them.
    #[inline(always)]
    pub(crate) fn with_reach(context: &'c TcContext, reach: u32) -> Self {
        let length = context.len();
        let linear = context.data_end() - context.data();
        if linear < reach as usize && linear < length as usize {
            let wanted = if length < reach { length } else { reach };
            // Where it fails, the headers that are out of reach count as truncated.
            // SAFETY: the helper takes the context; every pointer into the packet is derived anew afterwards.
            unsafe { bpf_skb_pull_data(context.skb.skb, wanted) };
        }
        Self { context }
    }

    /// A pointer to a `T` at `offset`, if all of it is in reach.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let start = self.context.data() + offset;
        // The verifier takes only this form: a pointer into the packet, compared with its end.
        if start + size_of::<T>() > self.context.data_end() { None } else { Some(start as *mut T) }
    }

    #[inline(always)]
    fn write<T>(&mut self, offset: usize, value: T) -> Result<(), Reason> {
        let place = self.at::<T>(offset).ok_or(Reason::RewriteRefused)?;
        // SAFETY: `at` has compared the end. BPF on the supported machines stores words at any address.
        unsafe { *place = value };
        Ok(())
    }

    /// Writes through the helper, which keeps a sum of all bytes (`CHECKSUM_COMPLETE`) true.
    #[inline(always)]
    fn write_summed<T>(&mut self, offset: usize, value: &T) -> Result<(), Reason> {
        // SAFETY: the helper copies that many bytes from a live reference and checks the packet's bounds itself.
        let result = unsafe {
            bpf_skb_store_bytes(
                self.context.skb.skb,
                offset as u32,
                (&raw const *value).cast(),
                size_of::<T>() as u32,
                BPF_F_RECOMPUTE_CSUM as u64,
            )
        };
        accepted(result)
    }

    /// Puts so many bytes behind the link-layer header, or takes them away there.
    #[inline(always)]
    fn make_room(&mut self, bytes: i32) -> Result<(), Reason> {
        // SAFETY: the helper checks the lengths itself; every pointer into the packet is derived anew afterwards.
        accepted(unsafe { bpf_skb_adjust_room(self.context.skb.skb, bytes, BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    fn replace_sum(&mut self, offset: usize, from: u64, to: u64, flags: u64) -> Result<(), Reason> {
        // SAFETY: the helper checks the packet's bounds itself.
        accepted(unsafe { bpf_l4_csum_replace(self.context.skb.skb, offset as u32, from, to, flags) })
    }

    /// The address as it counts in the transport checksum's pseudo header.
    #[inline(always)]
    fn replace_address_sum(&mut self, edit: &Edit, transport: &TransportEdit) -> Result<(), Reason> {
        let offset = transport.offset + checksum_offset(transport.protocol);
        let flags = BPF_F_PSEUDO_HDR as u64 | zero_flag(transport.protocol);
        match edit.family {
            Family::V4 => self.replace_sum(
                offset,
                edit.old_address.v4_word() as u64,
                edit.new_address.v4_word() as u64,
                flags | size_of::<u32>() as u64,
            ),
            Family::V6 => {
                let difference = difference(&edit.old_address, &edit.new_address);
                self.replace_sum(offset, 0, difference, flags)
            }
        }
    }

    #[inline(always)]
    fn replace_port(&mut self, side: Side, transport: &TransportEdit) -> Result<(), Reason> {
        let (old, new) = (transport.old_port, transport.new_port);
        if old == new {
            return Ok(());
        }
        let flags = zero_flag(transport.protocol) | size_of::<u16>() as u64;
        let checksum = transport.offset + checksum_offset(transport.protocol);
        self.replace_sum(checksum, old.0 as u64, new.0 as u64, flags)?;
        let offset = match side {
            Side::Source => SOURCE_PORT_OFFSET,
            Side::Destination => DESTINATION_PORT_OFFSET,
        };
        self.write(transport.offset + offset, new.0)
    }

    /// The IPv4 header carries a checksum of its own, which hides every change of the header from all other sums.
    #[inline(always)]
    fn rewrite_ipv4(&mut self, edit: &Edit) -> Result<(), Reason> {
        let header: Ipv4 = self.read(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
        let mut sum = Sum::default().exchange_address(Family::V4, &edit.old_address, &edit.new_address);
        if edit.is_hop {
            let hops = header.hop_limit() - 1;
            sum = sum.exchange(header.hop_word(header.hop_limit()), header.hop_word(hops));
            self.write(IP_OFFSET + Ipv4::HOP_LIMIT_OFFSET, hops)?;
        }
        self.write(IP_OFFSET + Ipv4::CHECKSUM_OFFSET, sum.apply(header.checksum()))?;
        self.write(IP_OFFSET + address_offset::<Ipv4>(edit.side), edit.new_address.v4_word())
    }

    #[inline(always)]
    fn rewrite_ipv6(&mut self, edit: &Edit) -> Result<(), Reason> {
        if edit.is_hop {
            let header: Ipv6 = self.read(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
            self.write_summed(IP_OFFSET + Ipv6::HOP_LIMIT_OFFSET, &(header.hop_limit() - 1))?;
        }
        self.write_summed(IP_OFFSET + address_offset::<Ipv6>(edit.side), &edit.new_address.0)
    }
}

impl Packet for TcPacket<'_> {
    const IS_EARLY: bool = false;

    #[inline(always)]
    fn length(&self) -> usize {
        self.context.len() as usize
    }

    #[inline(always)]
    fn segments(&self) -> u64 {
        // SAFETY: the context's pointer is valid while the program runs.
        let segments = unsafe { (*self.context.skb.skb).gso_segs };
        if segments == 0 { 1 } else { segments as u64 }
    }

    #[inline(always)]
    fn largest(&self, parsed: &Parsed) -> usize {
        // SAFETY: the context's pointer is valid while the program runs.
        let segment = unsafe { (*self.context.skb.skb).gso_size };
        if segment == 0 { parsed.length as usize } else { parsed.headers() + segment as usize }
    }

    #[inline(always)]
    fn can_be_handed(&self, _parsed: &Parsed, _device: Abilities) -> bool {
        true
    }

    #[inline(always)]
    fn is_to_device(&self) -> bool {
        // SAFETY: the context's pointer is valid while the program runs.
        unsafe { (*self.context.skb.skb).pkt_type == PACKET_HOST }
    }

    #[inline(always)]
    fn read<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        // SAFETY: `at` has compared the end, and any bytes are a `T`. BPF on the supported machines loads words at any
        // address.
        self.at::<T>(offset).map(|place| unsafe { *place })
    }

    #[inline(always)]
    fn rewrite(&mut self, edit: &Edit) -> Result<(), Reason> {
        if edit.has_transport {
            self.replace_address_sum(edit, &edit.transport)?;
            self.replace_port(edit.side, &edit.transport)?;
        }
        match edit.family {
            Family::V4 => self.rewrite_ipv4(edit),
            Family::V6 => self.rewrite_ipv6(edit),
        }
    }

    #[inline(always)]
    fn set_link(&mut self, link: &Link) -> Result<(), Reason> {
        self.write(0, *link)
    }
}

impl Answerable for TcPacket<'_> {
    #[inline(always)]
    fn sum<const LENGTH: usize>(&self, offset: usize) -> Option<Sum> {
        const { assert!(LENGTH <= 3 * SUMMED_MAX) };
        let start = self.at::<[u8; LENGTH]>(offset)?.cast::<u8>();
        let sum = Sum::default().add(sum_of::<LENGTH>(start, 0));
        let sum = sum.add(sum_of::<LENGTH>(start, SUMMED_MAX)).add(sum_of::<LENGTH>(start, 2 * SUMMED_MAX));
        Some(sum)
    }

    /// A packet whose sum is unfinished would have it finished where it leaves, and the sum of what encloses it be wrong.
    /// The kernel takes it for a packet without one as soon as the place where the sum starts has been taken out of it;
    /// so the headers are taken out and put back.
    #[inline(always)]
    fn enclose<T: IntoBytes + Immutable>(&mut self, kept: usize, header: &T) -> Result<(), Reason> {
        let headers: [u32; HEADERS_MAX / 4] = self.read(IP_OFFSET).ok_or(Reason::RewriteRefused)?;
        // SAFETY: the helper checks the length itself. What was to be cut into segments is one packet after it.
        accepted(unsafe { bpf_skb_change_tail(self.context.skb.skb, (IP_OFFSET + kept) as u32, 0) })?;
        self.make_room(-(HEADERS_MAX as i32))?;
        self.make_room((size_of::<T>() + HEADERS_MAX) as i32)?;
        self.write_summed(IP_OFFSET, header)?;
        self.write_summed(IP_OFFSET + size_of::<T>(), &headers)
    }
}

/// RFC 768: a UDP checksum of zero means none and stays so; a sum that comes out as zero is sent as all ones.
#[inline(always)]
const fn zero_flag(protocol: Protocol) -> u64 {
    match protocol {
        Protocol::UDP => BPF_F_MARK_MANGLED_0 as u64,
        Protocol(_) => 0,
    }
}

/// The sum of what lies at `from` and after it, of `LENGTH` readable bytes, as far as the helper goes at once.
#[inline(always)]
fn sum_of<const LENGTH: usize>(start: *mut u8, from: usize) -> u32 {
    let rest = LENGTH.saturating_sub(from);
    let length = if rest > SUMMED_MAX { SUMMED_MAX } else { rest };
    if length == 0 {
        return 0;
    }
    // SAFETY: the caller has compared the end of all `LENGTH` bytes, of which these are a part.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, start.add(from).cast(), length as u32, 0) as u32 }
}

#[inline(always)]
fn difference(old: &Addr, new: &Addr) -> u64 {
    let (mut old, mut new) = (old.0, new.0);
    // SAFETY: both buffers are live and of that many bytes.
    unsafe { bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0) as u64 }
}

#[inline(always)]
const fn accepted(result: i64) -> Result<(), Reason> {
    if result < 0 { Err(Reason::RewriteRefused) } else { Ok(()) }
}
