//! The next hop of a packet: asked of the kernel's routes, and kept on each CPU for a short time, because asking costs as
//! much as all else that is done for a packet of a known flow.
//!
//! What is kept counts until its time is over, or until the controller says that the network has changed.

use lb_common::{
    addr::Addr,
    backend::BackendId,
    device::{Abilities, HOP_RECORD, HOPS},
    flow::Tick,
    service::FrontendId,
};

use crate::{
    atomic::Shared,
    kernel::{Kernel, Route, RouteQuery},
    packet::Link,
};

/// What one CPU keeps of a hop, a cache line: what was asked (three words), when (two), and the answer.
pub type HopRecord = [Shared; HOP_RECORD / size_of::<u64>()];

/// How a packet goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The device it leaves by.
    pub ifindex: u32,
    /// The largest packet that fits, in bytes from the IP header on.
    pub mtu: u32,
    /// Whether the link-layer addresses are known.
    pub is_resolved: bool,
    /// Whether the kernel is to be reminded that the neighbour is in use: it asks for one only when it sends by itself.
    pub is_reminder: bool,
    /// The link-layer addresses.
    pub link: Link,
    /// What the device does with packets that XDP hands to it.
    pub abilities: Abilities,
}

/// The hop to a backend out of the device that it is routed by. At an early hook nothing is sent by the kernel itself.
///
/// # Errors
/// What the routes say where they name no hop.
#[inline(always)]
pub fn to_backend<K: Kernel>(kernel: &K, backend: BackendId, query: &RouteQuery, is_early: bool) -> Result<Hop, Route> {
    // Ids lie close together, so that few backends share a record while there are no more than records.
    let record = kernel.backend_hop(backend.0 & (HOPS - 1)).ok_or(Route::None)?;
    find(kernel, record, Key::new(&query.destination, query.through, 0), query, is_early)
}

/// The hop from a frontend to a client of a packet that came in by the device `arrived`.
///
/// # Errors
/// As [`to_backend`].
#[inline(always)]
pub fn to_client<K: Kernel>(
    kernel: &K,
    frontend: FrontendId,
    query: &RouteQuery,
    is_early: bool,
) -> Result<Hop, Route> {
    let key = Key::new(&query.destination, kernel.arrived_by(), frontend.0);
    let record = kernel.client_hop(key.place()).ok_or(Route::None)?;
    find(kernel, record, key, query, is_early)
}

/// Ticks in which what is kept is believed: a quarter to half a second at 250 Hz, an eighth at 1000.
const KEPT_TICKS: u32 = 2;

/// Ticks after which the kernel is reminded of a neighbour that is in use all the time. It doubts one after half a minute.
const REMINDER_TICKS: u32 = 32;

/// What a hop depends on.
#[derive(Clone, Copy)]
struct Key {
    first: u64,
    second: u64,
    third: u64,
}

impl Key {
    #[inline(always)]
    fn new(address: &Addr, device: u32, frontend: u32) -> Self {
        let [a, b, c, d] = address.0;
        Self {
            first: (a as u64) << 32 | b as u64,
            second: (c as u64) << 32 | d as u64,
            third: (device as u64) << 32 | frontend as u64,
        }
    }

    /// The place of a client's record. Who chooses addresses that fall together makes their look-ups dearer, no more.
    #[inline(always)]
    fn place(self) -> u32 {
        // 2⁶⁴ over the golden ratio spreads rows of addresses (Knuth, The Art of Computer Programming, 6.4).
        let sum = (self.first ^ self.second.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (sum >> (u64::BITS - HOPS.ilog2())) as u32
    }
}

#[inline(always)]
fn find<K: Kernel>(kernel: &K, record: &HopRecord, key: Key, query: &RouteQuery, is_early: bool) -> Result<Hop, Route> {
    let now = kernel.now();
    let is_same = record[0].load() == key.first && record[1].load() == key.second && record[2].load() == key.third;
    let asked = record[3].load();
    if is_same && asked >> 32 == kernel.network_version() as u64 && age(now, asked) < KEPT_TICKS {
        return Ok(kept(record));
    }
    let reminded = record[4].load();
    let is_reminder = is_same && age(now, reminded) >= REMINDER_TICKS;
    let hop = ask(kernel, query)?;
    if !hop.is_resolved || is_reminder && is_early {
        // Only a later hook can have the kernel ask, and that one shall find it still to be done.
        return Ok(Hop { is_reminder, ..hop });
    }
    record[0].store(key.first);
    record[1].store(key.second);
    record[2].store(key.third);
    record[3].store((kernel.network_version() as u64) << 32 | now.0 as u64);
    if !is_same || is_reminder {
        record[4].store(now.0 as u64);
    }
    record[5].store((hop.mtu as u64) << 32 | hop.ifindex as u64);
    record[6].store(packed(hop.link.destination) | (hop.abilities.0 as u64) << 48);
    record[7].store(packed(hop.link.source));
    Ok(Hop { is_reminder, ..hop })
}

#[inline(always)]
fn kept(record: &HopRecord) -> Hop {
    let (device, destination, source) = (record[5].load(), record[6].load(), record[7].load());
    Hop {
        ifindex: device as u32,
        mtu: (device >> 32) as u32,
        is_resolved: true,
        is_reminder: false,
        link: Link { destination: unpacked(destination), source: unpacked(source) },
        abilities: Abilities((destination >> 48) as u32),
    }
}

#[inline(always)]
fn ask<K: Kernel>(kernel: &K, query: &RouteQuery) -> Result<Hop, Route> {
    let (ifindex, link, mtu, is_resolved) = match kernel.route(query) {
        Route::Link { ifindex, link, mtu } => (ifindex, link, mtu, true),
        // Nothing is known of what fits; the kernel, which sends it, sees to that.
        Route::Resolve { ifindex } => (ifindex, Link::default(), u32::MAX, false),
        none => return Err(none),
    };
    if query.through != 0 && query.through != ifindex {
        // For IPv6 the kernel takes the device that is asked for as a wish.
        return Err(Route::None);
    }
    Ok(Hop { ifindex, mtu, is_resolved, is_reminder: false, link, abilities: kernel.abilities(ifindex) })
}

/// Ticks since the one in the lower half of a word.
#[inline(always)]
fn age(now: Tick, word: u64) -> u32 {
    now.0.wrapping_sub(word as u32) & Tick::MASK
}

#[inline(always)]
fn packed([a, b, c]: [u16; 3]) -> u64 {
    a as u64 | (b as u64) << 16 | (c as u64) << 32
}

#[inline(always)]
fn unpacked(word: u64) -> [u16; 3] {
    [word as u16, (word >> 16) as u16, (word >> 32) as u16]
}

#[cfg(test)]
mod tests;
