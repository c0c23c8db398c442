//! The controller's story: wait for something to happen, look at the network, have the world brought about, tell. What
//! there is to wait for is in `events`, what to bring about is decided in [`target`], and `world` does it.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use sd_notify::NotifyState;
use tracing::{debug, info, warn};

use crate::{
    capacity::Capacity,
    dataplane::{
        Dataplane, DataplaneError,
        attach::{self, HookReport, Hooks, Mode},
        bpf::{Bpf, OpenError, Options as BpfOptions},
        host,
        pins::{Pins, PinsError},
    },
    model::draft::Host,
    network::{
        Question, View,
        netlink::{Changes, Network, NetworkError},
    },
    settings::{HookSetting, WaySetting},
    source::file::{self, FileError, Loaded},
    state::{Moment, State, StateError},
    trace::{self, Filter},
};
use events::{Event, Events};
use world::{World, remaining};

mod events;
pub mod target;
mod world;

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
    /// Which packets to tell of.
    pub trace: Option<Filter>,
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
    let names = trace::follow(world.dataplane.trace(), || world.names(&view));
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
        if event == Event::Network {
            world.notice(&view);
        }
        world.follow(&view);
        names.become_(|| world.names(&view));
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
    let (bpf, opening) =
        Bpf::open_or_create(&BpfOptions { pins, state: options.state.clone(), capacity, trace: options.trace })?;
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
    if let Err(error) = world.begin(loaded, &view) {
        if !opening.is_adopted {
            leave_nothing(&mut world, options);
        }
        return Err(error);
    }
    Ok((world, view))
}

/// Takes away what a start has made that is refused.
fn leave_nothing(world: &mut World<Bpf>, options: &Options) {
    if let Err(error) = attach::abandon(&mut world.dataplane) {
        warn!(%error, "something of the data path stays; `evenkeel detach` removes it");
    }
    if let Err(error) = State::remove(&options.state) {
        warn!(%error, "the state stays");
    }
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

fn attach_to_kernel(bpf: &Bpf, wanted: &BTreeMap<u32, Hooks>) -> Result<Vec<HookReport>, PinsError> {
    attach::apply(bpf, wanted, Mode::of_this_kernel())
}
