//! Programs by themselves, by `BPF_PROG_TEST_RUN`: what each takes for one packet of each kind.
//!
//! With repeats a test run hands the packet as the program left it to the next run. So a front writes the headers of the
//! next packet over it and goes on in the measured program by a tail call; the same front before a program that does
//! nothing tells what of the time is not the program's. Afterwards the data path's own counters must have moved by exactly
//! what the row says, else there is an error and no figure.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, Xdp};
use lb_common::{
    addr::{Family, Protocol},
    backend::Way,
    reason::Reason,
    stats::Traffic,
};
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Dataplane as _,
        bpf::Program,
        mmap::{Access, Mapping},
        sys::Map,
    },
    plan::Plan,
};

use self::{
    Exit::{Out, Peer, Stack},
    Kind::{FlowAnswer, KnownFlow, KnownPair, NewFlow, NewPair, NotFromBackend, NotOurs, PairAnswer},
};
use super::{
    Options,
    figures::{EMPTY, Hook, LOOK_UP, PARSE, Stage},
    programs::{Programs, TARGETS},
    progress::Progress,
    samples::Samples,
    stream::{Clients, End, Stream},
};
use crate::{
    ask::{allowed_cpus, pin},
    cases::{
        LAB, Machine as _, REPLY_LINK,
        kernel::{self, Kernel},
        planned,
    },
    packet::{Packet, eth},
};

/// One kind of packet to one program; it is measured for each family.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The hook the program is for.
    pub hook: Hook,
    /// What the packet is to it.
    pub name: &'static str,
    /// From how many clients packets come: a power of two, in no order; zero where each comes from another one.
    pub clients: u32,
    program: Measured,
    kind: Kind,
    exit: Exit,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measured {
    /// One of the bench's own programs, to compare with.
    Reference(&'static str),
    /// One of Evenkeel's.
    Ours(Program),
}

/// What the packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of a flow that is in the table.
    KnownFlow,
    /// Each opens a flow.
    NewFlow,
    /// Answers in a flow that is in the table.
    FlowAnswer,
    /// Queries of a per-packet service, of clients whose earlier ones are in the table.
    KnownPair,
    /// Queries of clients that are not.
    NewPair,
    /// Answers to queries of a per-packet service.
    PairAnswer,
    /// To no frontend.
    NotOurs,
    /// From no backend.
    NotFromBackend,
}

/// The way by which backends are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Peer,
    Stack,
    /// Out of a device that takes packets from XDP, by a next hop that is kept.
    Out,
}

const MANY: u32 = 65_536;
const EACH: u32 = 0;

/// Every row: a line for each.
pub const ROWS: &[Row] = &[
    reference(Hook::Tc, EMPTY, "tc_empty"),
    reference(Hook::Tc, PARSE, "tc_parse"),
    reference(Hook::Tc, LOOK_UP, "tc_look_up"),
    ours(Hook::Tc, "flow hit", 1, Program::IngressClients, KnownFlow, Peer),
    ours(Hook::Tc, "flow hit", MANY, Program::IngressClients, KnownFlow, Peer),
    ours(Hook::Tc, "flow hit, where both come in", 1, Program::IngressBoth, KnownFlow, Peer),
    ours(Hook::Tc, "flow hit, next hop kept", 1, Program::IngressClients, KnownFlow, Out),
    ours(Hook::Tc, "new flow", EACH, Program::IngressClients, NewFlow, Peer),
    ours(Hook::Tc, "query, known pair", 1, Program::IngressClients, KnownPair, Peer),
    ours(Hook::Tc, "query, known pair", MANY, Program::IngressClients, KnownPair, Peer),
    ours(Hook::Tc, "query, new pair", EACH, Program::IngressClients, NewPair, Peer),
    ours(Hook::Tc, "answer in a flow, next hop kept", 1, Program::IngressBackends, FlowAnswer, Peer),
    ours(Hook::Tc, "answer in a flow, next hop kept", MANY, Program::IngressBackends, FlowAnswer, Peer),
    ours(Hook::Tc, "answer in a flow, after the stack", 1, Program::EgressClients, FlowAnswer, Stack),
    ours(Hook::Tc, "answer to a query, next hop kept", 1, Program::IngressBackends, PairAnswer, Peer),
    ours(Hook::Tc, "answer to a query, next hop kept", MANY, Program::IngressBackends, PairAnswer, Peer),
    ours(Hook::Tc, "not ours", 1, Program::IngressClients, NotOurs, Peer),
    ours(Hook::Tc, "not ours, where both come in", 1, Program::IngressBoth, NotOurs, Peer),
    ours(Hook::Tc, "not from a backend", 1, Program::IngressBackends, NotFromBackend, Peer),
    reference(Hook::Xdp, EMPTY, "xdp_empty"),
    reference(Hook::Xdp, PARSE, "xdp_parse"),
    reference(Hook::Xdp, LOOK_UP, "xdp_look_up"),
    ours(Hook::Xdp, "flow hit, next hop kept", 1, Program::XdpClients, KnownFlow, Out),
    ours(Hook::Xdp, "flow hit, next hop kept", MANY, Program::XdpClients, KnownFlow, Out),
    ours(Hook::Xdp, "flow hit, where both come in", 1, Program::XdpBoth, KnownFlow, Out),
    ours(Hook::Xdp, "flow hit, left to tc", 1, Program::XdpClients, KnownFlow, Peer),
    ours(Hook::Xdp, "new flow", EACH, Program::XdpClients, NewFlow, Out),
    ours(Hook::Xdp, "query, known pair", 1, Program::XdpClients, KnownPair, Out),
    ours(Hook::Xdp, "query, known pair", MANY, Program::XdpClients, KnownPair, Out),
    ours(Hook::Xdp, "query, new pair", EACH, Program::XdpClients, NewPair, Out),
    ours(Hook::Xdp, "answer in a flow, next hop kept", 1, Program::XdpBackends, FlowAnswer, Out),
    ours(Hook::Xdp, "answer in a flow, next hop kept", MANY, Program::XdpBackends, FlowAnswer, Out),
    ours(Hook::Xdp, "answer to a query, next hop kept", 1, Program::XdpBackends, PairAnswer, Out),
    ours(Hook::Xdp, "answer to a query, next hop kept", MANY, Program::XdpBackends, PairAnswer, Out),
    ours(Hook::Xdp, "not ours", 1, Program::XdpClients, NotOurs, Out),
    ours(Hook::Xdp, "not ours, where both come in", 1, Program::XdpBoth, NotOurs, Out),
    ours(Hook::Xdp, "not from a backend", 1, Program::XdpBackends, NotFromBackend, Out),
];

const fn reference(hook: Hook, name: &'static str, program: &'static str) -> Row {
    Row { hook, name, clients: 1, program: Measured::Reference(program), kind: KnownFlow, exit: Peer }
}

const fn ours(hook: Hook, name: &'static str, clients: u32, program: Program, kind: Kind, exit: Exit) -> Row {
    Row { hook, name, clients, program: Measured::Ours(program), kind, exit }
}

/// Measures every row in turns, and tells what the verifier took for each program.
///
/// # Errors
/// A program is refused, or did something else with its packets than the row says.
pub(super) fn measure(options: &Options, progress: &Progress) -> Result<(Vec<Stage>, BTreeMap<String, u32>)> {
    let work = || {
        kernel::enter()?;
        pin(*allowed_cpus()?.last().context("a CPU to run on")?)?;
        let mut bench = Bench::new()?;
        Ok((bench.measure(options, progress)?, bench.verified()?))
    };
    // On a thread of its own, which leaves the host's namespaces for good.
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|payload| resume_unwind(payload))
}

struct Bench {
    kernel: Kernel,
    plan: Plan,
    programs: Programs,
    targets: BTreeMap<&'static str, Map>,
    tables: Tables,
    /// The device that packets of XDP rows come in by.
    ifindex: u32,
}

/// What the packet path keeps by itself.
struct Tables {
    flows: Mapping,
    replies: Mapping,
    active: Mapping,
}

impl Bench {
    fn new() -> Result<Self> {
        let mut kernel = Kernel::of(Capacity::default())?;
        let folder = kernel.bpf().pins().path().to_owned();
        let pinned = TARGETS.map(|(_, map)| (map, PathBuf::from(kernel::PINS).join(map)));
        let names = ["tc_front", "tc_empty", "tc_parse", "tc_look_up"];
        let names = names.into_iter().chain(["xdp_front", "xdp_empty", "xdp_parse", "xdp_look_up"]);
        let mut programs = Programs::load(&names.collect::<Vec<_>>(), &pinned, [0; 6])?;
        let others = (1..=1000).map(|number| [0, 0, 0, u32::to_be(0x0a00_0000 + number), 53_u32.to_be()]);
        programs.know(FAMILIES.iter().map(|family| family.key(family.flows)).chain(others))?;
        let open = |(map, path): &(&'static str, PathBuf)| {
            Ok((*map, Map::open(path).with_context(|| path.display().to_string())?))
        };
        let targets = pinned.iter().map(open).collect::<Result<_>>()?;
        let tables = Tables {
            flows: mapping(&folder, "FLOWS")?,
            replies: mapping(&folder, "REPLIES")?,
            active: mapping(&folder, "ACTIVE")?,
        };
        let ifindex = LAB;
        Ok(Self { kernel, plan: Plan::default(), programs, targets, tables, ifindex })
    }

    fn measure(&mut self, options: &Options, progress: &Progress) -> Result<Vec<Stage>> {
        let mut stages: Vec<(Row, &Ends, Stage)> = Vec::new();
        for ends in &FAMILIES {
            stages.extend(ROWS.iter().map(|row| {
                let Row { hook, name, clients, .. } = *row;
                let stage = Stage { hook, name, family: ends.family, clients, nanoseconds: Samples::default() };
                (*row, ends, stage)
            }));
        }
        for round in 1..=options.rounds {
            progress.say(&format!("programs, round {round} of {}", options.rounds));
            for (row, ends, stage) in &mut stages {
                let what = || format!("{}, {}, {:?}, {} clients", row.hook.name(), row.name, ends.family, row.clients);
                stage.nanoseconds.add(self.row(row, ends, options.runs).with_context(what)?);
            }
        }
        Ok(stages.into_iter().map(|(.., stage)| stage).collect())
    }

    /// Nanoseconds a packet, front and all.
    fn row(&mut self, row: &Row, ends: &Ends, runs: u32) -> Result<f64> {
        self.reach_by(row.exit)?;
        self.tables.forget();
        // Of a hop in use for seconds the kernel would be reminded: by a packet that is left to it.
        self.kernel.forget_hops()?;
        if let Some(first) = row.kind.precedes() {
            self.aim(Hook::Tc, Measured::Ours(Program::IngressClients))?;
            let each = ends.stream(Hook::Tc, first, Clients::EachFrom(0));
            self.expect(first.moves(u64::from(row.clients)), |bench| {
                bench.programs.run(front(Hook::Tc), &each, row.clients, 0)
            })?;
        }
        self.aim(row.hook, row.program)?;
        let (front, ifindex) = (front(row.hook), self.ifindex);
        let stream = ends.stream(row.hook, row.kind, row.kind.clients(row.clients));
        let Measured::Ours(_) = row.program else {
            let (verdict, nanoseconds) = self.programs.run(front, &stream, runs, ifindex)?;
            ensure!(verdict == passes(row.hook), "verdict {verdict}: the reference was not run, or found nothing");
            return Ok(nanoseconds);
        };
        let runs = row.kind.at_most(runs);
        let run = |bench: &mut Self| bench.programs.run(front, &stream, runs, ifindex);
        let (verdict, nanoseconds) = self.expect(row.moves(runs), run)?;
        let expected = row.verdict();
        ensure!(verdict == expected, "verdict {} instead of {}", verdict.cast_signed(), expected.cast_signed());
        Ok(nanoseconds)
    }

    /// Does something that must move the counters so far, and no further.
    fn expect<T>(&mut self, expected: Moved, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.seen()?;
        let done = work(self)?;
        let moved = self.seen()?.since(&before).with_those_of_chance(&expected);
        ensure!(moved == expected, "the counters moved by {moved:?} instead of {expected:?}: no figure");
        Ok(done)
    }

    fn reach_by(&mut self, exit: Exit) -> Result<()> {
        let way = match exit {
            Peer => Way::Peer { ifindex: self.ifindex },
            Stack => Way::Stack,
            Out => Way::Neighbour { ifindex: self.ifindex },
        };
        let configuration: String = FAMILIES.iter().map(Ends::configuration).collect();
        let plan = planned(&configuration, way, &self.plan)?;
        if plan.tables != self.plan.tables {
            self.kernel.program(&plan)?;
            self.plan = plan;
        }
        Ok(())
    }

    /// Lets the front go on in this program.
    fn aim(&mut self, hook: Hook, program: Measured) -> Result<()> {
        let fd: BorrowedFd<'_> = match program {
            Measured::Ours(program) => self.kernel.bpf().program(program)?,
            Measured::Reference(name) => match hook {
                Hook::Tc => <&SchedClassifier>::try_from(self.programs.program(name)?)?.fd()?.as_fd(),
                Hook::Xdp => <&Xdp>::try_from(self.programs.program(name)?)?.fd()?.as_fd(),
            },
        };
        let (_, map) = TARGETS.into_iter().find(|(of, _)| *of == hook).context("each hook has a front")?;
        let number = fd.as_raw_fd();
        Ok(self.targets[map].update(&0_u32.to_ne_bytes(), &number.to_ne_bytes())?)
    }

    fn seen(&mut self) -> Result<Moved> {
        let counters = self.kernel.bpf().counters()?;
        let traffic = counters.traffic.values().fold(Traffic::default(), |sum, one| sum.plus(*one));
        Ok(Moved {
            packets_in: traffic.packets_in,
            packets_out: traffic.packets_out,
            choices: traffic.choices,
            tickets: counters.services.values().map(|service| service.tickets).sum(),
            flows: counters.active.values().sum(),
            left: counters.early.values().map(|early| early.left).sum(),
            pairs: self.tables.pairs(),
            reasons: counters.reasons,
        })
    }

    fn verified(&mut self) -> Result<BTreeMap<String, u32>> {
        let verified = self.kernel.bpf().verified_instructions()?;
        Ok(verified.into_iter().filter_map(|(name, taken)| Some((name.to_owned(), taken?))).collect())
    }
}

fn mapping(folder: &Path, map: &str) -> Result<Mapping> {
    Ok(Mapping::new(&Map::open(&folder.join(map))?, Access::Write)?)
}

impl Tables {
    /// Nobody was ever here.
    fn forget(&self) {
        for words in [&self.flows, &self.replies, &self.active].into_iter().flat_map(Mapping::all) {
            words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Clients whose queries are noted; an entry is two words.
    fn pairs(&self) -> u64 {
        let is_used =
            |entry: &&[_]| entry.iter().any(|word: &std::sync::atomic::AtomicU64| word.load(Ordering::Relaxed) != 0);
        self.replies.all().map(|bucket| bucket.chunks(2).filter(is_used).count() as u64).sum()
    }
}

/// The front for a hook.
const fn front(hook: Hook) -> &'static str {
    match hook {
        Hook::Tc => "tc_front",
        Hook::Xdp => "xdp_front",
    }
}

/// What the references say: `TC_ACT_OK`, `XDP_PASS`.
const fn passes(hook: Hook) -> u32 {
    match hook {
        Hook::Tc => 0,
        Hook::Xdp => 2,
    }
}

impl Row {
    /// What one of Evenkeel's programs says: to send the packet on by itself, or to let it pass.
    const fn verdict(&self) -> u32 {
        const TC_ACT_REDIRECT: u32 = 7;
        const TC_ACT_UNSPEC: u32 = u32::MAX;
        const XDP_REDIRECT: u32 = 4;
        match (self.hook, self.is_sent()) {
            (Hook::Tc, true) => TC_ACT_REDIRECT,
            (Hook::Tc, false) => TC_ACT_UNSPEC,
            (Hook::Xdp, true) => XDP_REDIRECT,
            (Hook::Xdp, false) => passes(Hook::Xdp),
        }
    }

    const fn is_sent(&self) -> bool {
        match (self.exit, self.kind) {
            (Stack, _) | (Peer | Out, NotOurs | NotFromBackend) => false,
            // XDP leaves what goes through a veth to traffic control.
            (Peer, KnownFlow | NewFlow | KnownPair | NewPair) if matches!(self.hook, Hook::Xdp) => false,
            (Peer | Out, KnownFlow | NewFlow | FlowAnswer | KnownPair | NewPair | PairAnswer) => true,
        }
    }

    /// How far so many packets move the counters. What XDP leaves is counted by the program that comes after it.
    fn moves(&self, packets: u32) -> Moved {
        let moved = self.kind.moves(u64::from(packets));
        match (self.hook, self.is_sent()) {
            (Hook::Xdp, false) => Moved {
                left: moved.packets_in + moved.packets_out,
                packets_in: 0,
                packets_out: 0,
                reasons: BTreeMap::new(),
                ..moved
            },
            (Hook::Xdp, true) | (Hook::Tc, _) => moved,
        }
    }
}

/// How counters stand, or how far they moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Moved {
    packets_in: u64,
    packets_out: u64,
    choices: u64,
    tickets: u64,
    flows: u64,
    pairs: u64,
    /// What XDP left to traffic control.
    left: u64,
    reasons: BTreeMap<Reason, u64>,
}

impl Moved {
    fn since(&self, before: &Self) -> Self {
        let reason = |(reason, count): (&Reason, &u64)| {
            let more = count.wrapping_sub(before.reasons.get(reason).copied().unwrap_or(0));
            (more != 0).then_some((*reason, more))
        };
        Self {
            packets_in: self.packets_in.wrapping_sub(before.packets_in),
            packets_out: self.packets_out.wrapping_sub(before.packets_out),
            choices: self.choices.wrapping_sub(before.choices),
            tickets: self.tickets.wrapping_sub(before.tickets),
            flows: self.flows.wrapping_sub(before.flows),
            pairs: self.pairs.wrapping_sub(before.pairs),
            left: self.left.wrapping_sub(before.left),
            reasons: self.reasons.iter().filter_map(reason).collect(),
        }
    }

    /// Counts as sent what XDP leaves of packets that it sends: of finished checksums one in 65,535 looks unfinished.
    fn with_those_of_chance(mut self, expected: &Self) -> Self {
        let sent = expected.packets_in + expected.packets_out;
        if expected.left > 0 || self.left > sent / 1000 {
            return self;
        }
        let left = std::mem::take(&mut self.left);
        *(if expected.packets_in > 0 { &mut self.packets_in } else { &mut self.packets_out }) += left;
        self
    }
}

impl Kind {
    /// What has to be in the tables before: packets of this kind, one of each client.
    const fn precedes(self) -> Option<Self> {
        match self {
            KnownFlow | FlowAnswer => Some(NewFlow),
            KnownPair | PairAnswer => Some(NewPair),
            NewFlow | NewPair | NotOurs | NotFromBackend => None,
        }
    }

    /// How far so many packets move the counters.
    fn moves(self, packets: u64) -> Moved {
        let none = Moved::default();
        let left = || BTreeMap::from([(Reason::NotOurs, packets)]);
        match self {
            KnownFlow => Moved { packets_in: packets, ..none },
            NewFlow => Moved { packets_in: packets, choices: packets, tickets: packets, flows: packets, ..none },
            KnownPair => Moved { packets_in: packets, choices: packets, tickets: packets, ..none },
            NewPair => Moved { packets_in: packets, choices: packets, tickets: packets, pairs: packets, ..none },
            FlowAnswer | PairAnswer => Moved { packets_out: packets, ..none },
            NotOurs | NotFromBackend => Moved { reasons: left(), ..none },
        }
    }

    /// Whose packets they are.
    const fn clients(self, count: u32) -> Clients {
        match (self, count) {
            (NewFlow | NewPair, _) => Clients::EachFrom(0),
            (KnownFlow | FlowAnswer | KnownPair | PairAnswer | NotOurs | NotFromBackend, 1) => Clients::One,
            (KnownFlow | FlowAnswer | KnownPair | PairAnswer | NotOurs | NotFromBackend, count) => {
                Clients::AnyOf(count)
            }
        }
    }

    /// As many packets as there is room for in tables that are at most half full.
    fn at_most(self, packets: u32) -> u32 {
        match self {
            NewFlow | NewPair => packets.min(MANY),
            KnownFlow | FlowAnswer | KnownPair | PairAnswer | NotOurs | NotFromBackend => packets,
        }
    }
}

/// One family's addresses, so that a row is written once for both.
struct Ends {
    family: Family,
    /// Clients are numbered from here on.
    clients: &'static str,
    /// A frontend whose flows go to `backend`.
    flows: &'static str,
    /// One whose queries do so one by one.
    queries: &'static str,
    /// None at all.
    other: &'static str,
    backend: &'static str,
}

const FAMILIES: [Ends; 2] = [
    Ends {
        family: Family::V4,
        clients: "11.0.0.0",
        flows: "10.9.0.2",
        queries: "10.9.0.3",
        other: "10.9.0.77",
        backend: "10.100.13.2",
    },
    Ends {
        family: Family::V6,
        clients: "fd00:9:1::",
        flows: "fd00:9::2",
        queries: "fd00:9::3",
        other: "fd00:9::77",
        backend: "fd00:100:13::2",
    },
];

impl Ends {
    /// One backend, so that every client is known to it; another port for the queries' one, so that it is another one.
    fn configuration(&self) -> String {
        let Self { family, flows, queries, backend, .. } = self;
        let service = |name: &str, address: &str, port: u16, schedule: &str| {
            let backend =
                if *family == Family::V4 { format!("{backend}:{port}") } else { format!("[{backend}]:{port}") };
            format!(
                "[[service]]\nname = \"{name}-{family:?}\"\nselector = \"rr\"\nschedule = \"{schedule}\"\n\
                 listen = [{{ address = \"{address}\", port = {port}, protocols = [\"udp\"] }}]\n\
                 backends = [\"{backend}\"]\n"
            )
        };
        service("flows", flows, FLOW_PORT, "per-flow") + &service("queries", queries, QUERY_PORT, "per-packet")
    }

    /// Packets of a kind.
    fn stream(&self, hook: Hook, kind: Kind, clients: Clients) -> Stream {
        let packet = match hook {
            Hook::Tc => eth(),
            // There the device is not the one that test runs have by themselves.
            Hook::Xdp => eth().link(REPLY_LINK.1, REPLY_LINK.0),
        };
        let query = |to: &str, port| (packet.clone().between(self.clients, to).udp(0, port), End::Source);
        let answer = |from: &str, port| (packet.clone().between(from, self.clients).udp(port, 0), End::Destination);
        let (packet, client): (Packet, End) = match kind {
            KnownFlow | NewFlow => query(self.flows, FLOW_PORT),
            KnownPair | NewPair => query(self.queries, QUERY_PORT),
            NotOurs => query(self.other, FLOW_PORT),
            FlowAnswer => answer(self.backend, FLOW_PORT),
            PairAnswer => answer(self.backend, QUERY_PORT),
            NotFromBackend => answer(self.other, FLOW_PORT),
        };
        Stream::of(&packet.payload(&PAYLOAD), client, clients)
    }

    /// What the reference finds in its hash.
    fn key(&self, address: &str) -> [u32; 5] {
        let packet = eth().between(self.clients, address).udp(0, FLOW_PORT).bytes();
        let last = u32::from(FLOW_PORT.to_be()) | u32::from(Protocol::UDP.0) << 16;
        let word = |at: usize| u32::from_ne_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
        match self.family {
            Family::V4 => [0, 0, 0, word(30), last],
            Family::V6 => [word(38), word(42), word(46), word(50), last],
        }
    }
}

const FLOW_PORT: u16 = 53;
const QUERY_PORT: u16 = 5353;

/// Makes a query over IPv4 a frame of 64 bytes.
const PAYLOAD: [u8; 22] = [0; 22];
