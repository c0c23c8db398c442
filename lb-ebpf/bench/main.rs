//! The programs of `cargo xtask bench`: fronts that make a repeated test run a stream of packets, references to compare
//! with, a generator, a sink and an answer. No part of Evenkeel: the bench loads this object beside it.
#![no_std]
#![no_main]

#[expect(unreachable_pub, reason = "the testbed includes the same file")]
mod recipe;

use aya_ebpf::{
    bindings::{
        TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    },
    helpers::{bpf_ktime_get_ns, bpf_redirect},
    macros::{classifier, map, xdp},
    maps::{Array, HashMap, PerCpuArray, ProgramArray},
    programs::{TcContext, XdpContext},
};
use recipe::{Layout, REACH, Recipe};

#[map]
static RECIPE: Array<Recipe> = Array::with_max_entries(1, 0);
/// The program behind the front. A program array takes programs of one type.
#[map]
static TC_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static XDP_TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// What the reference looks up.
#[map]
static KNOWN: HashMap<Key, u32> = HashMap::with_max_entries(1024, 0);
/// Packets that the sink and the answer have taken.
#[map]
static TAKEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The link-layer address that answers go to, in the low bytes.
#[unsafe(no_mangle)]
static GATEWAY: u64 = 0;

/// A destination: its address, IPv4 in the last word, then its port and protocol.
type Key = [u32; 5];

const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const UDP: u8 = 17;
const DNS: u16 = 53_u16.to_be();

// The fronts. What they return says that they went on to nothing.

#[classifier]
#[inline(always)]
fn tc_front(context: TcContext) -> i32 {
    if write_next(&context).is_some() {
        // SAFETY: the programs of the array take the same context.
        unsafe { TC_TARGET.tail_call(&context, 0) };
    }
    TC_ACT_SHOT
}

#[xdp(frags)]
#[inline(always)]
fn xdp_front(context: XdpContext) -> u32 {
    if write_next(&context).is_some() {
        // SAFETY: the programs of the array take the same context.
        unsafe { XDP_TARGET.tail_call(&context, 0) };
    }
    XDP_TX
}

// The references.

#[classifier]
#[inline(always)]
fn tc_empty(_context: TcContext) -> i32 {
    TC_ACT_OK
}

#[xdp(frags)]
#[inline(always)]
fn xdp_empty(_context: XdpContext) -> u32 {
    XDP_PASS
}

#[classifier]
#[inline(always)]
fn tc_parse(context: TcContext) -> i32 {
    if is_parsed(&context) { TC_ACT_OK } else { TC_ACT_SHOT }
}

#[xdp(frags)]
#[inline(always)]
fn xdp_parse(context: XdpContext) -> u32 {
    if is_parsed(&context) { XDP_PASS } else { XDP_DROP }
}

#[classifier]
#[inline(always)]
fn tc_look_up(context: TcContext) -> i32 {
    if is_known(&context) { TC_ACT_OK } else { TC_ACT_SHOT }
}

#[xdp(frags)]
#[inline(always)]
fn xdp_look_up(context: XdpContext) -> u32 {
    if is_known(&context) { XDP_PASS } else { XDP_DROP }
}

// Live frames, and what becomes of them.

/// Sends a frame out of the recipe's device.
#[xdp(frags)]
#[inline(always)]
fn xdp_generate(context: XdpContext) -> u32 {
    match write_next(&context) {
        Some(recipe) => {
            note_time(recipe);
            // SAFETY: the helper takes numbers only.
            unsafe { bpf_redirect(recipe.ifindex, 0) as u32 }
        }
        None => XDP_DROP,
    }
}

/// The time of the first frame and of the last: before and after it the kernel makes and takes away what it generates
/// with, which costs as much as thousands of frames.
#[inline(always)]
fn note_time(recipe: &mut Recipe) {
    recipe.sent += 1;
    if recipe.sent == 1 {
        // SAFETY: the helper has no precondition.
        recipe.began = unsafe { bpf_ktime_get_ns() };
    } else if recipe.sent == recipe.frames {
        // SAFETY: as above.
        recipe.ended = unsafe { bpf_ktime_get_ns() };
    }
}

/// Counts queries and drops them.
#[classifier]
#[inline(always)]
fn tc_sink(context: TcContext) -> i32 {
    if is_query(&context) { take().map_or(TC_ACT_UNSPEC, |()| TC_ACT_SHOT) } else { TC_ACT_UNSPEC }
}

#[xdp(frags)]
#[inline(always)]
fn xdp_sink(context: XdpContext) -> u32 {
    if is_query(&context) { take().map_or(XDP_PASS, |()| XDP_DROP) } else { XDP_PASS }
}

/// Sends each query back as it came.
#[classifier]
#[inline(always)]
fn tc_answer(context: TcContext) -> i32 {
    if !is_query(&context) || turn_round(&context).is_none() || take().is_none() {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the context's pointer is valid while the program runs, and the helper takes numbers only.
    unsafe { bpf_redirect((*context.skb.skb).ifindex, 0) as i32 }
}

/// The bytes of a packet that are in reach.
trait Frame {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
}

impl Frame for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Frame for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// The start of a packet that has `length` bytes in reach.
#[inline(always)]
fn reach(frame: &impl Frame, length: usize) -> Option<usize> {
    let start = frame.start();
    // The verifier takes only this form: a pointer into the packet, compared with its end.
    if start + length > frame.end() { None } else { Some(start) }
}

/// # Safety
/// The packet that begins at `start` reaches beyond `offset` by a `T`.
#[inline(always)]
unsafe fn read<T: Copy>(start: usize, offset: usize) -> T {
    // SAFETY: the caller's promise. BPF on the supported machines loads words at any address.
    unsafe { *((start + offset) as *const T) }
}

/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn write<T>(start: usize, offset: usize, value: T) {
    // Volatile, so that words stay apart: a load of one word that two stores made waits for both.
    // SAFETY: the caller's promise. BPF on the supported machines stores words at any address.
    unsafe { ((start + offset) as *mut T).write_volatile(value) }
}

/// Writes the headers of the next packet over the last one's; returns the recipe.
#[inline(always)]
fn write_next(frame: &impl Frame) -> Option<&'static mut Recipe> {
    let recipe = RECIPE.get_ptr_mut(0)?;
    let start = reach(frame, REACH)?;
    // SAFETY: the pointer is to a live map value that one CPU at a time works with; the packet's end was compared, and
    // no layout reaches beyond `REACH`.
    unsafe {
        let recipe = &mut *recipe;
        // The first word of every address is among these, and each change of a packet changes an address.
        let last: u32 =
            read::<u32>(start, 22) ^ read::<u32>(start, 26) ^ read::<u32>(start, 30) ^ read::<u32>(start, 38);
        let number = recipe.next(last);
        let (address, port) = recipe.client(number);
        let (address, port) = (address.to_be(), port.to_be() as u32);
        write(start, 0, recipe.link[0]);
        write(start, 4, recipe.link[1]);
        write(start, 8, recipe.link[2]);
        write(start, 12, recipe.link[3] as u16);
        match Layout::from_word(recipe.layout)? {
            Layout::FromClient4 => write_headers::<7, 3, 5>(start, recipe, address, port),
            Layout::ToClient4 => write_headers::<7, 4, 5>(start, recipe, address, port << 16),
            Layout::FromClient6 => write_headers::<12, 5, 10>(start, recipe, address, port),
            Layout::ToClient6 => write_headers::<12, 9, 10>(start, recipe, address, port << 16),
        }
        Some(recipe)
    }
}

/// Writes so many words behind the Ethernet header, the client's address and port into two of them.
///
/// # Safety
/// As for [`read`], with `REACH`.
#[inline(always)]
unsafe fn write_headers<const WORDS: usize, const ADDRESS: usize, const PORTS: usize>(
    start: usize,
    recipe: &Recipe,
    address: u32,
    ports: u32,
) {
    let mut index = 0;
    while index < WORDS {
        let client = if index == ADDRESS {
            address
        } else if index == PORTS {
            ports
        } else {
            0
        };
        // SAFETY: the caller's promise.
        unsafe { write(start, 14 + index * size_of::<u32>(), recipe.headers[index] | client) };
        index += 1;
    }
}

#[inline(always)]
fn parse(frame: &impl Frame) -> Option<Key> {
    let start = reach(frame, REACH)?;
    // SAFETY: the end was compared, and nothing here reaches beyond `REACH`.
    unsafe {
        match read::<u16>(start, 12) {
            IPV4 if read::<u8>(start, 14) == 0x45 => {
                let port = read::<u16>(start, 36) as u32;
                Some([0, 0, 0, read(start, 30), port | (read::<u8>(start, 23) as u32) << 16])
            }
            IPV6 => {
                let port = read::<u16>(start, 56) as u32;
                let last = port | (read::<u8>(start, 20) as u32) << 16;
                Some([read(start, 38), read(start, 42), read(start, 46), read(start, 50), last])
            }
            _ => None,
        }
    }
}

/// Uses each word that was read, else the compiler would read none.
#[inline(always)]
fn is_parsed(frame: &impl Frame) -> bool {
    parse(frame).is_some_and(|key| key[0] | key[1] | key[2] | key[3] != 0 && key[4] as u16 == DNS)
}

#[inline(always)]
fn is_known(frame: &impl Frame) -> bool {
    // SAFETY: nobody changes the map while the program runs.
    parse(frame).is_some_and(|key| unsafe { KNOWN.get(key) }.is_some())
}

/// Whether this is IPv4 and UDP to the port of DNS.
#[inline(always)]
fn is_query(frame: &impl Frame) -> bool {
    reach(frame, 42).is_some_and(|start| {
        // SAFETY: the end was compared, and nothing here reaches beyond it.
        unsafe {
            read::<u16>(start, 12) == IPV4
                && read::<u8>(start, 14) == 0x45
                && read::<u8>(start, 23) == UDP
                && read::<u16>(start, 36) == DNS
        }
    })
}

#[inline(always)]
fn take() -> Option<()> {
    let taken = TAKEN.get_ptr_mut(0)?;
    // SAFETY: the pointer is to this CPU's value of a live map.
    unsafe { *taken += 1 };
    Some(())
}

/// Exchanges the ends of a query, which leaves its checksums right.
#[inline(always)]
fn turn_round(frame: &impl Frame) -> Option<()> {
    let start = reach(frame, 42)?;
    // SAFETY: the end was compared, and nothing here reaches beyond it; a reference to a static is valid.
    unsafe {
        let gateway = (&raw const GATEWAY).read_volatile();
        let (source, destination): (u32, u32) = (read(start, 26), read(start, 30));
        let ports: u32 = read(start, 34);
        let own: [u16; 3] = [read(start, 0), read(start, 2), read(start, 4)];
        write(start, 0, gateway as u32);
        write(start, 4, (gateway >> 32) as u16);
        write(start, 6, own[0]);
        write(start, 8, own[1]);
        write(start, 10, own[2]);
        write(start, 26, destination);
        write(start, 30, source);
        write(start, 34, ports.rotate_left(16));
    }
    Some(())
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
