//! One write to the maps each, in an order after any prefix of which every packet finds a consistent state.

use std::collections::BTreeMap;

use lb_common::{
    backend::{BackendId, BackendState, Endpoint, Way},
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
};

use super::{
    Plan,
    tables::{BackendRecord, Run, Tables},
};

/// The writes that make `next` of `current`, in an order in which after any of them every frontend leads to a service
/// with a policy, every slot of it to a backend that may be used, and every backend to its endpoint: first everything
/// new is made, then it is put in force, then the old is ended, and only after a grace period cleared.
pub fn diff(current: &Tables, next: &Plan) -> Vec<Change> {
    let plan = next;
    let next = &plan.tables;
    let mut changes = Vec::new();
    for (id, info) in news(&current.frontend_infos, &next.frontend_infos) {
        changes.push(Change::WriteFrontendInfo(*id, *info));
    }
    for (key, endpoint) in news(&current.endpoints, &next.endpoints) {
        changes.push(Change::PutEndpoint(*key, *endpoint));
    }
    for (id, record) in news(&current.backends, &next.backends) {
        match current.backends.get(id) {
            Some(before) if is_same_backend(before, record) => {
                if record.state == BackendState::Use && before.state != record.state {
                    // Before a slot names it again.
                    changes.extend(changed_way(*id, before, record));
                    changes.push(Change::SetBackendState(*id, record.state));
                }
            }
            Some(_) | None => changes.push(Change::WriteBackend(*id, *record)),
        }
    }
    for (run, words) in news(&current.runs, &next.runs) {
        changes.push(Change::WriteRun(*run, words.clone()));
    }
    for (id, policy) in news(&current.policies, &next.policies) {
        changes.push(Change::WritePolicy(*id, *policy));
    }
    for (id, cursor) in &plan.cursors {
        changes.push(Change::StartService(*id, *cursor));
    }
    let stops = |word: &ServiceWord| word.policy == PolicyId(0);
    for (id, word) in news(&current.services, &next.services).filter(|(_, word)| !stops(word)) {
        changes.push(Change::SwapService(*id, *word));
    }
    for (key, frontend) in news(&current.frontends, &next.frontends) {
        changes.push(Change::PutFrontend(*key, *frontend));
    }
    for key in gone(&current.frontends, &next.frontends) {
        changes.push(Change::RemoveFrontend(*key));
    }
    for (id, word) in news(&current.services, &next.services).filter(|(_, word)| stops(word)) {
        changes.push(Change::SwapService(*id, *word));
    }
    for (id, record) in news(&current.backends, &next.backends) {
        if let Some(before) = current.backends.get(id).filter(|before| is_same_backend(before, record)) {
            match (before.state == record.state, record.state) {
                (true, _) => changes.extend(changed_way(*id, before, record)),
                (false, BackendState::Use) => {}
                (false, state @ (BackendState::Dead | BackendState::Drain | BackendState::UdpGone)) => {
                    changes.push(Change::SetBackendState(*id, state));
                    changes.extend(changed_way(*id, before, record));
                }
            }
        }
    }
    let clears = clears(current, next);
    if !changes.is_empty() || !clears.is_empty() {
        changes.push(Change::Grace);
    }
    changes.extend(clears);
    changes
}

/// Several plans, each made of what the one before it left, to be published one after the other with one wait at the
/// end. Meant for many changes of few services; nothing is forgotten within it.
#[derive(Clone, Debug)]
pub struct Batch {
    current: Tables,
    changes: Vec<Change>,
}

impl Batch {
    /// An empty batch on top of what is programmed.
    pub fn new(current: Tables) -> Self {
        Self { current, changes: Vec::new() }
    }

    /// What the next plan of this batch has to be made of. It holds the policies and runs that were in force earlier in
    /// the batch as well: packets may still see them, so they are not free.
    pub fn current(&self) -> &Tables {
        &self.current
    }

    /// Adds a plan that was made of [`Batch::current`] without a sweep's result.
    ///
    /// # Panics
    /// When the plan clears something: that needs a batch of its own.
    pub fn add(&mut self, plan: Plan) {
        let changes = diff(&self.current, &plan);
        let grace = changes.iter().position(|change| *change == Change::Grace).unwrap_or(changes.len());
        assert!(changes.len() <= grace + 1, "a plan in a batch clears nothing");
        self.changes.extend(changes.into_iter().take(grace));
        // Those of the batch are many and those of this plan few.
        let Tables { mut policies, mut runs, .. } = std::mem::replace(&mut self.current, plan.tables);
        policies.extend(std::mem::take(&mut self.current.policies));
        runs.extend(std::mem::take(&mut self.current.runs));
        (self.current.policies, self.current.runs) = (policies, runs);
    }

    /// The writes of all plans in their order, and the wait.
    pub fn finish(mut self) -> Vec<Change> {
        if !self.changes.is_empty() {
            self.changes.push(Change::Grace);
        }
        self.changes
    }
}

/// What `next` holds and `current` does not, or not like that.
fn news<'t, K: Ord, V: PartialEq>(
    current: &'t BTreeMap<K, V>,
    next: &'t BTreeMap<K, V>,
) -> impl Iterator<Item = (&'t K, &'t V)> {
    next.iter().filter(|(key, value)| current.get(key) != Some(value))
}

/// What `current` holds and `next` does not.
fn gone<'t, K: Ord, V>(current: &'t BTreeMap<K, V>, next: &'t BTreeMap<K, V>) -> impl Iterator<Item = &'t K> {
    current.keys().filter(|key| !next.contains_key(key))
}

fn is_same_backend(before: &BackendRecord, after: &BackendRecord) -> bool {
    let identity = |record: &BackendRecord| (record.service, record.key, record.endpoint);
    identity(before) == identity(after)
}

fn changed_way(id: BackendId, before: &BackendRecord, after: &BackendRecord) -> Option<Change> {
    (before.way != after.way).then_some(Change::SetBackendWay(id, after.way))
}

fn clears(current: &Tables, next: &Tables) -> Vec<Change> {
    let mut clears = Vec::new();
    clears.extend(gone(&current.backends, &next.backends).map(|id| Change::ClearBackend(*id)));
    clears.extend(gone(&current.endpoints, &next.endpoints).map(|key| Change::RemoveEndpoint(*key)));
    clears.extend(gone(&current.frontend_infos, &next.frontend_infos).map(|id| Change::ClearFrontendInfo(*id)));
    clears.extend(gone(&current.services, &next.services).map(|id| Change::ClearService(*id)));
    clears
}

/// One step of a change of configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes a frontend's record. Nothing names it yet.
    WriteFrontendInfo(FrontendId, FrontendInfo),
    /// Writes a backend's whole record and zeroes its counters. Nothing names it yet.
    WriteBackend(BackendId, BackendRecord),
    /// Makes replies from an endpoint known, or changes where their frontend is looked for.
    PutEndpoint(SocketKey, Endpoint),
    /// Writes a run of slots. No policy in force lies in it.
    WriteRun(Run, Vec<u64>),
    /// Writes a policy. No service names it yet.
    WritePolicy(PolicyId, Policy),
    /// Starts the cursor of a new service, and zeroes its counters.
    StartService(ServiceId, u64),
    /// Puts a policy in force: one atomic store.
    SwapService(ServiceId, ServiceWord),
    /// Begins to balance a frontend, or moves it to another service.
    PutFrontend(SocketKey, Frontend),
    /// Ends balancing a frontend.
    RemoveFrontend(SocketKey),
    /// One atomic store.
    SetBackendState(BackendId, BackendState),
    /// One atomic store.
    SetBackendWay(BackendId, Way),
    /// Waits until no packet is under way that saw anything of before.
    Grace,
    /// Forgets an endpoint. No backend is there any more.
    RemoveEndpoint(SocketKey),
    /// Frees a backend's entry. No flow names it.
    ClearBackend(BackendId),
    /// Frees a frontend's entry. No flow names it.
    ClearFrontendInfo(FrontendId),
    /// Frees a service's entry. No frontend leads to it.
    ClearService(ServiceId),
}
