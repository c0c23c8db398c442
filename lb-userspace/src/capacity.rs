//! The sizes of the maps, and the memory they take. Everything follows from [`Limits`].

use lb_common::{
    backend::{Backend, Endpoint},
    device::{DEVICES, Device, HOP_RECORD, HOPS},
    flow,
    fragment::{FragmentKey, FragmentRecord},
    limits::SLOTS_PER_CHUNK,
    reason::Reason,
    reply::{REPLIES_PER_BUCKET, ReplyBucket},
    service::{Frontend, FrontendInfo, Policy, SocketKey},
    stats::{EarlyStats, ServiceStats, Traffic},
};
use serde::Serialize;

use crate::settings::{Limit, Limits};

/// Entries of each map whose size is not fixed. Ids run from 1, so that an array has one entry more than there can be
/// of what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Capacity {
    /// `FRONTENDS`: 4 to a service.
    pub frontends: u32,
    /// `FRONTEND_INFO`: twice as many, for those that were removed and that flows still name.
    pub frontend_infos: u32,
    /// `SERVICES`, `CURSORS` and `SERVICE_STATS`.
    pub services: u32,
    /// `POLICIES`: two to a service, the old one and the new.
    pub policies: u32,
    /// Values of `SLOTS`.
    pub slot_chunks: u32,
    /// `BACKENDS`, `ACTIVE` and `TRAFFIC`: twice the limit, for those that were removed and that flows still name.
    pub backends: u32,
    /// `ENDPOINTS`.
    pub endpoints: u32,
    /// `FLOWS`, a power of two.
    pub flow_buckets: u32,
    /// `REPLIES`, a power of two.
    pub reply_buckets: u32,
    /// `FRAGMENTS`.
    pub fragments: u32,
}

impl From<&Limits> for Capacity {
    fn from(limits: &Limits) -> Self {
        let frontends = limits.services.saturating_mul(4);
        let backends = limits.backends.saturating_mul(2);
        Self {
            frontends,
            frontend_infos: frontends.saturating_mul(2).saturating_add(1),
            services: limits.services.saturating_add(1),
            policies: limits.services.saturating_mul(2).saturating_add(1),
            slot_chunks: limits.get(Limit::Slots).div_ceil(SLOTS_PER_CHUNK).max(1),
            backends: backends.saturating_add(1),
            endpoints: backends,
            flow_buckets: buckets(limits.flows, flow::WAYS),
            reply_buckets: buckets(limits.replies, REPLIES_PER_BUCKET),
            fragments: 8192,
        }
    }
}

impl Default for Capacity {
    fn default() -> Self {
        Self::from(&Limits::default())
    }
}

/// Buckets in which `entries` fill at most 60 % of the ways: beyond, new ones find no room too often.
fn buckets(entries: u32, ways: usize) -> u32 {
    // Two at least: each key has two buckets to choose from.
    let ways_wanted = (u64::from(entries) * 10).div_ceil(6);
    let wanted = ways_wanted.div_ceil(ways as u64).next_power_of_two().max(2);
    u32::try_from(wanted).unwrap_or(1 << 31)
}

/// The memory one map takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapMemory {
    /// The map's name.
    pub map: &'static str,
    /// Entries it has.
    pub entries: u32,
    /// Bytes of kernel memory, all CPUs together.
    pub bytes: u64,
}

impl Capacity {
    /// The memory of each map on a machine with this many possible CPUs, as the kernel counts it (`map_mem_usage`).
    pub fn memory(&self, cpus: u32) -> Vec<MapMemory> {
        vec![
            hash("FRONTENDS", self.frontends, size_of::<SocketKey>(), size_of::<Frontend>(), cpus),
            array("FRONTEND_INFO", self.frontend_infos, size_of::<FrontendInfo>()),
            array("SERVICES", self.services, size_of::<u64>()),
            array("POLICIES", self.policies, size_of::<Policy>()),
            array("SLOTS", self.slot_chunks, SLOTS_PER_CHUNK as usize * size_of::<u64>()),
            array("CURSORS", self.services, size_of::<[u64; 8]>()),
            array("BACKENDS", self.backends, size_of::<Backend>()),
            per_cpu_array("BACKEND_HOPS", HOPS, HOP_RECORD, cpus),
            per_cpu_array("CLIENT_HOPS", HOPS, HOP_RECORD, cpus),
            array("DEVICES", DEVICES, size_of::<Device>()),
            per_cpu_array("EARLY_STATS", DEVICES, size_of::<EarlyStats>(), cpus),
            hash("ENDPOINTS", self.endpoints, size_of::<SocketKey>(), size_of::<Endpoint>(), cpus),
            array("FLOWS", self.flow_buckets, size_of::<flow::Bucket>()),
            array("LOCKS", flow::LOCKS, 64),
            array("REPLIES", self.reply_buckets, size_of::<ReplyBucket>()),
            hash("FRAGMENTS", self.fragments, size_of::<FragmentKey>(), size_of::<FragmentRecord>(), cpus),
            array("ACTIVE", self.backends, size_of::<u64>()),
            per_cpu_array("TRAFFIC", self.backends, size_of::<Traffic>(), cpus),
            per_cpu_array("SERVICE_STATS", self.services, size_of::<ServiceStats>(), cpus),
            per_cpu_array("REASONS", Reason::ALL.len() as u32, size_of::<u64>(), cpus),
        ]
    }

    /// The memory of all maps on a machine with this many possible CPUs.
    pub fn total_bytes(&self, cpus: u32) -> u64 {
        self.memory(cpus).iter().map(|map| map.bytes).sum()
    }
}

fn array(map: &'static str, entries: u32, value: usize) -> MapMemory {
    MapMemory { map, entries, bytes: u64::from(entries) * (value as u64).next_multiple_of(8) }
}

fn per_cpu_array(map: &'static str, entries: u32, value: usize, cpus: u32) -> MapMemory {
    let each = u64::from(cpus) * (value as u64).next_multiple_of(8) + size_of::<u64>() as u64;
    MapMemory { map, entries, bytes: u64::from(entries) * each }
}

fn hash(map: &'static str, entries: u32, key: usize, value: usize, cpus: u32) -> MapMemory {
    // kernel/bpf/hashtab.c: `struct htab_elem` and `struct bucket`, and one spare element for each CPU.
    const ELEMENT: u64 = 48;
    const BUCKET: u64 = 16;
    let element = ELEMENT + (key as u64).next_multiple_of(8) + (value as u64).next_multiple_of(8);
    let buckets = u64::from(entries).next_power_of_two() * BUCKET;
    MapMemory { map, entries, bytes: buckets + (u64::from(entries) + u64::from(cpus)) * element }
}

/// Bytes as a person reads them.
pub fn readable(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    let kib = bytes as f64 / KIB;
    if kib < 1000.0 {
        format!("{kib:.1} KiB")
    } else if kib < 1000.0 * KIB {
        format!("{:.1} MiB", kib / KIB)
    } else {
        format!("{:.1} GiB", kib / KIB / KIB)
    }
}

#[cfg(test)]
mod tests {
    use lb_common::limits::FLOWS_MAX;

    use super::*;

    #[test]
    fn the_default_takes_less_than_64_mib() {
        let total = Capacity::default().total_bytes(8);
        assert!(total < 64 << 20, "{}", readable(total));
    }

    #[test]
    fn as_many_flows_as_the_limit_says_fill_at_most_60_percent() {
        for flows in [1, 2, 10, 1000, 1 << 18, 1_000_000, FLOWS_MAX] {
            let capacity = Capacity::from(&Limits { flows, ..Limits::default() });
            assert!(capacity.flow_buckets.is_power_of_two() && capacity.flow_buckets >= 2);
            let ways = u64::from(capacity.flow_buckets) * flow::WAYS as u64;
            assert!(u64::from(flows) * 10 <= ways * 6, "{flows} flows, {ways} ways");
        }
    }

    #[test]
    fn a_large_table_of_backends_gets_slots_to_match() {
        let capacity = Capacity::from(&Limits { backends: 1 << 18, ..Limits::default() });
        assert_eq!(capacity.slot_chunks, 4);
        assert_eq!(Capacity::default().slot_chunks, 1);
    }

    #[test]
    fn per_cpu_maps_count_for_each_cpu() {
        let one = per_cpu_array("TRAFFIC", 100, 40, 1);
        let eight = per_cpu_array("TRAFFIC", 100, 40, 8);
        assert_eq!(eight.bytes - one.bytes, 7 * 40 * 100);
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(readable(320), "0.3 KiB");
        assert_eq!(readable(4 << 20), "4.0 MiB");
        assert_eq!(readable(5 << 30), "5.0 GiB");
    }
}
