//! What the controller sees of a data path: tables it can read, changes it can apply, counters it can look at.
//! [`memory`] keeps them in values, [`bpf`] in the kernel's maps, and [`attach`] puts programs on interfaces.
//!
//! All unsafe code of the crate is in [`sys`] and [`mmap`], and programs are loaded by [`bpf`] alone.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    backend::BackendId,
    device::Device,
    reason::Reason,
    service::{FrontendId, ServiceId},
    stats::{EarlyStats, ServiceStats, Traffic},
};

use crate::plan::{change::Change, tables::Tables};

pub mod attach;
pub mod bpf;
pub mod host;
pub mod maps;
pub mod memory;
#[expect(unsafe_code, reason = "shares the maps' memory with the packet path")]
pub mod mmap;
pub mod pins;
pub mod sweep;
#[expect(unsafe_code, reason = "system calls that no crate of ours has")]
pub mod sys;
mod tc;
pub mod trace;

/// A data path that can be programmed.
pub trait Dataplane {
    /// What is programmed now.
    ///
    /// # Errors
    /// When a map cannot be read, or holds what no controller of this version writes.
    fn read(&self) -> Result<Tables, DataplaneError>;

    /// Applies `changes` in their order. When it returns, no packet is under way that saw anything of before the last
    /// [`Change::Grace`].
    ///
    /// # Errors
    /// When a write is refused; what came before it is in force, what comes after is not.
    fn apply(&mut self, changes: &[Change]) -> Result<(), DataplaneError>;

    /// What has been counted, added up over the CPUs.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn counters(&self) -> Result<Counters, DataplaneError>;

    /// Evicts what has expired and what a state of its backend no longer allows, and tells which ids any entry of the
    /// flow, reply or fragment tables still names.
    ///
    /// # Errors
    /// When a table cannot be read.
    fn sweep(&mut self) -> Result<Named, DataplaneError>;

    /// Tells the packet path which devices there are for XDP, each at its place, and that the network has changed, so that
    /// what it keeps of next hops is asked anew.
    fn follow_network(&mut self, devices: &BTreeMap<u32, Device>);
}

/// All counters of a data path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By backend.
    pub traffic: BTreeMap<BackendId, Traffic>,
    /// Flows each backend has now.
    pub active: BTreeMap<BackendId, u64>,
    /// By service.
    pub services: BTreeMap<ServiceId, ServiceStats>,
    /// Packets not forwarded.
    pub reasons: BTreeMap<Reason, u64>,
    /// What XDP did, by the interface that packets came in by.
    pub early: BTreeMap<u32, EarlyStats>,
}

/// Ids that entries of the packet path's own tables still name; they may not be given to anything else yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Backends with flows.
    pub backends: BTreeSet<BackendId>,
    /// Frontends with flows or awaited replies.
    pub frontends: BTreeSet<FrontendId>,
}

/// Why a data path could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// A map operation was refused.
    #[error("map {map}: {operation}: {source}")]
    Map {
        /// The map's name.
        map: &'static str,
        /// What was tried.
        operation: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A map holds what no controller of this version writes.
    #[error("map {map}: {what}")]
    Unreadable {
        /// The map's name.
        map: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// An id or a run lies outside the map it belongs to.
    #[error("map {map}: {what} is beyond its {capacity} entries; raise `{limit}` under [limits]")]
    Full {
        /// The map's name.
        map: &'static str,
        /// What did not fit.
        what: String,
        /// Entries the map has.
        capacity: u32,
        /// The key of the configuration that decides it.
        limit: &'static str,
    },
}
