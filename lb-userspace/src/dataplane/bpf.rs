//! The data path in the kernel: loads the programs, adopts or makes the maps, and carries out changes in them.
//! Only this module holds what aya loads.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, TestRun as _, TestRunOptions, TestRunResult,
    maps::{MapError, ProgramArray},
    programs::{Program as Loaded, ProgramError, SchedClassifier, Xdp},
};
use lb_common::{
    backend::{BackendId, BackendState, Endpoint},
    device::Device,
    flow::Tick,
    reply::REPLY_TIMEOUT_SECONDS,
    service::ServiceWord,
};

use super::{
    Counters, Dataplane, DataplaneError, Named,
    host::{self, Unfit},
    maps::Maps,
    mmap::Access,
    pins::{Lock, PROGRAMS, Pins, PinsError, Settings},
    sweep::{self, Miscount, Swept, Ticks},
    sys::{self, Grace, Shape},
    trace::{self, Told},
};
use crate::{
    capacity::Capacity,
    plan::{change::Change, tables::Tables},
    trace::Filter,
};

/// The programs and maps, as the build made them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EVENKEEL_BPF_OBJECT"));

/// The same with the decision trace.
static TRACING_OBJECT: &[u8] = aya::include_bytes_aligned!(env!("EVENKEEL_TRACING_BPF_OBJECT"));

/// The object that is loaded for a filter, or for none: then there is nothing of a trace in it.
pub const fn object(trace: Option<&Filter>) -> &'static [u8] {
    match trace {
        Some(_) => TRACING_OBJECT,
        None => OBJECT,
    }
}

/// Gives the time; not attached anywhere.
const READ_JIFFIES: &str = "read_jiffies";

/// What the data path is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where maps and links are pinned.
    pub pins: Pins,
    /// Where the lock file is; has to exist.
    pub state: PathBuf,
    /// Sizes of the maps.
    pub capacity: Capacity,
    /// Which packets the programs tell of; none where they are not to.
    pub trace: Option<Filter>,
}

/// What was found when the data path was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The maps of an earlier controller were taken over, with all flows, cursors and counters.
    pub is_adopted: bool,
    /// There was no bpf filesystem, so one was mounted.
    pub has_mounted: bool,
}

/// Why the data path could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The host lacks something.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The object cannot be loaded.
    #[error("programs: {0}")]
    Object(#[from] EbpfError),
    /// A program is refused.
    #[error("program {name}: {}", whole(source))]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The program array cannot be filled.
    #[error("the map of programs: {0}")]
    Map(#[from] MapError),
    /// A question to the system was refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A program that is attached, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Program {
    /// Balances what clients send.
    IngressClients,
    /// Rewrites what backends answer.
    IngressBackends,
    /// Does both.
    IngressBoth,
    /// Rewrites answers that the stack forwards.
    EgressClients,
    /// As [`Self::IngressClients`], by XDP.
    XdpClients,
    /// As [`Self::IngressBackends`], by XDP.
    XdpBackends,
    /// As [`Self::IngressBoth`], by XDP.
    XdpBoth,
}

impl Program {
    /// Every program that is attached.
    pub const ALL: [Self; 7] = [
        Self::IngressClients,
        Self::IngressBackends,
        Self::IngressBoth,
        Self::EgressClients,
        Self::XdpClients,
        Self::XdpBackends,
        Self::XdpBoth,
    ];

    /// Whether it runs at XDP.
    pub const fn is_early(self) -> bool {
        match self {
            Self::IngressClients | Self::IngressBackends | Self::IngressBoth | Self::EgressClients => false,
            Self::XdpClients | Self::XdpBackends | Self::XdpBoth => true,
        }
    }

    /// The name in the object, in the kernel and in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IngressClients => "ingress_clients",
            Self::IngressBackends => "ingress_backends",
            Self::IngressBoth => "ingress_both",
            Self::EgressClients => "egress_clients",
            Self::XdpClients => "xdp_clients",
            Self::XdpBackends => "xdp_backends",
            Self::XdpBoth => "xdp_both",
        }
    }
}

/// The programs of one hook, which are loaded together.
#[derive(Clone, Copy, Debug)]
struct Family {
    is_early: bool,
    /// Their program array.
    array: &'static str,
    /// Those reached by tail call, in the order of their places in it.
    tails: &'static [&'static str],
    /// Others that are attached nowhere.
    others: &'static [&'static str],
}

/// Those of traffic control.
const OF_TC: Family =
    Family { is_early: false, array: PROGRAMS[0], tails: &["begin_flow", "query", "too_big"], others: &[READ_JIFFIES] };

/// Those of XDP.
const OF_XDP: Family =
    Family { is_early: true, array: PROGRAMS[1], tails: &["xdp_begin_flow", "xdp_query"], others: &[] };

impl Family {
    /// The names of its programs.
    fn names(self) -> impl Iterator<Item = &'static str> {
        let attached = Program::ALL.into_iter().filter(move |program| program.is_early() == self.is_early);
        attached.map(Program::name).chain(self.tails.iter().copied()).chain(self.others.iter().copied())
    }
}

/// The data path in the kernel, owned: no other controller has it.
#[derive(Debug)]
pub struct Bpf {
    maps: Maps,
    ebpf: Ebpf,
    /// The programs of XDP, from when they are first asked for: few hosts want them, and the kernel takes as long for them
    /// as for all others.
    early: OnceLock<Ebpf>,
    loading: Loading,
    ticks: Ticks,
    grace: Grace,
    /// When backends of per-packet services were first seen removed: their answers may be late, and no table names them.
    gone_since: BTreeMap<BackendId, Instant>,
    lock: Lock,
}

impl Bpf {
    /// Takes over what an earlier controller left in the pins, or makes everything new. Attaches nothing.
    ///
    /// # Errors
    /// When the host cannot run the data path, another controller has the pins, or they hold something else than this
    /// version would make with these options.
    pub fn open_or_create(options: &Options) -> Result<(Self, Opening), OpenError> {
        host::check(&host::probe().map_err(|source| OpenError::Io { what: "/proc", source })?)?;
        let pins = &options.pins;
        let has_mounted = pins.create()?;
        let lock = Lock::take(pins, &options.state)?;
        let shapes = wanted_shapes(&options.capacity)?;
        let adopted = pins.settings()?;
        match &adopted {
            Some(_) => pins.check_shapes(&shapes)?,
            // Maps without settings are those of a controller that died while it made them.
            None if pins.is_detached()? => remove_maps(pins, &shapes)?,
            None => return Err(PinsError::Layout { path: pins.path().to_owned(), found: 0 }.into()),
        }
        let settings = match adopted {
            Some(settings) => settings,
            None => Settings::draw().map_err(|source| OpenError::Io { what: "a random secret", source })?,
        };
        let generation = pins.generations()?.last().map_or(1, |last| last + 1);
        let loading = Loading { options: options.clone(), shapes, settings, generation, told: Told::default() };
        let loaded = loading.load(OF_TC).and_then(|ebpf| {
            if adopted.is_none() {
                pins.write_settings(&loading.settings)?;
            }
            Ok(ebpf)
        });
        let ebpf = match loaded {
            Ok(ebpf) => ebpf,
            Err(error) => {
                loading.undo(adopted.is_none());
                return Err(error);
            }
        };
        let grace = Grace::probe().map_err(|source| OpenError::Io { what: "a grace period", source })?;
        let bpf = Self {
            maps: Maps::open(pins, Access::Write)?,
            ebpf,
            early: OnceLock::new(),
            ticks: Ticks::new(loading.settings.jiffies_per_second),
            loading,
            grace,
            gone_since: BTreeMap::new(),
            lock,
        };
        Ok((bpf, Opening { is_adopted: adopted.is_some(), has_mounted }))
    }

    /// What the programs tell of packets, where they were asked to.
    pub fn trace(&self) -> Option<Told> {
        self.loading.options.trace.map(|_| self.loading.told.clone())
    }

    /// The maps, to look at.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The pins.
    pub fn pins(&self) -> &Pins {
        &self.loading.options.pins
    }

    /// What keeps other controllers away.
    pub(super) fn lock(&mut self) -> &mut Lock {
        &mut self.lock
    }

    /// Evicts as [`Dataplane::sweep`] does and tells how much.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn sweep_now(&mut self) -> Result<Swept, DataplaneError> {
        let mut swept = sweep::sweep(&self.maps, &self.ticks, self.now()?)?;
        swept.named.backends.extend(self.awaited()?);
        Ok(swept)
    }

    /// Compares the counters of active flows with the flow table. Flows that come and go meanwhile may show.
    pub fn audit(&self) -> Vec<Miscount> {
        sweep::audit(&self.maps)
    }

    /// The time now, as the packet path sees it.
    ///
    /// # Errors
    /// When the kernel refuses the test run.
    pub fn now(&self) -> Result<Tick, DataplaneError> {
        Ok(Tick::from_jiffies(u64::from(self.jiffies()?)))
    }

    /// The low half of the kernel's jiffies.
    ///
    /// # Errors
    /// When the kernel refuses the test run.
    pub fn jiffies(&self) -> Result<u32, DataplaneError> {
        // Any packet will do, but a test run wants an Ethernet header and something in it.
        let packet = [0; 64];
        let options = TestRunOptions { data_in: Some(&packet), ..TestRunOptions::default() };
        self.test_run(READ_JIFFIES, options).map(|result| result.return_value)
    }

    /// Runs one packet through an attached program, without a device: its verdict and the packet after it, in front of
    /// which is what an XDP program left for the next one.
    ///
    /// # Errors
    /// When the kernel refuses the test run, as it does for less than an Ethernet header.
    pub fn run_once(&self, program: Program, packet: &[u8]) -> Result<(i32, Vec<u8>), DataplaneError> {
        /// The most metadata that the kernel takes.
        const METADATA: usize = 255;
        let mut after = vec![0; METADATA + packet.len()];
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut after), ..TestRunOptions::default() };
        let result = self.test_run(program.name(), options)?;
        after.truncate(result.data_size_out as usize);
        Ok((result.return_value.cast_signed(), after))
    }

    /// How many instructions the verifier took for each loaded program; a kernel before 5.16 does not tell.
    ///
    /// # Errors
    /// When the kernel refuses to describe a program.
    pub fn verified_instructions(&self) -> Result<BTreeMap<&'static str, Option<u32>>, DataplaneError> {
        let of = |name| {
            let refused = |error| DataplaneError::Map {
                map: PROGRAMS[0],
                operation: format!("describe {name}"),
                source: io::Error::other(whole(&error)),
            };
            self.loaded(name)?.info().map(|info| (name, info.verified_instruction_count())).map_err(refused)
        };
        [OF_TC, OF_XDP].into_iter().flat_map(Family::names).map(of).collect()
    }

    /// Waits until no packet is under way that saw anything of before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait_for_grace(&self) -> Result<(), DataplaneError> {
        self.grace.wait().map_err(|source| DataplaneError::Map { map: "all", operation: "wait".to_owned(), source })
    }

    /// A loaded program, to attach, or to go on in from another one.
    ///
    /// # Errors
    /// When it is one of XDP, which were not loaded yet, and the kernel refuses them.
    pub fn program(&self, program: Program) -> io::Result<BorrowedFd<'_>> {
        let loaded = self.loaded(program.name()).map_err(io::Error::other)?;
        Ok(loaded.fd().expect("it was loaded with its family").as_fd())
    }

    /// Forgets the program arrays of earlier loadings: their entries go, so no packet may be under way in their
    /// programs, and none of those attached anywhere.
    pub(super) fn retire_earlier(&self) -> Result<(), PinsError> {
        let earlier: Vec<u64> = self
            .pins()
            .generations()?
            .into_iter()
            .filter(|generation| *generation != self.loading.generation)
            .collect();
        if earlier.is_empty() {
            return Ok(());
        }
        let path = |generation, map| self.pins().programs(generation, map);
        self.grace
            .wait()
            .map_err(|source| PinsError::Io { path: path(self.loading.generation, PROGRAMS[0]), source })?;
        for generation in earlier {
            // The first, by which a loading is known, last.
            for map in PROGRAMS.into_iter().rev() {
                let path = path(generation, map);
                sys::unpin(&path).map_err(|source| PinsError::Io { path, source })?;
            }
        }
        Ok(())
    }

    fn test_run(&self, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult, DataplaneError> {
        let refused = |error| DataplaneError::Map {
            map: PROGRAMS[0],
            operation: format!("run {name}"),
            source: io::Error::other(whole(&error)),
        };
        let program = self.loaded(name)?;
        let ran = match <&Xdp>::try_from(program) {
            Ok(xdp) => xdp.test_run(options),
            Err(_) => <&SchedClassifier>::try_from(program).and_then(|classifier| classifier.test_run(options)),
        };
        ran.map_err(refused)
    }

    fn loaded(&self, name: &str) -> Result<&Loaded, DataplaneError> {
        let ebpf = if OF_XDP.names().any(|early| early == name) { self.early()? } else { &self.ebpf };
        Ok(ebpf.program(name).expect("the object has every program that is asked for"))
    }

    /// The programs of XDP, loaded now if they were not.
    fn early(&self) -> Result<&Ebpf, DataplaneError> {
        if let Some(early) = self.early.get() {
            return Ok(early);
        }
        let early = self.loading.load(OF_XDP).map_err(|error| DataplaneError::Map {
            map: OF_XDP.array,
            operation: "load the programs of XDP".to_owned(),
            source: io::Error::other(whole(&error)),
        })?;
        Ok(self.early.get_or_init(|| early))
    }

    /// Removed backends whose late answers the reply table still translates: by its key, which can be looked up but not
    /// read back, so the time since they were first seen removed must do.
    fn awaited(&mut self) -> Result<Vec<BackendId>, DataplaneError> {
        const LATE: Duration = Duration::from_secs(REPLY_TIMEOUT_SECONDS as u64 + 1);
        let mut removed = Vec::new();
        for (id, record) in self.maps.backends_now() {
            let is_removed = match record.state {
                BackendState::Dead => true,
                BackendState::Use => false,
                BackendState::Drain => false,
                BackendState::UdpGone => true,
            };
            if is_removed && self.maps.endpoint_flags(record.key)? & Endpoint::REPLIES != 0 {
                removed.push(id);
            }
        }
        self.gone_since.retain(|id, _| removed.contains(id));
        for id in &removed {
            self.gone_since.entry(*id).or_insert_with(Instant::now);
        }
        removed.retain(|id| self.gone_since.get(id).is_some_and(|since| since.elapsed() < LATE));
        Ok(removed)
    }
}

impl Dataplane for Bpf {
    fn read(&self) -> Result<Tables, DataplaneError> {
        self.maps.read()
    }

    fn apply(&mut self, changes: &[Change]) -> Result<(), DataplaneError> {
        let applied = self.apply_all(changes);
        if applied.is_err() {
            // Whoever plans next takes what is no longer in force for free, so packets that still see it must be through.
            // Should this be refused as well, the first error is the one to tell.
            drop(self.wait_for_grace());
        }
        applied
    }

    fn counters(&self) -> Result<Counters, DataplaneError> {
        self.maps.counters()
    }

    fn sweep(&mut self) -> Result<Named, DataplaneError> {
        Ok(self.sweep_now()?.named)
    }

    fn follow_network(&mut self, devices: &BTreeMap<u32, Device>) {
        self.maps.write_devices(devices);
        self.maps.count_network_change();
    }
}

impl Bpf {
    fn apply_all(&self, changes: &[Change]) -> Result<(), DataplaneError> {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            let done = self.apply_first(first, rest)?;
            rest = &rest[done..];
        }
        Ok(())
    }

    /// Applies the first of `changes` and those like it that follow; tells how many that were.
    fn apply_first(&self, first: &Change, changes: &[Change]) -> Result<usize, DataplaneError> {
        let maps = &self.maps;
        match first {
            Change::WriteFrontendInfo(..) => {
                let (ids, infos) = leading(changes, |change| {
                    if let Change::WriteFrontendInfo(id, info) = change { Some((id.0, *info)) } else { None }
                });
                maps.write_frontend_infos(&ids, &infos)?;
                return Ok(ids.len());
            }
            Change::PutEndpoint(..) => {
                let (keys, endpoints) = leading(changes, |change| {
                    if let Change::PutEndpoint(key, endpoint) = change { Some((*key, *endpoint)) } else { None }
                });
                maps.put_endpoints(&keys, &endpoints)?;
                return Ok(keys.len());
            }
            Change::PutFrontend(..) => {
                let (keys, frontends) = leading(changes, |change| {
                    if let Change::PutFrontend(key, frontend) = change { Some((*key, *frontend)) } else { None }
                });
                maps.put_frontends(&keys, &frontends)?;
                return Ok(keys.len());
            }
            Change::WriteBackend(id, record) => maps.write_backend(*id, record)?,
            Change::WriteRun(run, words) => maps.write_run(*run, words)?,
            Change::WritePolicy(id, policy) => maps.write_policy(*id, *policy)?,
            Change::StartService(id, cursor) => maps.start_service(*id, *cursor)?,
            Change::SwapService(id, word) => maps.swap_service(*id, *word)?,
            Change::RemoveFrontend(key) => maps.remove_frontend(*key)?,
            Change::SetBackendState(id, state) => maps.set_backend_state(*id, *state)?,
            Change::SetBackendWay(id, way) => maps.set_backend_way(*id, *way)?,
            Change::Grace => self.wait_for_grace()?,
            Change::RemoveEndpoint(key) => maps.remove_endpoint(*key)?,
            Change::ClearBackend(id) => maps.clear_backend(*id)?,
            Change::ClearFrontendInfo(id) => maps.clear_frontend_info(*id)?,
            Change::ClearService(id) => maps.swap_service(*id, ServiceWord::default())?,
        }
        Ok(1)
    }
}

/// The keys and values of the first changes, as far as `take` knows them.
fn leading<K, V>(changes: &[Change], take: impl Fn(&Change) -> Option<(K, V)>) -> (Vec<K>, Vec<V>) {
    changes.iter().map_while(take).unzip()
}

/// What this version would pin, by the name of the map: the object's own declarations, with the sizes of `capacity`.
pub(super) fn wanted_shapes(capacity: &Capacity) -> Result<BTreeMap<String, Shape>, OpenError> {
    let object = aya_obj::Object::parse(OBJECT).map_err(EbpfError::ParseError)?;
    let entries = entries(capacity);
    Ok(object
        .maps
        .iter()
        // What begins with a dot is data of the programs, and new with them.
        .filter(|(name, _)| !name.starts_with('.') && !PROGRAMS.contains(&name.as_str()))
        .map(|(name, map)| {
            let shape = Shape {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: entries.get(name.as_str()).copied().unwrap_or(map.max_entries()),
                flags: map.map_flags(),
            };
            (name.clone(), shape)
        })
        .collect())
}

/// Entries of the maps whose size is not fixed.
fn entries(capacity: &Capacity) -> BTreeMap<&'static str, u32> {
    BTreeMap::from([
        ("FRONTENDS", capacity.frontends),
        ("FRONTEND_INFO", capacity.frontend_infos),
        ("SERVICES", capacity.services),
        ("CURSORS", capacity.services),
        ("SERVICE_STATS", capacity.services),
        ("POLICIES", capacity.policies),
        ("SLOTS", capacity.slot_chunks),
        ("BACKENDS", capacity.backends),
        ("ACTIVE", capacity.backends),
        ("TRAFFIC", capacity.backends),
        ("ENDPOINTS", capacity.endpoints),
        ("FLOWS", capacity.flow_buckets),
        ("REPLIES", capacity.reply_buckets),
        ("FRAGMENTS", capacity.fragments),
    ])
}

/// What programs are loaded with.
#[derive(Debug)]
struct Loading {
    options: Options,
    shapes: BTreeMap<String, Shape>,
    settings: Settings,
    generation: u64,
    told: Told,
}

impl Loading {
    /// Loads the programs of a family. Maps that are pinned are used, others made and pinned.
    fn load(&self, family: Family) -> Result<Ebpf, OpenError> {
        let Options { pins, capacity, trace, .. } = &self.options;
        let ticks = Ticks::new(self.settings.jiffies_per_second);
        let (flow_mask, reply_mask) = (capacity.flow_buckets - 1, capacity.reply_buckets - 1);
        let traced = trace.map(|filter| trace::Constants::new(&filter, self.settings.jiffies_per_second));
        let mut loader = EbpfLoader::new();
        if let Some(traced) = &traced {
            traced.set(&mut loader);
        }
        loader
            // Nothing in the programs depends on the layout of the kernel's own types.
            .btf(None)
            .override_global("FLOW_BUCKET_MASK", &flow_mask, true)
            .override_global("REPLY_BUCKET_MASK", &reply_mask, true)
            .override_global("SECRET", &self.settings.secret.0, true)
            .override_global("STATE_TICKS", &ticks.states, true)
            .override_global("REPLY_TICKS", &ticks.reply, true)
            .override_global("REPLY_SETTLED_TICKS", &ticks.reply_settled, true)
            .override_global("FRAGMENT_TICKS", &ticks.fragment, true)
            .override_global("ERRORS_PER_TICK", &ticks.errors, true);
        for map in PROGRAMS {
            loader.map_pin_path(map, pins.programs(self.generation, map));
        }
        for (name, entries) in entries(capacity) {
            loader.map_max_entries(name, entries);
        }
        for name in self.shapes.keys() {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(object(trace.as_ref()))?;
        for name in family.names() {
            let loaded = match ebpf.program_mut(name) {
                Some(Loaded::SchedClassifier(classifier)) => classifier.load(),
                Some(Loaded::Xdp(xdp)) => xdp.load(),
                Some(_) | None => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(|source| OpenError::Program { name, source })?;
        }
        let map = ebpf.take_map(family.array).expect("the object declares this map");
        let mut programs = ProgramArray::try_from(map)?;
        for (index, name) in (0..).zip(family.tails) {
            let program = ebpf.program(name).expect("was loaded above");
            let fd = program.fd().map_err(|source| OpenError::Program { name, source })?;
            programs.set(index, fd, 0)?;
        }
        if trace.is_some() {
            self.told.listen_to(&mut ebpf);
        }
        Ok(ebpf)
    }

    /// Takes away what a loading that failed has pinned. Whatever else is wrong, its error is the one to tell.
    fn undo(&self, is_new: bool) {
        for map in PROGRAMS {
            drop(fs::remove_file(self.options.pins.programs(self.generation, map)));
        }
        if is_new {
            drop(remove_maps(&self.options.pins, &self.shapes));
        }
    }
}

fn remove_maps(pins: &Pins, shapes: &BTreeMap<String, Shape>) -> Result<(), PinsError> {
    for name in shapes.keys() {
        let path = pins.map(name);
        sys::unpin(&path).map_err(|source| PinsError::Io { path, source })?;
    }
    Ok(())
}

/// An error with the causes that its own text leaves out, the verifier's among them.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
