//! Ring 2: random packets, on which the host and the kernel must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Range,
    process::ExitCode,
};

use anyhow::{Result, bail, ensure};
use lb_common::{
    addr::{Family, Protocol},
    backend::{BackendState, Way},
    flow,
    reason::Reason,
    service::{Index, SocketKey},
};
use lb_userspace::{dataplane::bpf::Program, plan::Plan};
use testbed::{
    cases::{DEFAULT_WAY, Handed, LAB, MUTE, Machine, Outcome, STRANGE, host::Host, kernel, planned, table::cases},
    harness::{Needs, run_side_by_side, trial},
    packet::{Packet, eth},
};

/// Packets in all.
const PACKETS: usize = 100_000;

/// How often each configuration begins on empty tables: soon enough that no flow expires meanwhile, since only the
/// kernel's clock runs.
const RUNS: usize = 2;

fn main() -> ExitCode {
    if Needs::Root.unmet().is_none()
        && let Err(error) = kernel::enter()
    {
        eprintln!("agreement: {error:#}");
        return ExitCode::FAILURE;
    }
    let all = match configurations() {
        Ok(all) => all,
        Err(error) => {
            eprintln!("agreement: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let packets = PACKETS.div_ceil(RUNS * all.len());
    let mut trials = Vec::new();
    let mut every_run = Vec::new();
    for (number, (name, services)) in all.into_iter().enumerate() {
        let own: Vec<Run> = (0..RUNS)
            .map(|run| Run {
                services: services.clone(),
                seed: (number * RUNS + run + 1) as u64,
                packets,
                way: WAYS[(number + run) % WAYS.len()],
            })
            .collect();
        every_run.extend(own.clone());
        trials.push(trial(&format!("host and kernel agree on {name}"), Needs::Root, move || agree(&own)));
    }
    trials
        .push(trial("the packets come to everything they can", Needs::Nothing, move || come_to_everything(&every_run)));
    run_side_by_side(trials)
}

/// Our own services, and each of the case table's once, under the name of the first case that has it. Those with chance
/// in them are not among them, since each side has its own.
fn configurations() -> Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> =
        SERVICES.iter().map(|(name, services)| ((*name).to_owned(), (*services).to_owned())).collect();
    let mut known = BTreeSet::new();
    for case in cases() {
        for services in case.configurations() {
            let plan = planned(services, DEFAULT_WAY, &Plan::default())?;
            let has_chance = plan.tables.policies.values().any(|policy| policy.index() == Some(Index::Random));
            if !has_chance && known.insert(services.to_owned()) {
                all.push((format!("the services of: {}", case.name), services.to_owned()));
            }
        }
    }
    Ok(all)
}

/// One row of events on empty maps.
#[derive(Clone, Debug)]
struct Run {
    services: String,
    packets: usize,
    seed: u64,
    way: Way,
}

/// What happens to a machine.
enum Event {
    Plan(Box<Plan>),
    State(IpAddr, BackendState),
    Packet(Program, Vec<u8>),
}

impl Event {
    fn happen(&self, machine: &mut impl Machine) -> Result<Option<Outcome>> {
        match self {
            Self::Plan(plan) => machine.program(plan)?,
            Self::State(backend, state) => machine.set_state(*backend, *state)?,
            Self::Packet(at, bytes) => return machine.run(*at, bytes).map(Some),
        }
        Ok(None)
    }

    fn is_early(&self) -> bool {
        match self {
            Self::Packet(at, _) => at.is_early(),
            Self::Plan(_) | Self::State(..) => false,
        }
    }

    /// Whether it is a packet that says it is of this family, or of neither.
    fn is_of(&self, family: Family) -> bool {
        let Self::Packet(_, bytes) = self else { return false };
        (bytes[12..14] == [0x86, 0xdd]) == (family == Family::V6)
    }
}

impl Run {
    /// Packets, and now and then another state of a backend, or a reload that changes the schedule.
    fn events(&self) -> Result<Vec<Event>> {
        let mut dice = Dice(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut plan = planned(&self.services, self.way, &Plan::default())?;
        let mut next = [rescheduled(&self.services), self.services.clone()].into_iter().cycle();
        let mut events = vec![Event::Plan(Box::new(plan.clone()))];
        for _ in 0..self.packets {
            if dice.roll(400) == 0
                && let Some(services) = next.next()
            {
                plan = planned(&services, self.way, &plan)?;
                events.push(Event::Plan(Box::new(plan.clone())));
            }
            if dice.roll(150) == 0 {
                let backends: Vec<IpAddr> =
                    plan.tables.backends.values().map(|record| record.key.address.to_ip()).collect();
                events.push(Event::State(dice.one_of(&backends), dice.one_of(&STATES)));
            }
            let (at, bytes) = dice.packet(&plan);
            events.push(Event::Packet(at, bytes));
        }
        Ok(events)
    }
}

/// Services that choose per flow, choosing per packet; those that choose per packet, choosing per flow.
fn rescheduled(services: &str) -> String {
    const PER_PACKET: &str = "schedule = \"per-packet\"";
    if services.contains(PER_PACKET) {
        return services.replace(PER_PACKET, "schedule = \"per-flow\"");
    }
    services.replace("[[service]]\n", &format!("[[service]]\n{PER_PACKET}\n"))
}

fn agree(runs: &[Run]) -> Result<()> {
    for run in runs {
        let (mut host, mut kernel) = (Host::default(), kernel::Kernel::new()?);
        for (number, event) in run.events()?.iter().enumerate() {
            let (expected, found) = (event.happen(&mut host)?, event.happen(&mut kernel)?);
            // The kernel answers so many a moment; on the host no time passes, and each packet is the first.
            let is_left_unanswered = match (&expected, &found) {
                (Some(Outcome::Told(expected, _)), Some(Outcome::Dropped(found))) => expected == found,
                _ => false,
            };
            if expected != found && !is_left_unanswered {
                let Event::Packet(at, bytes) = event else { unreachable!("nothing else comes to anything") };
                bail!(
                    "seed {}, {:?}, event {number} at {}: {bytes:02x?}\n  host:   {expected:02x?}\n  kernel: {found:02x?}",
                    run.seed,
                    run.way,
                    at.name()
                );
            }
        }
    }
    Ok(())
}

/// The same packets on the host alone: agreement on what never happens would say nothing.
fn come_to_everything(runs: &[Run]) -> Result<()> {
    let mut packets = 0;
    let mut most = 0;
    for family in Family::ALL {
        let (mut redirected, mut passed, mut early, mut told, mut untold, mut refused) = (0, 0, 0, 0, 0, 0);
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        for run in runs {
            let mut host = Host::default();
            for event in run.events()? {
                let outcome = event.happen(&mut host)?;
                match outcome.filter(|_| event.is_of(family)) {
                    Some(Outcome::Redirected(_)) if event.is_early() => early += 1,
                    Some(Outcome::Redirected(_)) => redirected += 1,
                    Some(Outcome::Passed(_)) => passed += 1,
                    Some(Outcome::Later(Handed::Told)) => told += 1,
                    Some(Outcome::Later(Handed::Untold)) => untold += 1,
                    Some(Outcome::Later(Handed::Refused)) => refused += 1,
                    Some(Outcome::Left(reason) | Outcome::Dropped(reason) | Outcome::Told(reason, _)) => {
                        *reasons.entry(reason).or_default() += 1;
                    }
                    None => {}
                }
            }
            most = most.max(host.most_flows());
        }
        let all = redirected + passed + early + told + untold + refused + reasons.values().sum::<usize>();
        let said = format!(
            "{}: {redirected} redirected, {passed} passed; by XDP {early} redirected, {told} left with a note, {untold} \
             without, {refused} refused; of {all}, {reasons:?}",
            family.name()
        );
        // Half of the programs are XDP's, and one way in six is the stack's.
        ensure!(redirected + passed + early + told > all / 10 && redirected.min(passed) > all / 200, "{said}");
        ensure!(early.min(told).min(refused) > all / 200 && untold > all / 250, "{said}");
        for reason in Reason::ALL {
            ensure!(reasons.contains_key(reason) == may_be_met(*reason, family), "{}: {said}", reason.name());
        }
        packets += all;
    }
    // Half of what there is room for.
    ensure!(most <= WAYS_OF_A_CLIENT / 2, "the flows of one client and port take {most} ways");
    ensure!(packets >= PACKETS, "only {packets} packets");
    Ok(())
}

/// Whether such packets can come to this.
fn may_be_met(reason: Reason, family: Family) -> bool {
    match reason {
        Reason::NotOurs
        | Reason::Truncated
        | Reason::Malformed
        | Reason::FragmentUnknown
        | Reason::NoFlow
        | Reason::SourceScope
        | Reason::NoRuleMatched
        | Reason::Clash
        | Reason::HopLimit => true,
        Reason::ExtensionHeaders => family == Family::V6,
        // The tables are larger than all the flows and queries of a run.
        Reason::FlowTableFull | Reason::ReplyTableFull => false,
        // One packet at a time.
        Reason::Contention => false,
        Reason::TooBig => true,
        // Every client has one.
        Reason::NoRoute => false,
        // No service is ever without backends, and no record without those it names.
        Reason::NoBackend | Reason::Inconsistent => false,
        // What has been read can be written.
        Reason::RewriteRefused => false,
    }
}

/// In its two buckets.
const WAYS_OF_A_CLIENT: usize = 2 * flow::WAYS;

/// One for each run, in turn.
const WAYS: [Way; 6] = [
    DEFAULT_WAY,
    Way::Neighbour { ifindex: LAB },
    Way::Stack,
    Way::Peer { ifindex: 1 },
    Way::Neighbour { ifindex: MUTE },
    Way::Neighbour { ifindex: STRANGE },
];

/// In use as often as not.
const STATES: [BackendState; 6] = [
    BackendState::Use,
    BackendState::Use,
    BackendState::Use,
    BackendState::Drain,
    BackendState::UdpGone,
    BackendState::Dead,
];

/// With more backends and frontends than the case table's.
const SERVICES: [(&str, &str); 5] = [
    (
        "rr",
        r#"[[service]]
        name = "dns"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "10.9.0.3", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::3", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = [
            "10.100.13.2", "10.100.13.3:5353", "10.100.13.4",
            "fd00:100:13::2", "[fd00:100:13::3]:5353", "fd00:100:13::4",
        ]"#,
    ),
    (
        "wrr",
        r#"[[service]]
        name = "dns"
        selector = "wrr"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::3", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = [
            { address = "10.100.13.2", weight = 3 }, { address = "10.100.13.3:5353", weight = 2 },
            { address = "fd00:100:13::2", weight = 5 }, { address = "fd00:100:13::3", weight = 1 },
        ]"#,
    ),
    (
        "nth with unmatched choices",
        r#"[[service]]
        name = "dns"
        selector = "nth"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
        ]
        rules = [
            { every = 4, packet = 1, backend = "10.100.13.2" }, { every = 3, packet = 0, backend = "10.100.13.3:5353" },
            { every = 2, packet = 1, backend = "fd00:100:13::2" }, { every = 5, packet = 0, backend = "fd00:100:13::3" },
        ]"#,
    ),
    (
        "per-packet rr",
        r#"[[service]]
        name = "dns"
        schedule = "per-packet"
        listen = [
            { address = "10.9.0.2", port = 53, protocols = ["udp", "tcp"] },
            { address = "10.9.0.3", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::2", port = 53, protocols = ["udp", "tcp"] },
            { address = "fd00:9::3", port = 53, protocols = ["udp", "tcp"] },
        ]
        backends = ["10.100.13.2", "10.100.13.3:5353", "fd00:100:13::2", "[fd00:100:13::3]:5353"]"#,
    ),
    (
        "two services on one port, per packet and per flow",
        r#"[[service]]
        name = "a"
        schedule = "per-packet"
        selector = "nth"
        listen = [{ address = "10.9.0.2", port = 53, protocols = ["udp"] }, { address = "fd00:9::2", port = 53, protocols = ["udp"] }]
        backends = ["10.100.13.2", "fd00:100:13::2"]
        [[service]]
        name = "b"
        listen = [{ address = "10.9.0.3", port = 53, protocols = ["udp"] }, { address = "fd00:9::3", port = 53, protocols = ["udp"] }]
        backends = ["10.100.13.3:5353", "10.100.13.4", "[fd00:100:13::3]:5353", "fd00:100:13::4"]"#,
    ),
];

/// A reproducible source of chance (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % sides
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())]
    }

    fn client_port(&mut self) -> u16 {
        CLIENT_PORTS.start + self.roll(CLIENT_PORTS.len()) as u16
    }

    fn pick<'c>(&mut self, choices: &'c [String]) -> &'c str {
        &choices[self.roll(choices.len())]
    }

    /// Mostly what the services and their backends know, else any mixture of it; now and then with a byte changed or the
    /// end cut off.
    fn packet(&mut self, plan: &Plan) -> (Program, Vec<u8>) {
        let served: Vec<Family> = plan.tables.frontends.keys().map(|key| key.address.family()).collect();
        let family = if self.roll(16) == 0 { self.one_of(&Family::ALL) } else { self.one_of(&served) };
        let Ends { clients, frontends, backends } = Ends::of(plan, family);
        let all: Vec<&str> = clients.iter().chain(&frontends).chain(&backends).map(String::as_str).collect();
        let (at, source, destination, ports) = match self.roll(8) {
            0..=3 => (
                self.one_of(&[
                    Program::IngressClients,
                    Program::IngressBoth,
                    Program::XdpClients,
                    Program::XdpClients,
                    Program::XdpBoth,
                ]),
                self.pick(&clients),
                self.pick(&frontends),
                (self.client_port(), 53),
            ),
            4..=5 => (
                self.one_of(&[
                    Program::IngressBackends,
                    Program::IngressBoth,
                    Program::EgressClients,
                    Program::XdpBackends,
                    Program::XdpBoth,
                ]),
                self.pick(&backends),
                self.pick(&clients),
                (self.one_of(&[53, 53, 5353]), self.client_port()),
            ),
            _ => (
                self.one_of(&Program::ALL),
                self.one_of(&all),
                self.one_of(&all),
                (self.one_of(&PORTS), self.one_of(&PORTS)),
            ),
        };
        let mut packet = eth().between(source, destination).hops(self.one_of(&[64, 64, 64, 64, 64, 2, 1, 0]));
        if self.roll(16) == 0 {
            packet = packet.link(self.one_of(&[[2, 0, 0, 0, 0, 9], [1, 0, 0x5e, 0, 0, 1]]), [2, 0, 0, 0, 0, 1]);
        }
        packet = self.transport(packet, ports);
        for _ in 0..self.one_of(&[0, 0, 0, 0, 0, 0, 1, 2, 7]) {
            packet = packet.extension(self.one_of(&[0, 43, 60]));
        }
        packet = packet.options(self.one_of(&[0, 0, 0, 0, 3, 10]));
        if self.roll(8) == 0 {
            packet = packet.unfinished();
        }
        // With an IPv6 and a UDP header 1452 fit a link exactly, and with an IPv4 header 1472.
        let payload = vec![self.roll(256) as u8; self.one_of(&[0, 0, 1, 20, 20, 600, 1452, 1453, 1472, 1473])];
        let mut bytes = packet.payload(&payload).bytes();
        // The kernel's test run wants a whole IP header.
        let headers = 14 + 40;
        if self.roll(8) == 0 && bytes.len() > headers {
            let at = 14 + self.roll(bytes.len() - 14);
            bytes[at] = self.roll(256) as u8;
        }
        if self.roll(16) == 0 && bytes.len() > headers {
            bytes.truncate(headers + self.roll(bytes.len() - headers));
        }
        (at, bytes)
    }

    fn transport(&mut self, packet: Packet, (source, destination): (u16, u16)) -> Packet {
        let identification = self.roll(4) as u32;
        match self.roll(12) {
            0..=4 => packet.udp(source, destination),
            5 => packet.udp(source, destination).without_checksum(),
            6..=8 => {
                packet.tcp(source, destination).flags(self.one_of(&[0x02, 0x02, 0x12, 0x10, 0x10, 0x10, 0x11, 0x14]))
            }
            9 => packet.udp(source, destination).first_fragment(identification),
            10 => packet.later_fragment(identification, 8 + 8 * self.roll(100), Protocol::UDP),
            _ => packet.raw(self.one_of(&[Protocol::UDP, Protocol::TCP, Protocol(1), Protocol(44)])),
        }
    }
}

/// So many that none has moved so often as to fill its buckets.
const CLIENT_PORTS: Range<u16> = 4000..4040;
const PORTS: [u16; 6] = [53, 5353, 4000, 4001, 4002, 54];

/// Addresses of one family: those of the services, and one of each kind that they do not have.
struct Ends {
    clients: Vec<String>,
    frontends: Vec<String>,
    backends: Vec<String>,
}

impl Ends {
    fn of(plan: &Plan, family: Family) -> Self {
        // The last client's address is one that no router forwards for.
        let (clients, frontend, backend) = match family {
            Family::V4 => (["10.9.0.1", "10.9.0.1", "10.9.0.9", "10.9.0.9", "127.0.0.1"], "10.9.0.4", "10.100.13.9"),
            Family::V6 => {
                (["fd00:9::1", "fd00:9::1", "fd00:9::9", "fd00:9::9", "fe80::9"], "fd00:9::4", "fd00:100:13::9")
            }
        };
        let known = |keys: Vec<SocketKey>, stranger: &str| {
            let own = keys.into_iter().map(|key| key.address).filter(|address| address.family() == family);
            own.map(|address| address.to_ip().to_string()).chain([stranger.to_owned()]).collect()
        };
        Self {
            clients: clients.map(str::to_owned).into(),
            frontends: known(plan.tables.frontends.keys().copied().collect(), frontend),
            backends: known(plan.tables.endpoints.keys().copied().collect(), backend),
        }
    }
}
