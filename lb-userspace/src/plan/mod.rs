//! From what is wanted to the exact content of the maps, as a function of values: it reads no clock, no file and no
//! map, and the same input gives the same output. Planning does not fail: what does not fit is told, and the rest is
//! planned. The order of the writes is [`change`]'s.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    backend::{BackendId, BackendState, Endpoint, EndpointId, Way},
    selector::{NthRule, Selector, Slot},
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
};

use crate::{
    capacity::Capacity,
    dataplane::Named,
    model::{
        Choice, Part, Rejected, Schedule,
        resolve::{Compiled, CompiledService},
    },
    selector::{Arrangement, Slots, arrange},
    settings::Limit,
};
use ids::{Ids, Runs};
use tables::{BackendRecord, Run, ServiceKey, Tables};

pub mod change;
mod ids;
pub mod tables;

pub use change::{Batch, diff};

/// What the maps shall hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Their content.
    pub tables: Tables,
    /// Which service is which; those that were removed and that flows still name included. The next plan wants it as
    /// `known`.
    pub services: BTreeMap<ServiceKey, ServiceId>,
    /// Where the cursors of new services start.
    pub cursors: BTreeMap<ServiceId, u64>,
    /// What could not be planned. A service that was programmed before goes on as it was.
    pub rejected: Vec<Rejected>,
}

/// Plans all of `desired`.
///
/// A service is who `known` says it is, else who any of its frontends belongs to in `current`; so it keeps its cursor,
/// counters and backends. Removed backends and frontends stay until a sweep, `named`, no longer finds them: with
/// `None` nothing is forgotten. A backend whose way is not in `ways` keeps the one it has, or goes through the stack.
/// `seed` decides where new cursors start.
pub fn plan(
    desired: &Compiled,
    ways: &BTreeMap<IpAddr, Way>,
    current: &Tables,
    known: &BTreeMap<ServiceKey, ServiceId>,
    named: Option<&Named>,
    capacity: &Capacity,
    seed: u64,
) -> Plan {
    let mut planner = Planner::new(desired, ways, current, named, capacity);
    let recognised = recognise(desired, current, known);
    let mut plan = Plan { rejected: desired.rejected.clone(), ..Plan::default() };
    let mut as_before = BTreeSet::new();
    for (key, service) in &desired.services {
        let before = recognised.get(key).copied();
        match planner.place(before, service) {
            Ok(id) => {
                if !current.services.contains_key(&id) {
                    plan.cursors.insert(id, first_ticket(&service.choice, key, seed));
                }
                plan.services.insert(key.clone(), id);
            }
            Err(full) => {
                plan.rejected.push(Rejected { service: key.name.clone(), part: Part::Whole, why: full.to_string() });
                if let Some(id) = before {
                    as_before.insert(id);
                    plan.services.insert(key.clone(), id);
                }
            }
        }
    }
    planner.leave(&as_before);
    planner.keep_removed();
    planner.endpoints();
    plan.tables = planner.next;
    for (key, id) in known {
        let is_free = || !plan.services.values().any(|other| other == id);
        if !plan.services.contains_key(key) && plan.tables.services.contains_key(id) && is_free() {
            plan.services.insert(key.clone(), *id);
        }
    }
    plan
}

/// Which service of `current` each wanted one is; no two are the same.
fn recognise<'a>(
    desired: &'a Compiled,
    current: &Tables,
    known: &BTreeMap<ServiceKey, ServiceId>,
) -> BTreeMap<&'a ServiceKey, ServiceId> {
    let mut recognised = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for key in desired.services.keys() {
        if let Some(id) = known.get(key)
            && current.services.contains_key(id)
            && taken.insert(*id)
        {
            recognised.insert(key, *id);
        }
    }
    for (key, service) in &desired.services {
        if recognised.contains_key(key) {
            continue;
        }
        let owners = service.frontends.iter().filter_map(|frontend| current.frontends.get(frontend));
        let mut existing = owners.map(|owner| owner.service).filter(|id| current.services.contains_key(id));
        if let Some(id) = existing.find(|id| !taken.contains(id)) {
            taken.insert(id);
            recognised.insert(key, id);
        }
    }
    recognised
}

/// Where the cursor of a new service starts: anywhere, so that many hosts do not all begin with the first backend; an
/// nth chain at its beginning, as iptables does.
fn first_ticket(choice: &Choice<SocketKey>, key: &ServiceKey, seed: u64) -> u64 {
    match choice.selector() {
        Selector::Random => 0,
        Selector::Nth => 0,
        // 32 bits of it: far from where the cursor wraps around.
        Selector::RoundRobin | Selector::WeightedRoundRobin => mixed(seed, key) >> 32,
    }
}

/// FNV-1a over the key, then the finalizer of SplitMix64.
fn mixed(seed: u64, key: &ServiceKey) -> u64 {
    let numbers = [key.family, key.protocol, (key.port >> 8) as u8, key.port as u8];
    let fnv = key.name.bytes().chain(numbers).fold(0xcbf2_9ce4_8422_2325_u64 ^ seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let a = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let b = (a ^ (a >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    b ^ (b >> 31)
}

/// Something there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for its {what}; raise limits.{}", .limit.name())]
struct NoRoom {
    what: &'static str,
    limit: Limit,
}

/// The tables while they are being made.
struct Planner<'a> {
    /// The flags of every endpoint by which it is known now, or will be.
    uses: BTreeMap<SocketKey, u32>,
    ways: &'a BTreeMap<IpAddr, Way>,
    current: &'a Tables,
    named: Option<&'a Named>,
    capacity: &'a Capacity,
    next: Tables,
    /// Backends of `current`, those removed included, by what they are.
    backends: BTreeMap<(ServiceId, SocketKey), BackendId>,
    /// Frontends of `current` that were removed, by what they are.
    removed_frontends: BTreeMap<(ServiceId, SocketKey), FrontendId>,
    service_ids: Ids,
    policy_ids: Ids,
    frontend_ids: Ids,
    backend_ids: Ids,
    endpoint_ids: Ids,
    taken_endpoint_ids: BTreeSet<EndpointId>,
    /// Frontends and endpoints that `next` has and `current` has not: both are in the map while it changes.
    added_frontends: usize,
    added_endpoints: usize,
    runs: Runs,
}

impl<'a> Planner<'a> {
    fn new(
        desired: &Compiled,
        ways: &'a BTreeMap<IpAddr, Way>,
        current: &'a Tables,
        named: Option<&'a Named>,
        capacity: &'a Capacity,
    ) -> Self {
        let mut uses: BTreeMap<SocketKey, u32> =
            current.endpoints.iter().map(|(key, endpoint)| (*key, endpoint.flags)).collect();
        for service in desired.services.values() {
            for key in service.choice.backends() {
                *uses.entry(*key).or_default() |= use_of(service.schedule);
            }
        }
        let mut backends = BTreeMap::new();
        for (id, record) in &current.backends {
            backends.entry((record.service, record.key)).or_insert(*id);
        }
        let live: BTreeSet<FrontendId> = current.frontends.values().map(|frontend| frontend.frontend).collect();
        let removed = current.frontend_infos.iter().filter(|(id, _)| !live.contains(id));
        let unknown = |id: &&BackendId| !current.backends.contains_key(id);
        let named_backends = named.map_or(0, |named| named.backends.iter().filter(unknown).count());
        let unknown = |id: &&FrontendId| !current.frontend_infos.contains_key(id);
        let named_frontends = named.map_or(0, |named| named.frontends.iter().filter(unknown).count());
        let runs = current.runs.iter().map(|(run, words)| (run, words.len()));
        Self {
            uses,
            ways,
            current,
            named,
            capacity,
            next: Tables::default(),
            backends,
            removed_frontends: removed.map(|(id, info)| ((info.service, info.key), *id)).collect(),
            service_ids: Ids::new(capacity.services, current.services.len()),
            policy_ids: Ids::new(capacity.policies, current.policies.len()),
            frontend_ids: Ids::new(capacity.frontend_infos, current.frontend_infos.len() + named_frontends),
            backend_ids: Ids::new(capacity.backends, current.backends.len() + named_backends),
            // An endpoint's number is no place in a map; there are as many as fit `ENDPOINTS`.
            endpoint_ids: Ids::new(capacity.endpoints.saturating_add(1), current.endpoints.len()),
            taken_endpoint_ids: current.endpoints.values().map(|endpoint| endpoint.id).collect(),
            added_frontends: 0,
            added_endpoints: 0,
            runs: Runs::new(capacity.slot_chunks, runs),
        }
    }

    /// Puts a service into the tables, or leaves them as they are.
    fn place(&mut self, before: Option<ServiceId>, service: &CompiledService) -> Result<ServiceId, NoRoom> {
        let arrangement = arrange(&service.choice);
        let kept = before.and_then(|id| self.kept(id, service, &arrangement));
        self.room(before, service)?;
        let run = match kept {
            Some(_) => None,
            None => Some(self.runs.take(arrangement.words()).ok_or(NoRoom { what: "slots", limit: Limit::Slots })?),
        };
        // From here on everything fits.
        let id = before.unwrap_or_else(|| {
            ServiceId(take(&mut self.service_ids, |id| self.current.services.contains_key(&ServiceId(id))))
        });
        for key in service.choice.backends() {
            self.backend(id, *key, service.schedule);
        }
        match (kept, run) {
            (Some(word), _) => self.keep_policy(id, word),
            (None, Some(run)) => self.new_policy(id, service, &arrangement, run),
            (None, None) => unreachable!("a policy that is not kept was given a run above"),
        }
        for key in &service.frontends {
            self.frontend(id, *key);
        }
        Ok(id)
    }

    /// The word of the policy in force, if it already is what the service wants.
    fn kept(
        &self,
        id: ServiceId,
        service: &CompiledService,
        arrangement: &Arrangement<SocketKey>,
    ) -> Option<ServiceWord> {
        let slot = |key: &SocketKey| {
            let backend = *self.backends.get(&(id, *key))?;
            Some(Slot { backend, endpoint: self.current.backends.get(&backend)?.endpoint })
        };
        let word = *self.current.services.get(&id)?;
        let policy = self.current.policies.get(&word.policy)?;
        let run = Run::of(policy);
        let wanted = self.policy_record(id, service, arrangement, run);
        let is_same = *policy == wanted && *self.current.runs.get(&run)? == words(arrangement, slot)?;
        is_same.then_some(word)
    }

    /// Whether everything that the service needs anew is there.
    fn room(&self, before: Option<ServiceId>, service: &CompiledService) -> Result<(), NoRoom> {
        let is_new_frontend = |key: &&SocketKey| !self.current.frontends.contains_key(key);
        let is_new_info = |key: &&SocketKey| before.is_none_or(|id| self.frontend_before(id, key).is_none());
        let frontends = service.frontends.iter().filter(is_new_frontend).count();
        let infos = service.frontends.iter().filter(is_new_info).count();

        let keys: BTreeSet<&SocketKey> = service.choice.backends().into_iter().collect();
        let is_new_backend = |key: &&&SocketKey| before.is_none_or(|id| !self.backends.contains_key(&(id, ***key)));
        let backends = keys.iter().filter(is_new_backend).count();
        let endpoints = keys.iter().filter(|key| !self.has_endpoint(key)).count();

        let frontends_in_map = self.current.frontends.len() + self.added_frontends + frontends;
        let endpoints_in_map = self.current.endpoints.len() + self.added_endpoints + endpoints;
        let no_room = |what, limit| Err(NoRoom { what, limit });
        if !self.service_ids.has(usize::from(before.is_none())) || !self.policy_ids.has(1) {
            no_room("record", Limit::Services)
        } else if frontends_in_map > self.capacity.frontends as usize || !self.frontend_ids.has(infos) {
            no_room("frontends", Limit::Services)
        } else if endpoints_in_map > self.capacity.endpoints as usize || !self.backend_ids.has(backends) {
            no_room("backends", Limit::Backends)
        } else {
            Ok(())
        }
    }

    fn has_endpoint(&self, key: &SocketKey) -> bool {
        self.current.endpoints.contains_key(key) || self.next.endpoints.contains_key(key)
    }

    /// The number a frontend of this service has, or had before it was removed.
    fn frontend_before(&self, id: ServiceId, key: &SocketKey) -> Option<FrontendId> {
        let live = self.current.frontends.get(key).filter(|frontend| frontend.service == id);
        let named_rightly = |frontend: &FrontendId| {
            self.current.frontend_infos.get(frontend) == Some(&FrontendInfo { key: *key, service: id })
        };
        live.map(|frontend| frontend.frontend)
            .or_else(|| self.removed_frontends.get(&(id, *key)).copied())
            .filter(named_rightly)
    }

    fn frontend(&mut self, id: ServiceId, key: SocketKey) {
        let frontend = self.frontend_before(id, &key).unwrap_or_else(|| {
            let is_taken = |number| {
                let frontend = FrontendId(number);
                self.current.frontend_infos.contains_key(&frontend)
                    || self.named.is_some_and(|named| named.frontends.contains(&frontend))
            };
            FrontendId(take(&mut self.frontend_ids, is_taken))
        });
        self.added_frontends += usize::from(!self.current.frontends.contains_key(&key));
        self.next.frontends.insert(key, Frontend { frontend, service: id });
        self.next.frontend_infos.insert(frontend, FrontendInfo { key, service: id });
    }

    fn backend(&mut self, id: ServiceId, key: SocketKey, schedule: Schedule) {
        let endpoint = self.endpoint(key, schedule);
        if self.next.backends.contains_key(&self.backends.get(&(id, key)).copied().unwrap_or_default()) {
            return;
        }
        let backend = self.backends.get(&(id, key)).copied().unwrap_or_else(|| {
            let is_taken = |number| {
                let backend = BackendId(number);
                self.current.backends.contains_key(&backend)
                    || self.named.is_some_and(|named| named.backends.contains(&backend))
            };
            BackendId(take(&mut self.backend_ids, is_taken))
        });
        let before = self.current.backends.get(&backend).map(|record| record.way);
        let way = self.ways.get(&key.address.to_ip()).copied().or(before).unwrap_or(Way::Stack);
        let record = BackendRecord { service: id, key, endpoint, state: BackendState::Use, way };
        self.backends.insert((id, key), backend);
        self.next.backends.insert(backend, record);
    }

    /// The endpoint with what this schedule needs; its other flags come in [`Planner::endpoints`].
    fn endpoint(&mut self, key: SocketKey, schedule: Schedule) -> EndpointId {
        let flag = use_of(schedule);
        if let Some(endpoint) = self.next.endpoints.get_mut(&key) {
            endpoint.flags |= flag;
            return endpoint.id;
        }
        let id = match self.current.endpoints.get(&key) {
            Some(endpoint) => endpoint.id,
            None => {
                self.added_endpoints += 1;
                EndpointId(take(&mut self.endpoint_ids, |id| self.taken_endpoint_ids.contains(&EndpointId(id))))
            }
        };
        self.next.endpoints.insert(key, Endpoint { id, flags: flag, backend: BackendId(0), zero: 0 });
        id
    }

    fn keep_policy(&mut self, id: ServiceId, word: ServiceWord) {
        self.next.services.insert(id, word);
        let Some(policy) = self.current.policies.get(&word.policy) else { return };
        self.next.policies.insert(word.policy, *policy);
        if let Some(words) = self.current.runs.get(&Run::of(policy)) {
            self.next.runs.insert(Run::of(policy), words.clone());
        }
    }

    fn new_policy(&mut self, id: ServiceId, service: &CompiledService, arrangement: &Arrangement<SocketKey>, run: Run) {
        let slot = |key: &SocketKey| {
            let backend = *self.backends.get(&(id, *key))?;
            Some(Slot { backend, endpoint: self.next.endpoints.get(key)?.id })
        };
        let words = words(arrangement, slot).expect("every backend of the choice was placed before");
        let policy =
            PolicyId(take(&mut self.policy_ids, |policy| self.current.policies.contains_key(&PolicyId(policy))));
        let before = self.current.services.get(&id).copied().unwrap_or_default();
        self.next.policies.insert(policy, self.policy_record(id, service, arrangement, run));
        self.next.runs.insert(run, words);
        self.next.services.insert(id, ServiceWord { policy, change: following(before.change) });
    }

    fn policy_record(
        &self,
        id: ServiceId,
        service: &CompiledService,
        arrangement: &Arrangement<SocketKey>,
        run: Run,
    ) -> Policy {
        let own = use_of(service.schedule);
        let has_other = |key: &&SocketKey| self.uses.get(key).is_some_and(|uses| uses & !own != 0);
        let mixed = if service.choice.backends().iter().any(has_other) { Policy::MIXED } else { 0 };
        let flags = match service.schedule {
            Schedule::PerFlow => mixed,
            Schedule::PerPacket => mixed | Policy::PER_PACKET,
        };
        Policy {
            index: arrangement.slots.index().to_word(),
            flags,
            slots_chunk: run.chunk,
            slots_start: run.start,
            slots_count: arrangement.slots.count() as u32,
            service: id,
            others_count: arrangement.others.len() as u32,
            zero: [0; 9],
        }
    }

    /// Leaves services as they were that could not be changed.
    fn leave(&mut self, services: &BTreeSet<ServiceId>) {
        if services.is_empty() {
            return;
        }
        for id in services {
            if let Some(word) = self.current.services.get(id) {
                self.keep_policy(*id, *word);
            }
        }
        for (key, frontend) in &self.current.frontends {
            if services.contains(&frontend.service) && !self.next.frontends.contains_key(key) {
                self.next.frontends.insert(*key, *frontend);
                let info = self.current.frontend_infos.get(&frontend.frontend);
                self.next.frontend_infos.extend(info.map(|info| (frontend.frontend, *info)));
            }
        }
        for (id, record) in &self.current.backends {
            if services.contains(&record.service) {
                let way = self.ways.get(&record.key.address.to_ip()).copied().unwrap_or(record.way);
                self.next.backends.insert(*id, BackendRecord { way, ..*record });
            }
        }
    }

    /// Keeps what was removed and what flows may still name.
    fn keep_removed(&mut self) {
        for (id, record) in &self.current.backends {
            let was_removed = record.state == BackendState::UdpGone;
            let is_free = was_removed && self.named.is_some_and(|named| !named.backends.contains(id));
            if !is_free && !self.next.backends.contains_key(id) {
                let way = self.ways.get(&record.key.address.to_ip()).copied().unwrap_or(record.way);
                self.next.backends.insert(*id, BackendRecord { way, state: BackendState::UdpGone, ..*record });
            }
        }
        let removed: BTreeSet<FrontendId> = self.removed_frontends.values().copied().collect();
        for (id, info) in &self.current.frontend_infos {
            let is_free = removed.contains(id) && self.named.is_some_and(|named| !named.frontends.contains(id));
            if !is_free && !self.next.frontend_infos.contains_key(id) {
                self.next.frontend_infos.insert(*id, *info);
            }
        }
        let backend_services = self.next.backends.values().map(|record| record.service);
        let frontend_services = self.next.frontend_infos.values().map(|info| info.service);
        let needed: BTreeSet<ServiceId> = backend_services.chain(frontend_services).collect();
        for (id, word) in &self.current.services {
            if needed.contains(id) && !self.next.services.contains_key(id) {
                let stopped = match word.policy {
                    PolicyId(0) => *word,
                    PolicyId(_) => ServiceWord { policy: PolicyId(0), change: following(word.change) },
                };
                self.next.services.insert(*id, stopped);
            }
        }
    }

    /// Completes the endpoints of all backends, removed ones included.
    ///
    /// A flag goes when a sweep found nothing any more that it is for, and the service had no new flows or queries of
    /// that kind when it looked; an answer that is under way has to find its frontend.
    fn endpoints(&mut self) {
        let mut users: BTreeMap<SocketKey, Vec<BackendId>> = BTreeMap::new();
        for (id, record) in &self.next.backends {
            users.entry(record.key).or_default().push(*id);
        }
        let busy: BTreeSet<ServiceId> = self
            .named
            .iter()
            .flat_map(|named| &named.frontends)
            .filter_map(|id| Some(self.current.frontend_infos.get(id)?.service))
            .collect();
        for (key, backends) in users {
            let before = self.current.endpoints.get(&key).copied();
            let is_quiet = |id: &BackendId| {
                let (Some(named), Some(record)) = (self.named, self.next.backends.get(id)) else { return false };
                let word = self.next.services.get(&record.service);
                record.state == BackendState::Use
                    && !named.backends.contains(id)
                    && !busy.contains(&record.service)
                    && word == self.current.services.get(&record.service)
            };
            let kept = before.filter(|_| !backends.iter().all(is_quiet)).map_or(0, |endpoint| endpoint.flags);
            let counted = self.counted(&backends, before.map(|endpoint| endpoint.backend));
            let Some(mut endpoint) = self.next.endpoints.get(&key).copied().or(before) else { continue };
            endpoint.flags |= kept;
            endpoint.backend = match endpoint.flags & Endpoint::REPLIES {
                0 => BackendId(0),
                _ => counted,
            };
            self.next.endpoints.insert(key, endpoint);
        }
    }

    /// The one of an endpoint's backends whose counters a reply to a per-packet service moves: who it was before, if
    /// it still is one.
    fn counted(&self, backends: &[BackendId], before: Option<BackendId>) -> BackendId {
        let is_per_packet = |id: &&BackendId| {
            let record = self.next.backends.get(id).filter(|record| record.state == BackendState::Use);
            let word = record.and_then(|record| self.next.services.get(&record.service));
            word.and_then(|word| self.next.policies.get(&word.policy)).is_some_and(Policy::is_per_packet)
        };
        let asked: Vec<&BackendId> = backends.iter().filter(is_per_packet).collect();
        match (before, asked.first()) {
            (Some(before), Some(_)) if asked.contains(&&before) => before,
            (_, Some(first)) => **first,
            (Some(before), None) if backends.contains(&before) => before,
            (_, None) => BackendId(0),
        }
    }
}

fn take(ids: &mut Ids, is_taken: impl Fn(u32) -> bool) -> u32 {
    ids.take(is_taken).expect("there is room for it: that was counted before anything was taken")
}

/// The change number after this one. Never zero, so that the word of a service that has no policy is none that was
/// never written.
fn following(change: u32) -> u32 {
    change.wrapping_add(1).max(1)
}

/// What an endpoint is known by in the packet path, under this schedule.
const fn use_of(schedule: Schedule) -> u32 {
    match schedule {
        Schedule::PerFlow => Endpoint::FLOWS,
        Schedule::PerPacket => Endpoint::REPLIES,
    }
}

/// The words of `SLOTS` of an arrangement; nothing if a backend has no slot.
fn words(arrangement: &Arrangement<SocketKey>, slot: impl Fn(&SocketKey) -> Option<Slot>) -> Option<Vec<u64>> {
    let mut words = Vec::with_capacity(arrangement.words());
    match &arrangement.slots {
        Slots::Random(keys) | Slots::Cursor(keys) => {
            for key in keys {
                words.push(slot(key)?.to_word());
            }
        }
        Slots::Chain(rules) => {
            for rule in rules {
                let rule = NthRule { every: rule.every, packet: rule.packet, slot: slot(&rule.backend)? };
                words.extend(rule.to_words());
            }
        }
    }
    for key in &arrangement.others {
        words.push(slot(key)?.to_word());
    }
    Some(words)
}

#[cfg(test)]
mod tests;
