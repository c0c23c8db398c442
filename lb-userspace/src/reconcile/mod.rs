//! The controller's story: wait, decide, plan, apply, report. What to bring about is decided in [`target`], what there is
//! to wait for is in `events`; this file keeps the order.
//!
//! Maps are written before clients are let in, and replies are taken before packets bypass the stack. Whatever fails
//! while running leaves what was in force.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use lb_common::{
    backend::{BackendId, BackendState, Way},
    service::{FrontendId, ServiceId},
};
use sd_notify::NotifyState;
use tracing::{debug, error, info, warn};

use crate::{
    capacity::Capacity,
    dataplane::{
        Dataplane, DataplaneError, Named,
        attach::{self, Direction, HookReport, Hooks, Mode, Outcome, Place, Role},
        bpf::{Bpf, OpenError, Options as BpfOptions},
        host,
        pins::{Pins, PinsError},
    },
    model::{Desired, draft::Host},
    network::{
        Question, View, hooks,
        netlink::{Changes, Network, NetworkError},
        way::Chosen,
    },
    plan::{
        Plan,
        change::{Change, diff},
        plan,
        tables::{BackendRecord, ServiceKey, Tables},
    },
    settings::{HookSetting, Limit, Settings, WaySetting},
    source::file::{self, FileError, Loaded, Places},
    state::{HookState, LastChange, LastRefusal, LastSweep, Moment, ServiceState, State, StateError, WayState},
};
use events::{Event, Events};
use target::Target;

mod events;
pub mod target;
#[cfg(test)]
mod tests;

/// What the controller is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
    /// Where the state is written.
    pub state: PathBuf,
    /// Instead of the file's.
    pub way: Option<WaySetting>,
    /// Instead of the file's.
    pub hook: Option<HookSetting>,
}

/// Why the controller ended, or did not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The configuration asks for what cannot be: everything that was wrong.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The network cannot be looked at.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The data path cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The data path cannot be changed.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The programs cannot be attached.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The state cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something of the system was refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs until it is told to stop, and leaves the data path running then.
///
/// # Errors
/// When it cannot begin, or the kernel no longer tells of the network; other errors it tells, and goes on.
pub async fn run(options: &Options) -> Result<(), RunError> {
    let mut network = Network::open()?;
    let mut changes = Changes::open()?;
    let mut events = Events::open(&options.config)?;
    let loaded = load(options, &network.view(&BTreeSet::new())?)?;
    let (mut world, mut view) = start(options, loaded, &network, &mut changes).await?;
    let mut asker = Asker::default();
    // What the network looked like when the file was refused.
    let mut refused: Option<View> = None;
    notify(&[NotifyState::Ready]);
    loop {
        let event = match events.next(&mut changes, &view).await {
            Ok(event) => event,
            Err(error) => {
                warn!(%error, "changes of the network are not told; listening again");
                changes = Changes::open()?;
                Event::Network
            }
        };
        match event {
            Event::Stop => break,
            Event::Reload => {
                notify_reloading();
                let told = match reload(&mut world, options, &network, &mut changes).await {
                    Ok(()) => {
                        refused = None;
                        APPLIED
                    }
                    Err(refusal) => {
                        world.refuse(&refusal.error);
                        refused = Some(refusal.seen);
                        "configuration refused; what was running goes on"
                    }
                };
                world.write_state();
                notify(&[NotifyState::Ready, NotifyState::Status(told)]);
            }
            Event::Network => {
                if let Some(before) = &refused
                    && network.view(&BTreeSet::new()).is_ok_and(|seen| has_other_interfaces(&seen, before))
                {
                    match reload(&mut world, options, &network, &mut changes).await {
                        Ok(()) => {
                            info!("the configuration refused before is applied: links or addresses have changed");
                            refused = None;
                            notify(&[NotifyState::Status(APPLIED)]);
                        }
                        Err(refusal) => {
                            world.refuse_again(&refusal.error);
                            refused = Some(refusal.seen);
                        }
                    }
                }
            }
            Event::Sweep => {
                world.audit();
                world.sweep();
            }
        }
        match network.view(&world.backends_with(&world.desired)) {
            Ok(seen) => {
                if world.settings.way != WaySetting::Stack {
                    asker.ask(&network, &seen, &view, &target::backends(&world.desired));
                }
                view = seen;
            }
            Err(error) => {
                warn!(%error, "the network cannot be looked at");
                network = Network::open()?;
            }
        }
        world.follow(&view);
        if event == Event::Sweep {
            world.look_after_hooks(&view);
        }
        world.write_state();
    }
    notify(&[NotifyState::Stopping]);
    world.state.stopped = Some(Moment::now());
    world.write_state();
    info!("stopped; the data path goes on, `evenkeel detach` removes it");
    Ok(())
}

const APPLIED: &str = "configuration applied";

/// Whether something about links and addresses is other than it was, so that a refused file may be right now.
fn has_other_interfaces(now: &View, before: &View) -> bool {
    (&now.links, &now.addresses) != (&before.links, &before.addresses)
}

/// Neighbours that answer at all do so within this time.
const NEIGHBOURS_ANSWER: Duration = Duration::from_millis(300);

async fn start(
    options: &Options,
    loaded: Loaded,
    network: &Network,
    changes: &mut Changes,
) -> Result<(World<Bpf>, View), RunError> {
    let facts = host::probe().map_err(|source| RunError::System { what: "/proc".into(), source })?;
    host::check(&facts).map_err(OpenError::from)?;
    let mut view = meet(&loaded, &BTreeSet::new(), network, changes).await?;
    let system = |source| RunError::System { what: options.state.display().to_string(), source };
    fs::create_dir_all(&options.state).map_err(system)?;
    let known = State::read(&options.state)?.unwrap_or_default();
    let capacity = Capacity::from(&loaded.settings.limits);
    let pins = Pins::new(&options.pins);
    let (bpf, opening) = Bpf::open_or_create(&BpfOptions { pins, state: options.state.clone(), capacity })?;
    if opening.has_mounted {
        info!("mounted a bpf filesystem on /sys/fs/bpf");
    }
    let what = if opening.is_adopted { "adopted from an earlier controller" } else { "new" };
    info!(pins = %options.pins.display(), "data path {what}");
    let state = State {
        pid: std::process::id(),
        started: Moment::now(),
        config: options.config.clone(),
        opening: what.into(),
        ..State::default()
    };
    let mut world = World::new(bpf, attach_to_kernel, capacity, state, options.state.clone())?;
    if opening.is_adopted {
        view = network.view(&world.backends_with(&loaded.desired))?;
        world.remember(&known, &view, &attach::held(world.dataplane.pins())?);
    }
    world.begin(loaded, &view)?;
    Ok((world, view))
}

/// Takes a view with the routes to all backends of a configuration and to `others`, having asked for the neighbours that
/// its ways wait for.
async fn meet(
    loaded: &Loaded,
    others: &BTreeSet<IpAddr>,
    network: &Network,
    changes: &mut Changes,
) -> Result<View, NetworkError> {
    let wanted = target::backends(&loaded.desired);
    let all = wanted.union(others).copied().collect();
    let mut view = network.view(&all)?;
    let deadline = tokio::time::Instant::now() + NEIGHBOURS_ANSWER;
    let mut asker = Asker::default();
    while loaded.settings.way != WaySetting::Stack && !view.questions(&wanted, &view).is_empty() {
        asker.ask(network, &view, &view, &wanted);
        let answered = tokio::time::timeout_at(deadline, changes.next(&view)).await;
        view = network.view(&all)?;
        match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, "changes of the network are not told; listening again");
                *changes = Changes::open()?;
            }
            Err(_too_late) => break,
        }
    }
    Ok(view)
}

fn load(options: &Options, view: &View) -> Result<Loaded, RunError> {
    let cpus = Host::of_this_machine().map_err(|source| RunError::System { what: "/sys".into(), source })?.cpus;
    // The names are the view's: `/sys` may show those of another namespace.
    let host = Host { cpus, interfaces: Some(view.links.values().map(|link| link.name.clone()).collect()) };
    let mut loaded = file::load(&options.config, &host).map_err(|error| match error {
        FileError::Refused(complaints) => RunError::Refused(complaints.iter().map(ToString::to_string).collect()),
        FileError::Unreadable { .. } => RunError::Refused(vec![error.to_string()]),
    })?;
    loaded.settings.way = options.way.unwrap_or(loaded.settings.way);
    loaded.settings.hook = options.hook.unwrap_or(loaded.settings.hook);
    Ok(loaded)
}

/// Why a file was not brought about, and what the network was like then.
struct Refusal {
    error: RunError,
    /// Nothing in it where it could not be looked at.
    seen: View,
}

/// Brings about the file as it is now, or changes nothing.
async fn reload<D: Dataplane>(
    world: &mut World<D>,
    options: &Options,
    network: &Network,
    changes: &mut Changes,
) -> Result<(), Refusal> {
    let mut seen = View::default();
    let mut bring_about = async || {
        seen = network.view(&BTreeSet::new())?;
        let loaded = load(options, &seen)?;
        let view = meet(&loaded, &remaining(&world.tables), network, changes).await?;
        world.reload(loaded, &view)
    };
    bring_about().await.map_err(|error| Refusal { error, seen })
}

/// Asks for the neighbours that the ways wait for.
#[derive(Debug, Default)]
struct Asker {
    /// What was doubted and asked for since the links were last other than they are.
    asked: BTreeSet<Question>,
}

impl Asker {
    fn ask(&mut self, network: &Network, view: &View, before: &View, backends: &BTreeSet<IpAddr>) {
        for question in self.questions(view, before, backends) {
            if let Err(error) = network.resolve(&question) {
                debug!(neighbour = %question.address, interface = %view.name(question.device), %error, "not resolved");
            }
        }
    }

    fn questions(&mut self, view: &View, before: &View, backends: &BTreeSet<IpAddr>) -> Vec<Question> {
        if view.links != before.links {
            self.asked.clear();
        }
        let is_to_be_asked = |question: &Question| question.doubted.is_none() || self.asked.insert(*question);
        view.questions(backends, before).into_iter().filter(is_to_be_asked).collect()
    }
}

fn notify_reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    notify(&states);
}

/// Tells systemd, where it asked to be told.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!(%error, "the service manager was not told");
    }
}

/// Makes the hooks what is wanted.
type Attach<D> = fn(&D, &BTreeMap<u32, Hooks>, HookSetting) -> Result<Vec<HookReport>, PinsError>;

fn attach_to_kernel(
    bpf: &Bpf,
    wanted: &BTreeMap<u32, Hooks>,
    setting: HookSetting,
) -> Result<Vec<HookReport>, PinsError> {
    let mode = match setting {
        HookSetting::Auto | HookSetting::Tc => Mode::of_this_kernel(),
    };
    attach::apply(bpf, wanted, mode)
}

/// Everything the controller knows, and the data path it keeps.
struct World<D> {
    dataplane: D,
    attach: Attach<D>,
    capacity: Capacity,
    desired: Desired,
    settings: Settings,
    target: Target,
    /// What is programmed.
    tables: Tables,
    services: BTreeMap<ServiceKey, ServiceId>,
    /// What is attached, as far as it is known.
    hooks: BTreeMap<u32, Hooks>,
    /// Replies are taken wherever they were before, and clients are already let in.
    is_adopted: bool,
    has_failed_hooks: bool,
    /// A change failed half way, so that the tables are not what the target asks for.
    is_half_done: bool,
    /// What is odd about the configuration in force.
    oddities: Vec<String>,
    /// Where its parts were read.
    places: Places,
    state: State,
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
    /// Somewhere a program that is not wanted any more is there still.
    has_leftover: bool,
}

impl Unhooked {
    fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty() && !self.has_leftover
    }
}

impl<D: Dataplane> World<D> {
    fn new(
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
            is_adopted: false,
            has_failed_hooks: false,
            is_half_done: false,
            oddities: Vec::new(),
            places: Places::default(),
            state,
            state_folder,
            written: None,
        })
    }

    /// The addresses of these backends and of those in the maps, removed ones included.
    fn backends_with(&self, desired: &Desired) -> BTreeSet<IpAddr> {
        target::backends(desired).into_iter().chain(remaining(&self.tables)).collect()
    }

    /// Takes over what an earlier controller knew beside the maps, and the hooks that are `held`.
    fn remember(&mut self, known: &State, view: &View, held: &[(Mode, Place)]) {
        self.is_adopted = true;
        self.services = known.services.iter().map(|service| (service.key.clone(), ServiceId(service.id))).collect();
        self.state.services.clone_from(&known.services);
        self.state.counted_from.clone_from(&known.counted_from);
        self.hooks.clear();
        for (_, place) in held.iter().filter(|(_, place)| view.links.contains_key(&place.ifindex)) {
            let none = || Hooks { name: view.name(place.ifindex), ingress: None, egress: false };
            let hooks = self.hooks.entry(place.ifindex).or_insert_with(none);
            match place.direction {
                Direction::Ingress => {
                    // By number: the interface may have another name by now.
                    let known = known.hooks.iter().find(|hook| hook.ifindex == place.ifindex);
                    let role = known.and_then(|hook| role_of(hook.ingress.as_deref()));
                    // Where nobody knows which program it is, none of what it may do is taken away.
                    hooks.ingress = role.or(Some(Role::Both));
                }
                Direction::Egress => hooks.egress = true,
            }
        }
    }

    /// Brings about the first configuration.
    fn begin(&mut self, loaded: Loaded, view: &View) -> Result<(), RunError> {
        self.settle(loaded, view, "start")
    }

    /// Brings about another configuration, or refuses it whole.
    fn reload(&mut self, loaded: Loaded, view: &View) -> Result<(), RunError> {
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
        let target = Target::decide(&desired, &remaining(&self.tables), &settings, view, &self.target);
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
    fn refuse(&mut self, error: &RunError) {
        let messages = messages(error);
        for message in &messages {
            warn!("{message}");
        }
        warn!("configuration refused; what was running goes on");
        self.state.last_refusal = Some(LastRefusal { at: Moment::now(), messages });
    }

    /// The same for what was refused before and was tried again, which is said where there is anything new to say.
    fn refuse_again(&mut self, error: &RunError) {
        if self.state.last_refusal.as_ref().is_none_or(|last| last.messages != messages(error)) {
            self.refuse(error);
        }
    }

    /// Brings about what the network's present state asks for.
    fn follow(&mut self, view: &View) {
        let remain = remaining(&self.tables);
        let mut target = Target::decide(&self.desired, &remain, &self.settings, view, &self.target);
        if may_answer_through_stack(&self.tables) {
            target.keep_egress(view, &self.hooks);
        }
        for fault in target.faults.iter().filter(|fault| !self.target.faults.contains(fault)) {
            warn!("{}", self.places.locate(fault));
        }
        if target == self.target && !self.has_failed_hooks && !self.is_half_done {
            return;
        }
        if let Err(error) = self.bring_about(target, view, None, "network") {
            warn!(%error, "the network has changed and could not be followed");
        }
    }

    /// Compares the maps with what was programmed. A difference is told and left alone: whoever made it should be found.
    fn audit(&mut self) {
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
    fn sweep(&mut self) {
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
    fn look_after_hooks(&mut self, view: &View) {
        // Those that failed have just been tried, and interfaces that are gone will be followed.
        if self.has_failed_hooks || self.hooks.keys().any(|ifindex| !view.links.contains_key(ifindex)) {
            return;
        }
        match self.put_hooks(&self.hooks.clone()) {
            Ok((unhooked, reports)) => {
                self.has_failed_hooks = !unhooked.is_empty();
                for report in reports.iter().filter(|report| report.program.is_some()) {
                    if let Ok(Outcome::Attached | Outcome::Replaced) = report.outcome {
                        let (interface, hook) = (&report.name, report.direction.name());
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
        self.hooks.retain(|ifindex, _| view.links.contains_key(ifindex));
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
        self.report_ways(&target, view);
        self.target = target;
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
        let reports = (self.attach)(&self.dataplane, wanted, self.settings.hook)?;
        let failed = |direction| {
            let here = reports.iter().filter(move |report| report.direction == direction && report.program.is_some());
            here.filter_map(|report| Some((report.ifindex, report.outcome.as_ref().err()?.to_string()))).collect()
        };
        let mut unhooked =
            Unhooked { ingress: failed(Direction::Ingress), egress: failed(Direction::Egress), has_leftover: false };
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

    fn report_ways(&mut self, target: &Target, view: &View) {
        let way = |(address, chosen): (&IpAddr, &Chosen)| WayState {
            address: *address,
            way: chosen.way.name().into(),
            interface: chosen.port.or(chosen.device).map(|ifindex| view.name(ifindex)),
            why: chosen.why.clone(),
        };
        let ways = target.ways.iter().map(way).collect();
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

    fn write_state(&mut self) {
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
fn remaining(tables: &Tables) -> BTreeSet<IpAddr> {
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
    let here = || reports.iter().filter(|report| report.ifindex == ifindex && report.program.is_some());
    let faults = here().filter_map(|report| report.outcome.as_ref().err()).map(ToString::to_string);
    let foreign = here().flat_map(|report| &report.foreign).map(ToString::to_string);
    let why: BTreeSet<String> = faults.chain(foreign).collect();
    HookState {
        interface: hooks.name.clone(),
        ifindex,
        ingress: hooks.ingress.map(|role| role.name().into()),
        egress: hooks.egress,
        mode: here().next().map_or("none", |report| report.mode.name()).into(),
        why: why.into_iter().collect::<Vec<_>>().join("; "),
    }
}

fn role_of(name: Option<&str>) -> Option<Role> {
    [Role::Clients, Role::Backends, Role::Both].into_iter().find(|role| Some(role.name()) == name)
}
