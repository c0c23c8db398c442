//! What the controller knows, and the one place that changes the data path: decide, plan, apply, report.
//!
//! Maps are written before clients are let in, and replies are taken before packets bypass the stack. Whatever fails
//! while running leaves what was in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BackendId, BackendState, Way},
    device::Device,
    service::{FrontendId, ServiceId},
};
use tracing::{debug, error, info, warn};

use super::{
    RunError,
    target::{self, Target},
};
use crate::{
    capacity::Capacity,
    dataplane::{
        Dataplane, DataplaneError, Named,
        attach::{Held, HookReport, Hooks, Outcome, Place, Point, Role, XdpMode},
        pins::PinsError,
    },
    model::Desired,
    network::{View, early, hooks, way::Chosen},
    plan::{
        Plan,
        change::{Change, diff},
        plan,
        tables::{BackendRecord, ServiceKey, Tables},
    },
    settings::{Limit, Settings},
    source::file::{Loaded, Places},
    state::{HookState, LastChange, LastRefusal, LastSweep, Moment, ServiceState, State, WayState},
    trace::Names,
};

#[cfg(test)]
mod tests;

/// Makes the hooks what is wanted.
pub(super) type Attach<D> = fn(&D, &BTreeMap<u32, Hooks>) -> Result<Vec<HookReport>, PinsError>;

/// Everything the controller knows, and the data path it keeps.
pub(super) struct World<D> {
    pub(super) dataplane: D,
    attach: Attach<D>,
    capacity: Capacity,
    pub(super) desired: Desired,
    pub(super) settings: Settings,
    target: Target,
    /// What is programmed.
    pub(super) tables: Tables,
    services: BTreeMap<ServiceKey, ServiceId>,
    /// What is attached, as far as it is known.
    hooks: BTreeMap<u32, Hooks>,
    /// The network as the packet path was last told of it.
    told: View,
    /// Replies are taken wherever they were before, and clients are already let in.
    is_adopted: bool,
    has_failed_hooks: bool,
    /// Where the kernel has refused XDP, and why.
    xdp_refused: BTreeMap<u32, String>,
    /// A change failed half way, so that the tables are not what the target asks for.
    is_half_done: bool,
    /// What is odd about the configuration in force.
    oddities: Vec<String>,
    /// Where its parts were read.
    places: Places,
    pub(super) state: State,
    state_folder: PathBuf,
    /// What lies in that folder.
    written: Option<State>,
}

/// Interfaces on which hooks are missing, and why.
#[derive(Debug, Default)]
struct Unhooked {
    /// What comes in is not seen.
    ingress: BTreeMap<u32, String>,
    /// Replies that the stack forwards are not rewritten.
    egress: BTreeMap<u32, String>,
    /// XDP does not look first.
    xdp: BTreeMap<u32, String>,
    /// Somewhere a program that is not wanted any more is there still.
    has_leftover: bool,
}

impl Unhooked {
    fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty() && self.xdp.is_empty() && !self.has_leftover
    }
}

impl<D: Dataplane> World<D> {
    pub(super) fn new(
        dataplane: D,
        attach: Attach<D>,
        capacity: Capacity,
        state: State,
        state_folder: PathBuf,
    ) -> Result<Self, DataplaneError> {
        Ok(Self {
            tables: dataplane.read()?,
            dataplane,
            attach,
            capacity,
            desired: Desired::default(),
            settings: Settings::default(),
            target: Target::default(),
            services: BTreeMap::new(),
            hooks: BTreeMap::new(),
            told: View::default(),
            is_adopted: false,
            has_failed_hooks: false,
            xdp_refused: BTreeMap::new(),
            is_half_done: false,
            oddities: Vec::new(),
            places: Places::default(),
            state,
            state_folder,
            written: None,
        })
    }

    /// What the trace calls things by.
    pub(super) fn names(&self, view: &View) -> Names {
        let services: BTreeMap<ServiceId, &str> =
            self.services.iter().map(|(key, id)| (*id, key.name.as_str())).collect();
        let service = |id| services.get(&id).map(|name| (*name).to_owned());
        Names {
            interfaces: view.links.iter().map(|(ifindex, link)| (*ifindex, link.name.clone())).collect(),
            services: (self.tables.frontends.iter())
                .filter_map(|(key, frontend)| Some((*key, service(frontend.service)?)))
                .collect(),
            backends: self.tables.backends.iter().map(|(id, backend)| (*id, backend.key)).collect(),
        }
    }

    /// The addresses of these backends and of those in the maps, removed ones included.
    pub(super) fn backends_with(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        target::backends(desired).into_iter().chain(remaining(&self.tables)).collect()
    }

    /// Takes over what an earlier controller knew beside the maps, and the hooks that are `held`.
    pub(super) fn remember(&mut self, known: &State, view: &View, held: &[(Place, Held)]) {
        self.is_adopted = true;
        self.services = known.services.iter().map(|service| (service.key.clone(), ServiceId(service.id))).collect();
        self.state.services.clone_from(&known.services);
        self.state.counted_from.clone_from(&known.counted_from);
        self.hooks.clear();
        for (place, _) in held.iter().filter(|(place, _)| view.links.contains_key(&place.ifindex)) {
            let none = || Hooks { name: view.name(place.ifindex), ingress: None, egress: false, xdp: None };
            let hooks = self.hooks.entry(place.ifindex).or_insert_with(none);
            // By number: the interface may have another name by now.
            let known = known.hooks.iter().find(|hook| hook.ifindex == place.ifindex);
            match place.point {
                Point::Xdp => {
                    // Taken for the other mode it would be put anew in that one first.
                    let is_generic = known.is_some_and(|hook| hook.xdp.as_deref() == Some(XdpMode::Generic.name()));
                    hooks.xdp = Some(if is_generic { XdpMode::Generic } else { XdpMode::Native });
                }
                Point::Ingress => {
                    let role = known.and_then(|hook| role_of(hook.ingress.as_deref()));
                    // Where nobody knows which program it is, none of what it may do is taken away.
                    hooks.ingress = role.or(Some(Role::Both));
                }
                Point::Egress => hooks.egress = true,
            }
        }
    }

    /// Brings about the first configuration. Where the kernel refuses an XDP that was asked for, a new data path is
    /// refused; one that was adopted goes on without, because clients count on it.
    pub(super) fn begin(&mut self, loaded: Loaded, view: &View) -> Result<(), RunError> {
        let is_new = !self.is_adopted;
        self.settle(loaded, view, "start")?;
        let refused = self.target.refused_xdp(&self.xdp_refused, &self.settings);
        if is_new && !refused.is_empty() {
            return Err(RunError::Refused(refused.iter().map(|fault| self.places.locate(fault)).collect()));
        }
        Ok(())
    }

    /// Brings about another configuration, or refuses it whole.
    pub(super) fn reload(&mut self, loaded: Loaded, view: &View) -> Result<(), RunError> {
        let (asked, in_force) = (&loaded.settings.limits, &self.settings.limits);
        if let Some(limit) = Limit::ALL.into_iter().find(|limit| asked.get(*limit) != in_force.get(*limit)) {
            let why = "[limits] are not those in force, and maps cannot grow while flows are in them; take the change \
                       back, or stop the controller, remove the maps with `evenkeel detach` and start again (flows are \
                       lost)";
            return Err(RunError::Refused(vec![loaded.places.locate_limit(limit, why)]));
        }
        self.settle(loaded, view, "configuration")
    }

    fn settle(&mut self, loaded: Loaded, view: &View, cause: &str) -> Result<(), RunError> {
        let Loaded { desired, settings, warnings, places } = loaded;
        let target =
            Target::decide(&desired, &remaining(&self.tables), &settings, view, &self.target, &self.early_at());
        let mut faults = target.faults.clone();
        let rejected = self.plan(&target, None).rejected;
        faults.extend(rejected.into_iter().filter(|fault| !target.faults.contains(fault)));
        if !faults.is_empty() {
            return Err(RunError::Refused(faults.iter().map(|fault| places.locate(fault)).collect()));
        }
        for warning in &warnings {
            warn!("{warning}");
        }
        let settings_before = std::mem::replace(&mut self.settings, settings);
        let oddities_before = std::mem::replace(&mut self.oddities, warnings.iter().map(ToString::to_string).collect());
        let places_before = std::mem::replace(&mut self.places, places);
        if let Err(error) = self.bring_about(target, view, None, cause) {
            (self.settings, self.oddities, self.places) = (settings_before, oddities_before, places_before);
            return Err(error);
        }
        self.desired = desired;
        self.state.last_refusal = None;
        self.write_state();
        Ok(())
    }

    /// Goes on as before, and says why.
    pub(super) fn refuse(&mut self, error: &RunError) {
        let messages = messages(error);
        for message in &messages {
            warn!("{message}");
        }
        warn!("configuration refused; what was running goes on");
        self.state.last_refusal = Some(LastRefusal { at: Moment::now(), messages });
    }

    /// The same for what was refused before and was tried again, which is said where there is anything new to say.
    pub(super) fn refuse_again(&mut self, error: &RunError) {
        if self.state.last_refusal.as_ref().is_none_or(|last| last.messages != messages(error)) {
            self.refuse(error);
        }
    }

    /// Brings about what the network's present state asks for.
    pub(super) fn follow(&mut self, view: &View) {
        let remain = remaining(&self.tables);
        let held = self.early_at();
        let mut target = Target::decide(&self.desired, &remain, &self.settings, view, &self.target, &held);
        if may_answer_through_stack(&self.tables) {
            target.keep_egress(view, &self.hooks);
        }
        for fault in target.faults.iter().filter(|fault| !self.target.faults.contains(fault)) {
            warn!("{}", self.places.locate(fault));
        }
        if target == self.target && !self.has_failed_hooks && !self.is_half_done {
            if *view != self.told {
                self.tell(view, &early::devices(view, &target.hooks));
            }
            return;
        }
        if let Err(error) = self.bring_about(target, view, None, "network") {
            warn!(%error, "the network has changed and could not be followed");
        }
    }

    /// Compares the maps with what was programmed. A difference is told and left alone: whoever made it should be found.
    pub(super) fn audit(&mut self) {
        if self.is_half_done {
            return;
        }
        match self.dataplane.read() {
            Ok(found) => {
                let altered: Vec<String> = self.tables.differing(&found).into_iter().map(String::from).collect();
                if altered != self.state.altered && !altered.is_empty() {
                    error!(maps = altered.join(", "), "the maps are not what was programmed: someone else writes them");
                }
                self.state.altered = altered;
            }
            Err(error) => warn!(%error, "audit"),
        }
    }

    /// Evicts what is over, and frees what nothing names any more.
    pub(super) fn sweep(&mut self) {
        let swept = self.dataplane.sweep().map_err(RunError::from).and_then(|named| {
            self.state.last_sweep =
                Some(LastSweep { at: Moment::now(), waiting_backends: named_and_removed(&self.tables, &named) });
            let plan = self.plan(&self.target, Some(&named));
            let changes = diff(&self.tables, &plan);
            if changes.is_empty() {
                return Ok(());
            }
            debug!(changes = changes.len(), "freed what no flow names");
            self.apply(&changes, plan)?;
            Ok(())
        });
        if let Err(error) = swept {
            warn!(%error, "sweep");
        }
    }

    /// Puts back what someone else took off the interfaces, and sees what others have put there.
    pub(super) fn look_after_hooks(&mut self, view: &View) {
        // Those that failed have just been tried, and interfaces that are gone will be followed.
        if self.has_failed_hooks || self.hooks.keys().any(|ifindex| !view.links.contains_key(ifindex)) {
            return;
        }
        match self.put_hooks(&self.hooks.clone()) {
            Ok((unhooked, reports)) => {
                self.report_early(view);
                self.has_failed_hooks = !unhooked.is_empty();
                for report in reports.iter().filter(|report| report.program.is_some()) {
                    if let Ok(Outcome::Attached | Outcome::Replaced) = report.outcome {
                        let (interface, hook) = (&report.name, report.point.name());
                        warn!(interface, hook, "someone else took our program off the interface; it is put back");
                    }
                }
            }
            Err(error) => warn!(%error, "hooks"),
        }
    }

    /// Makes the data path what `target` says, in the order in which no packet notices.
    fn bring_about(
        &mut self,
        mut target: Target,
        view: &View,
        named: Option<&Named>,
        cause: &str,
    ) -> Result<(), RunError> {
        let started = Instant::now();
        let hooked = self.hooks.len();
        self.hooks.retain(|ifindex, _| view.links.contains_key(ifindex));
        // What went with its interface is left in pins and status: even if nothing else is wanted, there is something to do.
        self.has_failed_hooks |= self.hooks.len() != hooked;
        self.tell(view, &early::devices(view, &target.hooks));
        let mut unhooked = self.take_replies(&target)?;
        if target.avoid(view, &unhooked.ingress) {
            unhooked = self.take_replies(&target)?;
        }
        let plan = self.plan(&target, named);
        if may_answer_through_stack(&plan.tables) {
            target.keep_egress(view, &self.hooks);
        }
        let shut = target.shut(&unhooked.egress);
        let faults = target.faults.iter().chain(&plan.rejected);
        let faults: Vec<String> = faults.map(|fault| self.places.locate(fault)).collect();
        let changes = diff(&self.tables, &plan);
        let (stored, applied) = self.apply(&changes, plan)?;
        let failed = self.attach(&target.hooks)?;
        self.has_failed_hooks = !failed.is_empty() || !unhooked.is_empty();
        self.is_adopted = false;
        let warnings: BTreeSet<String> =
            [&self.oddities[..], &target.warnings, &faults, &shut].concat().into_iter().collect();
        let is_new = |warning: &&String| !self.state.warnings.contains(warning);
        for warning in target.warnings.iter().chain(&shut).filter(is_new) {
            warn!("{warning}");
        }
        self.state.warnings = warnings.into_iter().collect();
        self.report_services(&target);
        self.target = target;
        self.report_early(view);
        self.report_ways(view);
        if !changes.is_empty() {
            self.state.last_change = Some(LastChange {
                at: Moment::now(),
                cause: cause.into(),
                changes: changes.len(),
                stored_ms: stored.as_secs_f64() * 1e3,
                applied_ms: applied.as_secs_f64() * 1e3,
            });
            info!(
                cause,
                services = self.tables.services.len(),
                backends = self.tables.backends.len(),
                changes = changes.len(),
                stored = ?stored,
                applied = ?applied,
                whole = ?started.elapsed(),
                "programmed"
            );
        }
        Ok(())
    }

    /// Has the packet path ask anew for what it keeps of the network: routes to clients may have changed, of which no view
    /// tells.
    pub(super) fn notice(&mut self, view: &View) {
        self.tell(view, &early::devices(view, &self.target.hooks));
    }

    /// Tells the packet path of the network, in which it is to know these devices.
    fn tell(&mut self, view: &View, devices: &BTreeMap<u32, Device>) {
        self.dataplane.follow_network(devices);
        self.told.clone_from(view);
    }

    /// The interfaces at which XDP looks first.
    fn early_at(&self) -> BTreeSet<u32> {
        self.hooks.iter().filter(|(_, hooks)| hooks.xdp.is_some()).map(|(ifindex, _)| *ifindex).collect()
    }

    /// Attaches whatever rewrites replies of `target`, and tells where that failed.
    fn take_replies(&mut self, target: &Target) -> Result<Unhooked, RunError> {
        if self.is_adopted && self.hooks.is_empty() {
            // Clients are let in already, who knows where: nothing may be taken away from them.
            return self.attach(&target.hooks);
        }
        self.attach(&hooks::replies_first(&self.hooks, &target.hooks))
    }

    /// Makes the hooks what is wanted, and tells on which interfaces they are missing.
    fn attach(&mut self, wanted: &BTreeMap<u32, Hooks>) -> Result<Unhooked, RunError> {
        if *wanted == self.hooks && !self.has_failed_hooks && !self.is_adopted {
            return Ok(Unhooked::default());
        }
        Ok(self.put_hooks(wanted)?.0)
    }

    /// The same whatever is known of the hooks, and tells what became of each.
    fn put_hooks(&mut self, wanted: &BTreeMap<u32, Hooks>) -> Result<(Unhooked, Vec<HookReport>), RunError> {
        let reports = (self.attach)(&self.dataplane, wanted)?;
        let failed = |point| -> BTreeMap<u32, String> {
            let here = reports.iter().filter(move |report| report.point == point && report.program.is_some());
            here.filter_map(|report| Some((report.ifindex, report.outcome.as_ref().err()?.to_string()))).collect()
        };
        let mut unhooked = Unhooked {
            ingress: failed(Point::Ingress),
            egress: failed(Point::Egress),
            xdp: failed(Point::Xdp),
            has_leftover: false,
        };
        for report in reports.iter().filter(|report| report.program.is_none()) {
            if let Err(error) = &report.outcome {
                unhooked.has_leftover = true;
                warn!(%error, "a program that is not wanted any more stays");
            }
        }
        let hooks = wanted.iter().map(|(ifindex, hooks)| hook_state(*ifindex, hooks, &reports)).collect();
        let before = std::mem::replace(&mut self.state.hooks, hooks);
        for hook in self.state.hooks.iter().filter(|hook| !hook.why.is_empty()) {
            if !before.iter().any(|old| old.ifindex == hook.ifindex && old.why == hook.why) {
                warn!(interface = hook.interface, "{}", hook.why);
            }
        }
        self.hooks.clone_from(wanted);
        self.xdp_refused.clone_from(&unhooked.xdp);
        for ifindex in unhooked.xdp.keys() {
            // What is there is someone else's.
            self.hooks.entry(*ifindex).and_modify(|hooks| hooks.xdp = None);
        }
        Ok((unhooked, reports))
    }

    fn plan(&self, target: &Target, named: Option<&Named>) -> Plan {
        let seed = u64::from(self.state.pid) << 32 ^ self.state.started.0;
        plan(&target.compiled, &target.words(), &self.tables, &self.services, named, &self.capacity, seed)
    }

    /// Applies the changes; tells the time until packets saw them and until nothing older was under way.
    fn apply(&mut self, changes: &[Change], plan: Plan) -> Result<(Duration, Duration), DataplaneError> {
        let started = Instant::now();
        let grace = changes.iter().position(|change| *change == Change::Grace).unwrap_or(changes.len());
        let (store, rest) = changes.split_at(grace);
        let stored = self.dataplane.apply(store).map(|()| started.elapsed());
        let applied = stored.and_then(|stored| self.dataplane.apply(rest).map(|()| (stored, started.elapsed())));
        match applied {
            Ok(times) => {
                self.is_half_done = false;
                if let Err(error) = self.count_anew(&plan.tables) {
                    warn!(%error, "how even the changed services are will be judged over choices of before, too");
                }
                self.tables = plan.tables;
                self.services = plan.services;
                Ok(times)
            }
            Err(error) => {
                // Part of it is in force; the next plan has to begin with what there really is.
                self.is_half_done = true;
                self.tables = self.dataplane.read()?;
                Err(error)
            }
        }
    }

    /// Marks from where on choices tell how even the services are whose slots change.
    fn count_anew(&mut self, next: &Tables) -> Result<(), DataplaneError> {
        let is_new = |service: &ServiceId| self.tables.services.get(service) != next.services.get(service);
        if next.services.keys().any(is_new) {
            let counters = self.dataplane.counters()?;
            for (id, _) in next.backends.iter().filter(|(_, record)| is_new(&record.service)) {
                let choices = counters.traffic.get(id).map_or(0, |traffic| traffic.choices);
                self.state.counted_from.insert(id.0, choices);
            }
        }
        self.state.counted_from.retain(|id, _| next.backends.contains_key(&BackendId(*id)));
        Ok(())
    }

    fn report_services(&mut self, target: &Target) {
        let before = std::mem::take(&mut self.state.services);
        let named = |(key, id): (&ServiceKey, &ServiceId)| match target.compiled.services.get(key) {
            Some(service) => Some(ServiceState {
                id: id.0,
                key: key.clone(),
                selector: service.choice.selector().to_string(),
                schedule: service.schedule.name().into(),
            }),
            None => before.iter().find(|old| old.id == id.0 && old.key == *key).cloned(),
        };
        self.state.services = self.services.iter().filter_map(named).collect();
    }

    /// Tells of each interface why XDP does not look first there, or what it cannot do.
    fn report_early(&mut self, view: &View) {
        for hook in &mut self.state.hooks {
            hook.xdp_why = match &hook.xdp {
                Some(_) => early::leaves(view, hook.ifindex).unwrap_or_default(),
                None => self.target.early.why_not.get(&hook.ifindex).cloned().unwrap_or_default(),
            };
        }
    }

    fn report_ways(&mut self, view: &View) {
        let is_early = self.target.clients.iter().any(|client| self.is_early(*client));
        let way = |(address, chosen): (&IpAddr, &Chosen)| {
            let name = match chosen.way {
                Way::Neighbour { ifindex } if is_early && early::refuses_redirected(view, ifindex).is_none() => {
                    "xdp-redirect"
                }
                Way::Neighbour { .. } | Way::Peer { .. } | Way::Stack => chosen.way.name(),
            };
            WayState {
                address: *address,
                way: name.into(),
                interface: chosen.port.or(chosen.device).map(|ifindex| view.name(ifindex)),
                back: self.back(chosen, view),
                why: chosen.why.clone(),
            }
        };
        let ways = self.target.ways.iter().map(way).collect();
        let before = std::mem::replace(&mut self.state.ways, ways);
        let before: BTreeMap<IpAddr, &WayState> = before.iter().map(|old| (old.address, old)).collect();
        for way in &self.state.ways {
            let old = before.get(&way.address);
            if old.is_some_and(|old| (&old.way, &old.interface) != (&way.way, &way.interface)) {
                let through = way.interface.as_deref().unwrap_or("-");
                info!(backend = %way.address, way = way.way, through, why = way.why, "another way");
            }
        }
    }

    fn is_early(&self, ifindex: u32) -> bool {
        self.hooks.get(&ifindex).is_some_and(|hooks| hooks.xdp.is_some())
    }

    /// Where a backend's replies are taken.
    fn back(&self, chosen: &Chosen, view: &View) -> String {
        let (ifindex, point) = match chosen.way {
            Way::Stack => {
                let names: Vec<String> = self.target.clients.iter().map(|client| view.name(*client)).collect();
                return format!("{} egress", names.join(", "));
            }
            Way::Neighbour { ifindex } | Way::Peer { ifindex } => {
                (ifindex, if self.is_early(ifindex) { "xdp" } else { "tc" })
            }
        };
        format!("{} {point}", view.name(ifindex))
    }

    pub(super) fn write_state(&mut self) {
        if self.written.as_ref() == Some(&self.state) {
            return;
        }
        match self.state.write(&self.state_folder) {
            Ok(()) => self.written = Some(self.state.clone()),
            Err(error) => warn!(%error, "the state is not written"),
        }
    }
}

fn messages(error: &RunError) -> Vec<String> {
    if let RunError::Refused(messages) = error { messages.clone() } else { vec![error.to_string()] }
}

/// The addresses of all backends in the maps.
pub(super) fn remaining(tables: &Tables) -> BTreeSet<IpAddr> {
    tables.backends.values().map(|record| record.key.address.to_ip()).collect()
}

/// Whether something was removed whose answers may yet come through the stack.
fn may_answer_through_stack(tables: &Tables) -> bool {
    let live: BTreeSet<FrontendId> = tables.frontends.values().map(|frontend| frontend.frontend).collect();
    let is_removed = |record: &BackendRecord| record.state == BackendState::UdpGone;
    tables.backends.values().any(|record| record.way == Way::Stack)
        && (tables.backends.values().any(is_removed) || tables.frontend_infos.keys().any(|info| !live.contains(info)))
}

fn named_and_removed(tables: &Tables, named: &Named) -> usize {
    let is_removed = |(id, record): &(&BackendId, &BackendRecord)| {
        record.state == BackendState::UdpGone && named.backends.contains(id)
    };
    tables.backends.iter().filter(is_removed).count()
}

fn hook_state(ifindex: u32, hooks: &Hooks, reports: &[HookReport]) -> HookState {
    let all = || reports.iter().filter(|report| report.ifindex == ifindex && report.program.is_some());
    let here = || all().filter(|report| report.point != Point::Xdp);
    let xdp = all().find(|report| report.point == Point::Xdp && report.outcome.is_ok());
    let faults = all().filter_map(|report| report.outcome.as_ref().err()).map(ToString::to_string);
    let foreign = here().flat_map(|report| &report.foreign).map(ToString::to_string);
    let why: BTreeSet<String> = faults.chain(foreign).collect();
    HookState {
        interface: hooks.name.clone(),
        ifindex,
        ingress: hooks.ingress.map(|role| role.name().into()),
        egress: hooks.egress,
        mode: here().next().map_or("none", |report| report.mode.name()).into(),
        xdp: xdp.map(|report| report.mode.name().into()),
        xdp_why: String::new(),
        why: why.into_iter().collect::<Vec<_>>().join("; "),
    }
}

fn role_of(name: Option<&str>) -> Option<Role> {
    [Role::Clients, Role::Backends, Role::Both].into_iter().find(|role| Some(role.name()) == name)
}
