//! Evenness with real clients and servers, over both families and from one and two CPUs at once: every run is counted by
//! the client, in the kernel's choices, and by the servers, and the three agree.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{addr::Family, service::ServiceId};
use lb_userspace::dataplane::{maps::Maps, pins::Pins};
use libtest_mimic::Trial;
use serde_json::Value;
use testbed::{
    ask::{Answers, Ask, Ports},
    bind::{Bind, WHO},
    chi_square, dig,
    dnsperf::{Dnsperf, End, MOST_SOCKETS},
    engine::Engine,
    evenkeel::Evenkeel,
    harness::{self, Needs},
    lab::{FRONTENDS, Lab, Layout},
    losses::losses,
    road::Trip,
    twins,
};

/// How many new choices each round makes, by default and on any other road.
const ROUNDS: [usize; 3] = [100, 1200, 12_000];
const FEWER_ROUNDS: [usize; 2] = [100, 1200];
const BACKENDS: usize = 4;
const EQUAL: [u64; BACKENDS] = [1; BACKENDS];

fn main() -> ExitCode {
    let mut trials = by_default();
    trials.extend(FURTHER.into_iter().flat_map(by));
    harness::run_side_by_side(trials)
}

/// Whatever XDP sends it sends in one way.
const FURTHER: [Trip; 5] = [Trip::XDP, Trip::XDP_GENERIC, Trip::LEFT_BY_XDP, Trip::NEIGHBOURS, Trip::STACK];

fn by_default() -> Vec<Trial> {
    let (shared, mut trials) = (Shared::default(), Vec::new());
    let mut add =
        |name: &str, body: fn(&mut Stage, Family) -> Result<()>| trials.extend(of(Trip::DEFAULT, &shared, name, body));
    add("rr is even over new flows", |stage, family| stage.is_even("rr", Schedule::PerFlow, family));
    add("rr is even over the queries of one socket", |stage, family| stage.is_even("rr", Schedule::PerPacket, family));
    add("nth is even over new flows", |stage, family| stage.is_even("nth", Schedule::PerFlow, family));
    add("nth is even over the queries of one socket", |stage, family| {
        stage.is_even("nth", Schedule::PerPacket, family)
    });
    add("wrr keeps within one of every due over new flows", |stage, family| {
        stage.is_within_one(Schedule::PerFlow, [5, 3, 2, 1], family)
    });
    add("wrr keeps within one of every due over the queries of one socket", |stage, family| {
        stage.is_within_one(Schedule::PerPacket, [256, 100, 33, 7], family)
    });
    add("random is random over new flows", |stage, family| stage.is_random(Schedule::PerFlow, family));
    add("random is random over the queries of one socket", |stage, family| {
        stage.is_random(Schedule::PerPacket, family)
    });
    add("two first packets of a flow on two cpus draw one ticket", Stage::twins_draw_one_ticket);
    add("dnsperf is spread evenly by rr over new flows", |stage, family| {
        stage.dnsperf_is_spread("rr", Schedule::PerFlow, family)
    });
    add("dnsperf is spread evenly by rr over the queries of one socket", |stage, family| {
        stage.dnsperf_is_spread("rr", Schedule::PerPacket, family)
    });
    add("dnsperf is spread evenly by nth over new flows", |stage, family| {
        stage.dnsperf_is_spread("nth", Schedule::PerFlow, family)
    });
    add("dnsperf is spread evenly by nth over the queries of one socket", |stage, family| {
        stage.dnsperf_is_spread("nth", Schedule::PerPacket, family)
    });
    add("dnsperf's sockets that go on asking keep their flows", Stage::sockets_keep_their_flows);
    add("dig is spread evenly over udp", Stage::dig_is_spread);
    add("dig is spread evenly over tcp", Stage::connections_are_spread);
    add("queries from a port that has a flow of another frontend are answered by their own", Stage::ports_have_a_past);
    trials
}

/// What a road can change: who is chosen, by flow and by packet, from one CPU and two.
fn by(trip: Trip) -> Vec<Trial> {
    let (shared, mut trials) = (Shared::default(), Vec::new());
    let mut add = |name: &str, body: fn(&mut Stage, Family) -> Result<()>| trials.extend(of(trip, &shared, name, body));
    add("rr is even over new flows", |stage, family| stage.is_even("rr", Schedule::PerFlow, family));
    add("rr is even over the queries of one socket", |stage, family| stage.is_even("rr", Schedule::PerPacket, family));
    add("wrr keeps within one of every due over new flows", |stage, family| {
        stage.is_within_one(Schedule::PerFlow, [5, 3, 2, 1], family)
    });
    add("wrr keeps within one of every due over the queries of one socket", |stage, family| {
        stage.is_within_one(Schedule::PerPacket, [50, 20, 7, 3], family)
    });
    add("two first packets of a flow on two cpus draw one ticket", Stage::twins_draw_one_ticket);
    add("dig is spread evenly over tcp", Stage::connections_are_spread);
    trials
}

/// A trial for each family.
fn of(trip: Trip, shared: &Shared, name: &str, body: fn(&mut Stage, Family) -> Result<()>) -> [Trial; 2] {
    Family::ALL.map(|family| {
        let shared = Arc::clone(shared);
        let body = move || harness::on_shared(&shared, || Stage::set(trip), |stage| body(stage, family));
        harness::trial(&trip.title(&format!("{name}, {family}")), Needs::Root, body)
    })
}

/// The lab that all trials of a road use one after the other; it goes with the last of them.
type Shared = Arc<Mutex<Option<Stage>>>;

impl Stage {
    fn is_even(&mut self, selector: &'static str, schedule: Schedule, family: Family) -> Result<()> {
        self.configure(Method { selector, schedule, weights: None })?;
        let before = self.evenkeel.by_xdp()?;
        let client = schedule.client(if selector == "nth" { Client::Nth } else { Client::RoundRobin });
        for (cpus, count) in self.cpus_and_rounds() {
            let (asked, _) = self.ask(schedule, client, family, cpus, count)?;
            ensure!(spread(&asked) <= 1, "{count} from {cpus} CPUs: {asked:?}");
        }
        self.trip.was_taken_since(before, &self.evenkeel)
    }

    fn is_within_one(&mut self, schedule: Schedule, weights: [u64; BACKENDS], family: Family) -> Result<()> {
        self.configure(Method { selector: "wrr", schedule, weights: Some(weights) })?;
        for (cpus, count) in self.cpus_and_rounds() {
            let before = self.go_to_the_start_of_a_cycle(schedule, weights, family)?;
            let (asked, answers) = self.ask(schedule, schedule.client(Client::Weighted), family, cpus, count)?;
            ensure!(within_one(&asked, &weights), "{count} from {cpus} CPUs, {before} before: {asked:?}");
            if cpus == 1 {
                // What one CPU sends arrives in its order, so that the promise can be seen after every choice.
                after_every_choice(&answers, |counts| within_one(counts, &weights))?;
            }
        }
        Ok(())
    }

    fn is_random(&mut self, schedule: Schedule, family: Family) -> Result<()> {
        for weights in [EQUAL, [1, 2, 3, 6]] {
            let weighted = (weights != EQUAL).then_some(weights);
            self.configure(Method { selector: "random", schedule, weights: weighted })?;
            for cpus in [1, 2] {
                let (asked, _) = self.ask(schedule, schedule.client(Client::Random), family, cpus, 12_000)?;
                let p = chi_square::p_value(&asked, &weights);
                ensure!((1e-6..1.0 - 1e-6).contains(&p), "weights {weights:?}, {cpus} CPUs: {asked:?} has p = {p:e}");
            }
        }
        Ok(())
    }

    fn twins_draw_one_ticket(&mut self, family: Family) -> Result<()> {
        const AT_ONCE: usize = 1000;
        self.configure(Method { selector: "rr", schedule: Schedule::PerFlow, weights: None })?;
        let ports = self.fresh_ports(Client::RoundRobin, family, 20_000)?;
        let before = self.count(family, "udp")?;
        let client = &self.lab.clients()[Client::RoundRobin as usize].namespace;
        let twins = twins::ask(client, frontend(family, 0), ports, AT_ONCE)?;
        let counted = self.count(family, "udp")?.since(&before);
        let flows = twins.by_flow.len();
        ensure!(twins.at_once >= AT_ONCE, "of {flows} flows only {} were sent by two CPUs at once", twins.at_once);
        ensure!(twins.strange == 0, "{} strange answers", twins.strange);
        for (flow, answers) in twins.by_flow.iter().enumerate() {
            if !matches!(answers, [Some(first), Some(second)] if first == second) {
                bail!("flow {flow} of {flows} is answered by {answers:?}: {}", self.clues(&counted)?);
            }
        }
        counted.drew(flows)?;
        ensure!(spread(&counted.choices) <= 1, "{flows} flows: {:?}", counted.choices);
        let packets: Vec<_> = counted.choices.iter().map(|choices| choices * 2).collect();
        ensure!(counted.arrivals == packets, "{:?} arrived of {:?} choices", counted.arrivals, counted.choices);
        Ok(())
    }

    fn dnsperf_is_spread(&mut self, selector: &'static str, schedule: Schedule, family: Family) -> Result<()> {
        self.configure(Method { selector, schedule, weights: None })?;
        for (cpus, count) in self.cpus_and_rounds() {
            let what = format!("{count} from {cpus} CPUs");
            let client = schedule.client(Client::Tools);
            let lanes = self.lanes(schedule, client, family, cpus, count)?;
            let counted = self.load(&lanes, client, family).with_context(|| what.clone())?;
            counted.drew(count).with_context(|| what.clone())?;
            ensure!(spread(&counted.choices) <= 1, "{what}: {:?}", counted.choices);
            let Count { arrivals, choices, .. } = counted;
            ensure!(arrivals == choices, "{what}: {arrivals:?} arrived of {choices:?}");
        }
        Ok(())
    }

    fn sockets_keep_their_flows(&mut self, family: Family) -> Result<()> {
        for selector in ["rr", "nth"] {
            self.configure(Method { selector, schedule: Schedule::PerFlow, weights: None })?;
            let port = Some(self.fresh_ports(Client::Tools, family, 20)?.start);
            let load = Dnsperf { clients: 20, port, threads: 2, ..Dnsperf::to(frontend(family, 0)) };
            let counted = self.load(&[vec![load]], Client::Tools, family)?;
            counted.drew(20)?;
            ensure!(counted.choices == [5; BACKENDS], "{selector}, 20 sockets: {:?}", counted.choices);
            ensure!(counted.arrivals.iter().sum::<u64>() == 12_000, "{:?} arrived", counted.arrivals);
        }
        Ok(())
    }

    fn dig_is_spread(&mut self, family: Family) -> Result<()> {
        for selector in ["rr", "nth"] {
            for schedule in [Schedule::PerFlow, Schedule::PerPacket] {
                self.configure(Method { selector, schedule, weights: None })?;
                self.dig_eight_times(schedule.client(Client::Tools), family)
                    .with_context(|| format!("{selector}, {schedule:?}"))?;
            }
        }
        Ok(())
    }

    fn dig_eight_times(&mut self, client: Client, family: Family) -> Result<()> {
        let before = self.count(family, "udp")?;
        let ports = self.fresh_ports(client, family, 8)?;
        let host = &self.lab.clients()[client as usize];
        let own = if family == Family::V4 { host.v4 } else { host.v6 };
        let mut answered = BTreeMap::new();
        for port in ports {
            let answer = dig::ask(&host.namespace, frontend(family, 0), WHO, &["-b", &format!("{own}#{port}")])?;
            ensure!(!answer.over_tcp && answer.status == "NOERROR", "{answer:?}");
            *answered.entry(answer.texts.concat()).or_insert(0) += 1;
        }
        let counted = self.count(family, "udp")?.since(&before);
        counted.drew(8)?;
        ensure!(counted.choices == [2; BACKENDS] && counted.arrivals == [2; BACKENDS], "{counted:?}");
        ensure!(answered.len() == BACKENDS && answered.values().all(|count| *count == 2), "{answered:?}");
        Ok(())
    }

    fn ports_have_a_past(&mut self, family: Family) -> Result<()> {
        let other = |schedule| Method { selector: "rr", schedule, weights: None };
        self.configure(other(Schedule::PerFlow))?;
        let client = self.lab.clients()[Client::Tools as usize].namespace.clone();
        let ports = self.fresh_ports(Client::Tools, family, 2 * BACKENDS)?;
        let answers = Ask::from_each_port(frontend(family, 0), ports.clone()).run(&client)?;
        ensure!(answers.is_clean(), "{} unanswered", answers.unanswered());
        self.configure(other(Schedule::PerPacket))?;
        for port in ports {
            let before = self.count(family, "udp")?;
            let answers = Ask::from_one_socket(frontend(family, 1), 100).port(port).run(&client)?;
            let (unanswered, wrong) = (answers.unanswered(), answers.wrong_source);
            ensure!(answers.is_clean(), "port {port}: {unanswered} unanswered, {wrong} from a wrong source");
            let counted = self.count(family, "udp")?.since(&before);
            // The backend of the flow could not tell its answers apart, so that the next one has its turns as well.
            ensure!((counted.tickets, counted.refused) == (100, 0), "port {port}: {counted:?}");
            ensure!(counted.diverted == 25, "port {port}: {} diverted", counted.diverted);
        }
        Ok(())
    }

    fn connections_are_spread(&mut self, family: Family) -> Result<()> {
        for selector in ["rr", "nth"] {
            self.configure(Method { selector, schedule: Schedule::PerFlow, weights: None })?;
            let before = self.count(family, "tcp")?;
            let client = &self.lab.clients()[Client::Tools as usize].namespace;
            let mut answered = BTreeMap::new();
            for number in 0..12 {
                let answer = dig::tcp(client, frontend(family, number), WHO)?;
                ensure!(answer.over_tcp && answer.status == "NOERROR", "{answer:?}");
                *answered.entry(answer.texts.concat()).or_insert(0) += 1;
            }
            let counted = self.count(family, "tcp")?.since(&before);
            counted.drew(12)?;
            let is_even = counted.choices == [3; BACKENDS] && counted.arrivals == [3; BACKENDS];
            ensure!(is_even, "{selector}: {counted:?}");
            ensure!(answered.len() == BACKENDS && answered.values().all(|count| *count == 3), "{answered:?}");
        }
        Ok(())
    }
}

fn spread(counts: &[u64]) -> u64 {
    let (least, most) = (counts.iter().min(), counts.iter().max());
    most.zip(least).map_or(0, |(most, least)| most - least)
}

/// Promise 1 in integers: |count · Σweight − n · weight| < Σweight.
fn within_one(counts: &[u64], weights: &[u64]) -> bool {
    let (asked, sum) = (counts.iter().sum::<u64>(), weights.iter().sum::<u64>());
    counts.iter().zip(weights).all(|(count, weight)| (count * sum).abs_diff(asked * weight) < sum)
}

/// Counts the answers one by one and looks each time.
fn after_every_choice(answers: &Answers, is_right: impl Fn(&[u64]) -> bool) -> Result<()> {
    let mut counts = [0; BACKENDS];
    for (n, who) in (1..).zip(answers.by_query.iter().flatten()) {
        let number = who.strip_prefix('b').and_then(|number| number.parse::<usize>().ok());
        counts[number.with_context(|| format!("a server called {who}"))? - 1] += 1;
        ensure!(is_right(&counts), "after {n}: {counts:?}");
    }
    Ok(())
}

/// One of the frontends of a family in turn: the address of `eth3`, and the one of `eth3:1`.
fn frontend(family: Family, turn: usize) -> SocketAddr {
    let first = usize::from(family == Family::V6);
    SocketAddr::new(FRONTENDS[first + turn % 2 * 2], 53)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PerFlow,
    PerPacket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Method {
    selector: &'static str,
    schedule: Schedule,
    weights: Option<[u64; BACKENDS]>,
}

impl Schedule {
    /// Who asks: one of its own for each selector's flows, since a client has not more ports than that takes. One that
    /// asks from one socket is another again, for its ports must have no flows.
    fn client(self, of_flows: Client) -> Client {
        match self {
            Self::PerFlow => of_flows,
            Self::PerPacket => Client::OneSocket,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    RoundRobin,
    Nth,
    Weighted,
    Random,
    OneSocket,
    Tools,
}

impl Client {
    const ALL: [Self; 6] = [Self::RoundRobin, Self::Nth, Self::Weighted, Self::Random, Self::OneSocket, Self::Tools];
}

/// The lab with its servers and Evenkeel, and how far its clients' ports are used up.
///
/// A flow that was seen lives on for a while, and its port would not be a new choice.
struct Stage {
    trip: Trip,
    evenkeel: Evenkeel,
    method: Method,
    _engine: Option<Engine>,
    servers: Vec<Bind>,
    lab: Lab,
    ports: [[Ports; 2]; Client::ALL.len()],
    runs: usize,
}

impl Stage {
    fn set(trip: Trip) -> Result<Self> {
        let lab = Lab::up(Layout { clients: Client::ALL.len(), backends: BACKENDS, ..trip.layout() })?;
        let servers = Bind::start_all(&lab)?;
        // What goes through the stack is what an engine's rules drop.
        let _engine = if trip == Trip::STACK { None } else { Some(Engine::start(&lab)?) };
        let method = Method { selector: "rr", schedule: Schedule::PerFlow, weights: None };
        let evenkeel = Evenkeel::start(&lab, &configuration(&lab, trip, method))?;
        trip.road.wait_for(&evenkeel)?;
        let mut stage = Self { trip, evenkeel, method, _engine, servers, lab, ports: Default::default(), runs: 0 };
        for family in Family::ALL {
            for client in Client::ALL {
                // Neighbours are found before order matters.
                stage.ask(Schedule::PerFlow, client, family, 1, 8)?;
            }
        }
        Ok(stage)
    }

    /// Each round from one CPU and from two.
    fn cpus_and_rounds(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let rounds: &[usize] = if self.trip == Trip::DEFAULT { &ROUNDS } else { &FEWER_ROUNDS };
        [1, 2].into_iter().flat_map(|cpus| rounds.iter().map(move |count| (cpus, *count)))
    }

    fn configure(&mut self, method: Method) -> Result<()> {
        if method != self.method {
            let told = self.evenkeel.reload(&configuration(&self.lab, self.trip, method))?;
            ensure!(told.as_deref() == Some("configuration applied"), "{method:?}: {told:?}");
            self.method = method;
        }
        Ok(())
    }

    /// Asks so many times, each a new choice, and returns what each backend was given, as everyone counted it.
    fn ask(
        &mut self,
        schedule: Schedule,
        client: Client,
        family: Family,
        cpus: usize,
        count: usize,
    ) -> Result<(Vec<u64>, Answers)> {
        self.runs += 1;
        let server = frontend(family, self.runs);
        let ask = match schedule {
            Schedule::PerFlow => Ask::from_each_port(server, self.fresh_ports(client, family, count)?),
            // A pair of client and backend that is asked through another frontend as well would be kept apart.
            Schedule::PerPacket => {
                Ask::from_one_socket(server, count).port(self.fresh_ports(client, family, cpus)?.start)
            }
        };
        let what = format!("{count} queries to {server} from {cpus} CPUs");
        let before = self.count(family, "udp")?;
        let answers = ask.cpus(cpus).run(&self.lab.clients()[client as usize].namespace)?;
        let counted = self.count(family, "udp")?.since(&before);
        if !answers.is_clean() {
            let (unanswered, wrong) = (answers.unanswered(), answers.wrong_source);
            bail!("{what}: {unanswered} unanswered, {wrong} from a wrong source: {}", self.clues(&counted)?);
        }
        let answered: Vec<_> = answers.of_backends(BACKENDS).into_iter().map(|count| count as u64).collect();
        counted.drew(count).context(what.clone())?;
        ensure!(
            counted.choices == answered,
            "{what}: the kernel chose {:?}, the client saw {answered:?}",
            counted.choices
        );
        ensure!(counted.arrivals == answered, "{what}: {:?} arrived of {answered:?}", counted.arrivals);
        Ok((answered, answers))
    }

    /// What dnsperf is to do on each CPU, one after the other, to make so many new choices.
    fn lanes(
        &mut self,
        schedule: Schedule,
        client: Client,
        family: Family,
        cpus: usize,
        count: usize,
    ) -> Result<Vec<Vec<Dnsperf>>> {
        self.runs += 1;
        let server = frontend(family, self.runs);
        let share = count / cpus;
        // Few queries are over before the other CPU has begun: they are spread over 200 ms.
        let rate = (cpus > 1 && share < 5000).then_some(share * 5);
        let lane = |cpu| -> Result<Vec<Dnsperf>> {
            let start = Dnsperf { cpu: Some(cpu), rate, outstanding: 64, ..Dnsperf::to(server) };
            if schedule == Schedule::PerPacket {
                let port = Some(self.fresh_ports(client, family, 1)?.start);
                return Ok(vec![Dnsperf { port, end: End::Queries(share), ..start }]);
            }
            // As many dnsperfs as it takes for a socket of its own to each query.
            let ports = self.fresh_ports(client, family, share)?;
            let next = ports.clone().step_by(MOST_SOCKETS);
            Ok(next
                .map(|port| {
                    let clients = usize::from(ports.end - port).min(MOST_SOCKETS);
                    Dnsperf { clients, port: Some(port), end: End::Queries(clients), ..start }
                })
                .collect())
        };
        (0..cpus).map(lane).collect()
    }

    /// Runs dnsperf to its end on all lanes at once: all is answered.
    fn load(&self, lanes: &[Vec<Dnsperf>], client: Client, family: Family) -> Result<Count> {
        let namespace = &self.lab.clients()[client as usize].namespace;
        let before = self.count(family, "udp")?;
        let reports = thread::scope(|scope| {
            let run = |lane: &Vec<Dnsperf>| lane.iter().map(|load| load.run(&self.lab, namespace)).collect();
            let running: Vec<_> = lanes.iter().map(|lane| scope.spawn(move || run(lane))).collect();
            let ended = running.into_iter().map(|lane| lane.join().expect("no lane panics"));
            ended.collect::<Result<Vec<Vec<_>>>>()
        })?;
        let counted = self.count(family, "udp")?.since(&before);
        for (load, report) in lanes.iter().flatten().zip(reports.iter().flatten()) {
            let is_answered = (report.completed, report.lost) == (report.sent, 0);
            if !is_answered || load.end != End::Queries(report.sent) {
                bail!("{load:?}, {report:?}: {}", self.clues(&counted)?);
            }
        }
        Ok(counted)
    }

    /// What may tell why a query has no answer.
    fn clues(&self, counted: &Count) -> Result<String> {
        let not_balanced = &self.evenkeel.status()?["not_balanced"];
        Ok(format!("{counted:?}, not balanced: {not_balanced}, lost in the lab: {:?}", losses(&self.lab)?))
    }

    /// Asks until the service's next ticket is the first of a cycle, and says how often.
    fn go_to_the_start_of_a_cycle(
        &mut self,
        schedule: Schedule,
        weights: [u64; BACKENDS],
        family: Family,
    ) -> Result<usize> {
        let [_, pins, ..] = self.evenkeel.folders();
        let service = ServiceId(self.count(family, "udp")?.service);
        let cycle: u64 = weights.iter().sum();
        let place = || -> Result<u64> {
            let cursor = Maps::look(&Pins::new(&pins))?.cursor(service).context("a service with a cursor")?;
            Ok(cursor % cycle)
        };
        let left = usize::try_from((cycle - place()?) % cycle)?;
        if left > 0 {
            self.ask(schedule, schedule.client(Client::Weighted), family, 1, left)?;
        }
        ensure!(place()? == 0, "the cursor is at {} of {cycle} after {left} choices", place()?);
        Ok(left)
    }

    /// Ports of a client that it has not asked from.
    fn fresh_ports(&mut self, client: Client, family: Family, count: usize) -> Result<Range<u16>> {
        let ports = &mut self.ports[client as usize][usize::from(family == Family::V6)];
        let used = ports.clone().take(0).start;
        let taken = ports.take(count);
        ensure!(taken.start >= used, "the {client:?} client has no {count} fresh ports");
        Ok(taken)
    }

    fn count(&self, family: Family, protocol: &str) -> Result<Count> {
        let listing = self.evenkeel.ls(&["--stats"])?;
        let key = format!("{}/{protocol}", frontend(family, 0));
        let has_it = |service: &&Value| {
            service["frontends"].as_array().is_some_and(|keys| keys.iter().any(|own| *own == key.as_str()))
        };
        let services = listing["services"].as_array().context("a listing of services")?;
        let service = services.iter().find(has_it).with_context(|| format!("no service has {key}: {listing}"))?;
        let number = |value: &Value| value.as_u64().with_context(|| format!("no number in {service}"));
        let choices = |host: &testbed::lab::Host| {
            let address = if family == Family::V4 { host.v4 } else { host.v6 };
            let key = format!("{}/{protocol}", SocketAddr::new(address, 53));
            let backends = service["backends"].as_array().context("a listing of backends")?;
            let backend = backends.iter().find(|backend| backend["address"] == key.as_str());
            number(&backend.with_context(|| format!("no backend {key}: {service}"))?["choices"])
        };
        let arrived = |bind: &Bind| {
            let arrivals = bind.arrivals()?;
            Ok(match (family, protocol) {
                (Family::V4, "tcp") => arrivals.tcp4,
                (Family::V6, "tcp") => arrivals.tcp6,
                (Family::V4, _) => arrivals.udp4,
                (Family::V6, _) => arrivals.udp6,
            })
        };
        Ok(Count {
            service: u32::try_from(number(&service["id"])?)?,
            tickets: number(&service["tickets"])?,
            diverted: number(&service["diverted"])?,
            refused: number(&service["refused"])?,
            unmatched: number(&service["unmatched"])?,
            choices: self.lab.backends().iter().map(choices).collect::<Result<_>>()?,
            arrivals: self.servers.iter().map(arrived).collect::<Result<_>>()?,
        })
    }
}

/// What the kernel and the servers have counted for a service of one family and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Count {
    service: u32,
    tickets: u64,
    diverted: u64,
    refused: u64,
    unmatched: u64,
    /// By backend, as `evenkeel ls` says.
    choices: Vec<u64>,
    /// By backend, as BIND's statistics say.
    arrivals: Vec<u64>,
}

impl Count {
    fn since(&self, before: &Self) -> Self {
        let minus =
            |after: &[u64], before: &[u64]| after.iter().zip(before).map(|(after, before)| after - before).collect();
        Self {
            service: self.service,
            tickets: self.tickets - before.tickets,
            diverted: self.diverted - before.diverted,
            refused: self.refused - before.refused,
            unmatched: self.unmatched - before.unmatched,
            choices: minus(&self.choices, &before.choices),
            arrivals: minus(&self.arrivals, &before.arrivals),
        }
    }

    /// So many tickets were drawn, and each of them led where it should.
    fn drew(&self, tickets: usize) -> Result<()> {
        let Self { diverted, refused, unmatched, .. } = *self;
        ensure!((diverted, refused, unmatched) == (0, 0, 0), "diverted, refused, unmatched: {self:?}");
        ensure!(self.tickets == tickets as u64, "{} tickets for {tickets} new choices", self.tickets);
        ensure!(self.choices.iter().sum::<u64>() == self.tickets, "{:?} choices of {tickets} tickets", self.choices);
        Ok(())
    }
}

/// A DNS service on all addresses of `eth3`, with room for the flows of all trials: they are less than half a million,
/// and none of them expires within 30 s.
fn configuration(lab: &Lab, trip: Trip, method: Method) -> String {
    let backends = lab.backends().iter().enumerate().flat_map(|(index, host)| {
        [host.v4, host.v6].map(|address| match method.weights {
            Some(weights) => format!("{{ address = \"{address}\", weight = {} }}", weights[index]),
            None => format!("\"{address}\""),
        })
    });
    let schedule = match method.schedule {
        Schedule::PerFlow => "per-flow",
        Schedule::PerPacket => "per-packet",
    };
    format!(
        "{}[limits]\nflows = 1_000_000\n\n[[service]]\nname = \"dns\"\n\
         listen = [{{ interface = \"eth3\", port = 53, protocols = [\"udp\", \"tcp\"] }}]\n\
         selector = \"{}\"\nschedule = \"{schedule}\"\nbackends = [{}]\n",
        trip.road.settings(),
        method.selector,
        backends.collect::<Vec<_>>().join(", ")
    )
}
