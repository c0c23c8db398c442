//! A data path in memory: tables that change as they are told, and counters that stay at zero. For tests, and for
//! whoever wants to see what a change would do.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    backend::{BackendId, BackendState},
    device::Device,
    limits::SLOTS_PER_CHUNK,
    reason::Reason,
    service::{PolicyId, ServiceId, ServiceWord},
    stats::{ServiceStats, Traffic},
};

use super::{Counters, Dataplane, DataplaneError, Named};
use crate::{
    capacity::Capacity,
    plan::{
        change::Change,
        tables::{BackendRecord, Tables},
    },
};

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What the maps hold, policies and runs that are no longer in force included until the next [`Change::Grace`].
    tables: Tables,
    capacity: Capacity,
    cursors: BTreeMap<ServiceId, u64>,
    named: Named,
    changes_until_fault: Option<usize>,
}

impl Memory {
    /// Empty maps of these sizes.
    pub fn new(capacity: Capacity) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// Maps that hold `tables` already.
    pub fn with_tables(capacity: Capacity, tables: Tables) -> Self {
        Self { tables, capacity, ..Self::default() }
    }

    /// The same, but refusing the change number `changes`, counted from 0, and every one after it.
    #[must_use]
    pub fn failing_after(self, changes: usize) -> Self {
        Self { changes_until_fault: Some(changes), ..self }
    }

    /// Decides what the next sweeps find to be named by flows.
    pub fn set_named(&mut self, named: Named) {
        self.named = named;
    }

    /// All that was written, what is no longer in force included.
    pub fn written(&self) -> &Tables {
        &self.tables
    }

    /// Where the cursor of a service was started.
    pub fn cursor(&self, service: ServiceId) -> Option<u64> {
        self.cursors.get(&service).copied()
    }

    fn apply_one(&mut self, change: &Change) -> Result<(), DataplaneError> {
        if let Some(left) = &mut self.changes_until_fault {
            if *left == 0 {
                return Err(refused("any", format!("{change:?}"), "a fault that was asked for"));
            }
            *left -= 1;
        }
        let (tables, capacity) = (&mut self.tables, &self.capacity);
        match change {
            Change::WriteFrontendInfo(id, info) => {
                within("FRONTEND_INFO", "frontend", id.0, capacity.frontend_infos, "services")?;
                tables.frontend_infos.insert(*id, *info);
            }
            Change::WriteBackend(id, record) => {
                within("BACKENDS", "backend", id.0, capacity.backends, "backends")?;
                tables.backends.insert(*id, *record);
            }
            Change::PutEndpoint(key, endpoint) => {
                tables.endpoints.insert(*key, *endpoint);
                not_over("ENDPOINTS", tables.endpoints.len(), capacity.endpoints, "backends")?;
            }
            Change::WriteRun(run, words) => {
                within("SLOTS", "chunk", run.chunk, capacity.slot_chunks, "slots")?;
                let end = run.start as usize + words.len();
                not_over("SLOTS", end, SLOTS_PER_CHUNK, "slots")?;
                tables.runs.insert(*run, words.clone());
            }
            Change::WritePolicy(id, policy) => {
                within("POLICIES", "policy", id.0, capacity.policies, "services")?;
                tables.policies.insert(*id, *policy);
            }
            Change::StartService(id, cursor) => {
                within("SERVICES", "service", id.0, capacity.services, "services")?;
                self.cursors.insert(*id, *cursor);
            }
            Change::SwapService(id, word) => {
                within("SERVICES", "service", id.0, capacity.services, "services")?;
                tables.services.insert(*id, *word);
            }
            Change::PutFrontend(key, frontend) => {
                tables.frontends.insert(*key, *frontend);
                not_over("FRONTENDS", tables.frontends.len(), capacity.frontends, "services")?;
            }
            Change::RemoveFrontend(key) => {
                tables.frontends.remove(key);
            }
            Change::SetBackendState(id, state) => backend(tables, *id, change)?.state = *state,
            Change::SetBackendWay(id, way) => backend(tables, *id, change)?.way = *way,
            Change::Grace => *tables = in_force(tables),
            Change::RemoveEndpoint(key) => {
                tables.endpoints.remove(key);
            }
            Change::ClearBackend(id) => {
                tables.backends.remove(id);
            }
            Change::ClearFrontendInfo(id) => {
                tables.frontend_infos.remove(id);
            }
            Change::ClearService(id) => {
                tables.services.remove(id);
                self.cursors.remove(id);
            }
        }
        Ok(())
    }
}

impl Dataplane for Memory {
    fn read(&self) -> Result<Tables, DataplaneError> {
        Ok(in_force(&self.tables))
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), DataplaneError> {
        changes.iter().try_for_each(|change| self.apply_one(change))
    }

    fn counters(&self) -> Result<Counters, DataplaneError> {
        Ok(Counters {
            traffic: self.tables.backends.keys().map(|id| (*id, Traffic::default())).collect(),
            active: self.tables.backends.keys().map(|id| (*id, 0)).collect(),
            services: self.tables.services.keys().map(|id| (*id, ServiceStats::default())).collect(),
            reasons: Reason::ALL.iter().map(|reason| (*reason, 0)).collect(),
            early: BTreeMap::new(),
        })
    }

    fn sweep(&mut self) -> Result<Named, DataplaneError> {
        // As the kernel's: what may get nothing any more is evicted.
        let keeps_flows =
            |id: &BackendId| self.tables.backends.get(id).is_some_and(|record| record.state != BackendState::Dead);
        self.named.backends.retain(keeps_flows);
        Ok(self.named.clone())
    }

    fn follow_network(&mut self, _devices: &BTreeMap<u32, Device>) {}
}

/// The tables without the policies that no service names and the runs that no policy names.
fn in_force(tables: &Tables) -> Tables {
    let policies: BTreeSet<PolicyId> = tables.services.values().map(|word: &ServiceWord| word.policy).collect();
    let mut kept = tables.clone();
    kept.policies.retain(|id, _| policies.contains(id));
    let runs: BTreeSet<(u32, u32)> =
        kept.policies.values().map(|policy| (policy.slots_chunk, policy.slots_start)).collect();
    kept.runs.retain(|run, _| runs.contains(&(run.chunk, run.start)));
    kept
}

fn backend<'t>(
    tables: &'t mut Tables,
    id: BackendId,
    change: &Change,
) -> Result<&'t mut BackendRecord, DataplaneError> {
    tables.backends.get_mut(&id).ok_or_else(|| refused("BACKENDS", format!("{change:?}"), "no such backend"))
}

fn refused(map: &'static str, operation: String, why: &str) -> DataplaneError {
    DataplaneError::Map { map, operation, source: std::io::Error::other(why.to_owned()) }
}

fn within(map: &'static str, what: &str, id: u32, capacity: u32, limit: &'static str) -> Result<(), DataplaneError> {
    if id < capacity {
        Ok(())
    } else {
        Err(DataplaneError::Full { map, what: format!("{what} {id}"), capacity, limit })
    }
}

fn not_over(map: &'static str, entries: usize, capacity: u32, limit: &'static str) -> Result<(), DataplaneError> {
    if entries <= capacity as usize {
        Ok(())
    } else {
        Err(DataplaneError::Full { map, what: format!("entry {entries}"), capacity, limit })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        addr::{Addr, Port, Protocol},
        service::{FrontendId, FrontendInfo, SocketKey},
    };

    use super::*;

    fn write_frontend(id: u32) -> Change {
        let key = SocketKey::new(Addr([0, 0, 0, id]), Port::new(53), Protocol::UDP);
        Change::WriteFrontendInfo(FrontendId(id), FrontendInfo { key, service: ServiceId(1) })
    }

    #[test]
    fn a_fault_leaves_what_came_before_it_and_nothing_after() {
        let mut memory = Memory::new(Capacity::default()).failing_after(2);
        let error =
            memory.apply(&[write_frontend(1), write_frontend(2), write_frontend(3)]).expect_err("the third fails");
        assert!(error.to_string().contains("a fault that was asked for"), "{error}");
        assert_eq!(memory.written().frontend_infos.len(), 2);
    }

    #[test]
    fn what_does_not_fit_names_the_limit_to_raise() {
        let capacity = Capacity { frontend_infos: 9, ..Capacity::default() };
        let error = Memory::new(capacity).apply(&[write_frontend(9)]).expect_err("ids end at 8");
        assert_eq!(
            error.to_string(),
            "map FRONTEND_INFO: frontend 9 is beyond its 9 entries; raise `services` under [limits]"
        );
    }
}
