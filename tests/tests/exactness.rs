//! What has to hold for every single packet: a change is atomic, an answer carries its frontend's address whoever asked
//! what and when, and whoever never asked a frontend is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::ExitCode,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use lb_common::{
    addr::{Port, Protocol},
    backend::{BackendId, Way},
    reason::Reason,
    service::SocketKey,
};
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Counters, Dataplane as _,
        attach::{self, Hooks, Mode, Role},
        bpf::{Bpf, Options, Program},
        pins::Pins,
    },
    model::{
        Chain, Choice, Schedule, Weighted,
        resolve::{Compiled, CompiledService},
    },
    plan::{
        Batch, Plan, diff, plan,
        tables::{ServiceKey, Tables},
    },
    settings::Limits,
};
use testbed::{
    ask::Ask,
    bind::Bind,
    cases::planned,
    crowd, datagram,
    evenkeel::Evenkeel,
    harness::{on_root, run},
    lab::{CLIENT_SIDE, FRONTENDS, Lab, Layout, Reach},
    packet::eth,
    responder::Responder,
};

fn main() -> ExitCode {
    run(vec![
        on_root("a hundred thousand changes show no choice outside the old and the new set", changes_are_atomic),
        on_root("a reply costs the same for sixty frontends as for one", sixty_frontends_cost_the_same),
        on_root("one client at two frontends is told apart a hundred thousand times", two_frontends_are_told_apart),
        on_root("one client at two frontends at once gets both answers", two_frontends_at_once),
        on_root("repeated and late answers carry the frontend", repeated_and_late_answers),
        on_root("a million packets of a direct client are untouched", direct_packets_are_untouched),
        on_root("a direct client is answered by the backend itself", a_direct_client_is_answered),
    ])
}

// A change is atomic.

const CHANGES: usize = 100_000;
/// Changes of one batch at most: there is a wait in each, and more of them make each plan slower.
const MOST: usize = 64;
/// Backends lie in parts, and the changes of one batch use those of one part only.
const PARTS: usize = 4;
const IN_PART: usize = 4;
/// A backend's port is its number and this.
const FIRST_PORT: u16 = 20_000;

/// Two CPUs send to one per-packet service all the while. After each batch and its wait, the kernel's own count of each
/// backend's choices may have grown only for the set in force before the batch and for the sets of the batch. Sets are
/// of several sizes and selectors, policies and runs are used again two batches later, by then for another part: a record
/// or a run that is read before it is written whole, or a mixture of two, leads to another part, to no backend or beyond
/// the run, and all of these are counted.
fn changes_are_atomic() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, reach: Reach::Veths, ..Layout::default() })?;
    let backend = &lab.backends()[0];
    // The choices are counted where they are made; beyond that nobody needs the packets.
    backend.namespace.sh("iptables -t raw -A PREROUTING -p udp -j DROP")?;
    let is_over = AtomicBool::new(false);
    let frontend = SocketAddr::new(FRONTENDS[0], 53);
    thread::scope(|scope| {
        let sender = |cpu: usize| {
            let (client, is_over) = (&lab.client().namespace, &is_over);
            scope.spawn(move || client.enter(|| send_until(frontend, cpu, is_over)))
        };
        let changed = lab.balancer().enter(|| {
            let (mut bpf, capacity) = data_path(&lab, &Limits { services: 512, backends: 128, ..Limits::default() })?;
            let port = ifindex(lab.port(0))?;
            let ways = BTreeMap::from([(backend.v4, Way::Peer { ifindex: port })]);
            let mut writer = Writer::new(&mut bpf, capacity, frontend, backend.v4, ways)?;
            writer.publish(0, 1)?;
            let hooks = Hooks { name: CLIENT_SIDE.to_owned(), ingress: Some(Role::Clients), egress: false };
            attach::apply(writer.bpf, &BTreeMap::from([(ifindex(CLIENT_SIDE)?, hooks)]), Mode::of_this_kernel())?;
            let senders = [sender(0), sender(1)];
            let written = writer.publish_all();
            is_over.store(true, Ordering::SeqCst);
            for sender in senders {
                sender.join().expect("no sender panics")?;
            }
            written
        });
        // Whatever went wrong before the senders were joined.
        is_over.store(true, Ordering::SeqCst);
        changed
    })
}

/// Sends from one port in bursts, with some room for the writer between them.
fn send_until(frontend: SocketAddr, cpu: usize, is_over: &AtomicBool) -> Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    while !is_over.load(Ordering::Relaxed) {
        for _ in 0..32 {
            socket.send_to(b"who", frontend)?;
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// The publisher as the controller has it, for one service.
struct Writer<'b> {
    bpf: &'b mut Bpf,
    capacity: Capacity,
    frontend: SocketKey,
    backend: IpAddr,
    ways: BTreeMap<IpAddr, Way>,
    tables: Tables,
    known: BTreeMap<ServiceKey, lb_common::service::ServiceId>,
    changes: usize,
    /// The set in force.
    in_force: BTreeSet<usize>,
    /// By backend.
    choices: Vec<u64>,
}

impl<'b> Writer<'b> {
    fn new(
        bpf: &'b mut Bpf,
        capacity: Capacity,
        frontend: SocketAddr,
        backend: IpAddr,
        ways: BTreeMap<IpAddr, Way>,
    ) -> Result<Self> {
        let tables = bpf.read()?;
        Ok(Self {
            bpf,
            capacity,
            frontend: SocketKey::new(frontend.ip().into(), Port::new(frontend.port()), Protocol::UDP),
            backend,
            ways,
            tables,
            known: BTreeMap::new(),
            changes: 0,
            in_force: BTreeSet::new(),
            choices: vec![0; PARTS * IN_PART],
        })
    }

    fn publish_all(&mut self) -> Result<()> {
        let (mut batch, mut progress) = (0, 0);
        while self.changes < CHANGES {
            batch += 1;
            // Some of one change only: there the old and the new set are exactly two.
            let size = if batch % 8 == 0 { 1 } else { MOST };
            progress += self.publish(batch % PARTS, size.min(CHANGES - self.changes))?;
        }
        ensure!(progress > CHANGES as u64, "only {progress} choices were looked at");
        let counters = self.bpf.counters()?;
        for reason in [Reason::Inconsistent, Reason::NoBackend, Reason::NoRuleMatched, Reason::Clash] {
            ensure!(counters.reasons[&reason] == 0, "{}: {}", reason.name(), counters.reasons[&reason]);
        }
        Ok(())
    }

    /// Changes the service so many times, within one part, and returns how many choices were made until now.
    fn publish(&mut self, part: usize, changes: usize) -> Result<u64> {
        let mut allowed = self.in_force.clone();
        let mut batch = Batch::new(self.tables.clone());
        for number in 1..=changes {
            self.changes += 1;
            let (set, choice) = self.choice(part);
            let service =
                CompiledService { frontends: BTreeSet::from([self.frontend]), schedule: Schedule::PerPacket, choice };
            let key = ServiceKey { name: "dns".to_owned(), family: 4, protocol: Protocol::UDP.0, port: 53 };
            let compiled = Compiled { services: BTreeMap::from([(key, service)]), rejected: Vec::new() };
            let plan = plan(&compiled, &self.ways, batch.current(), &self.known, None, &self.capacity, 1);
            ensure!(plan.rejected.is_empty(), "{:?}", plan.rejected);
            if number == changes {
                self.known.clone_from(&plan.services);
                self.tables.clone_from(&plan.tables);
            }
            batch.add(plan);
            allowed.extend(&set);
            self.in_force = set;
        }
        self.bpf.apply(&batch.finish())?;
        self.look(&allowed)
    }

    /// Some backends of a part, and how one of them is chosen.
    fn choice(&self, part: usize) -> (BTreeSet<usize>, Choice<SocketKey>) {
        let change = self.changes;
        let size = 1 + change * 5 % IN_PART;
        let numbers: Vec<usize> = (0..size).map(|n| part * IN_PART + (change + n) % IN_PART).collect();
        let keys: Vec<SocketKey> = numbers.iter().map(|number| self.key(*number)).collect();
        let weighted = || {
            let weight = |n: usize| 1 + u32::try_from((change + n) % 3).expect("less than 3");
            keys.iter().enumerate().map(|(n, key)| Weighted { backend: *key, weight: weight(n) }).collect()
        };
        let choice = match change % 4 {
            0 => Choice::RoundRobin(keys),
            1 => Choice::Nth(Chain::Even(keys)),
            2 => Choice::WeightedRoundRobin(weighted()),
            _ => Choice::Random(weighted()),
        };
        (numbers.into_iter().collect(), choice)
    }

    fn key(&self, number: usize) -> SocketKey {
        let port = FIRST_PORT + u16::try_from(number).expect("a small number");
        SocketKey::new(self.backend.into(), Port::new(port), Protocol::UDP)
    }

    /// Says that only those which were allowed to were chosen since the last look.
    fn look(&mut self, allowed: &BTreeSet<usize>) -> Result<u64> {
        let traffic = self.bpf.counters()?.traffic;
        let mut made = 0;
        for (id, record) in &self.tables.backends {
            let number = usize::from(record.key.port.number() - FIRST_PORT);
            let choices = traffic.get(id).map_or(0, |traffic| traffic.choices);
            let new = choices - self.choices[number];
            ensure!(
                new == 0 || allowed.contains(&number),
                "change {}: backend {number} was chosen {new} times; the old and new sets are {allowed:?}",
                self.changes
            );
            self.choices[number] = choices;
            made += new;
        }
        Ok(made)
    }
}

// What a reply costs.

/// The kernel's own clock around the program, the smallest of many averages, both in turn; of five such rounds the one
/// in the middle, because what the machine does beside may fall on either side of one of them.
fn sixty_frontends_cost_the_same() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    lab.balancer().enter(|| {
        for (schedule, name) in [("", "per flow"), ("schedule = \"per-packet\"\n", "per packet")] {
            let mut ratios = [0.0; 5];
            for ratio in &mut ratios {
                *ratio = cost_ratio(&lab, schedule)?;
            }
            ratios.sort_by(f64::total_cmp);
            ensure!(ratios[2] <= 1.10, "{name}: with sixty frontends a reply costs {ratios:.3?} times as much");
        }
        Ok(())
    })
}

/// How much more a reply costs whose backend has sixty frontends than one whose backend has one.
fn cost_ratio(lab: &Lab, schedule: &str) -> Result<f64> {
    let (mut bpf, _) = data_path(lab, &Limits::default())?;
    let listens = |ports: std::ops::Range<u16>| {
        let listen = |port| format!("{{ address = \"{}\", port = {port}, protocols = [\"udp\"] }}", FRONTENDS[0]);
        ports.map(listen).collect::<Vec<_>>().join(", ")
    };
    let backends = [(lab.backends()[0].v4, 1000..1001), (lab.backends()[1].v4, 2000..2060)];
    let services = backends.iter().map(|(backend, ports)| {
        let listen = listens(ports.clone());
        format!(
            "[[service]]\nname = \"of-{}\"\nlisten = [{listen}]\n{schedule}selector = \"rr\"\nbackends = [\"{backend}:53\"]\n",
            ports.len()
        )
    });
    let configuration: String = services.collect();
    program(&mut bpf, &configuration)?;
    let client = lab.client().v4;
    // Sixty clients each, so that both touch as much memory.
    let mut replies = [const { Vec::new() }; 2];
    for ((backend, ports), replies) in backends.iter().zip(&mut replies) {
        for (number, client_port) in (0..60).zip(30_000..) {
            let port = ports.start + number % u16::try_from(ports.len()).expect("at most 60");
            let query = Datagram { from: (client, client_port), to: (FRONTENDS[0], port) };
            let sent = query.run(&bpf, Program::IngressClients)?;
            ensure!(sent == Ended::Sent { from: (client, client_port), to: (*backend, 53) }, "{query:?}: {sent:?}");
            let reply = Datagram { from: (*backend, 53), to: (client, client_port) };
            let back = reply.run(&bpf, Program::IngressBackends)?;
            ensure!(back == Ended::Sent { from: query.to, to: query.from }, "{reply:?}: {back:?}");
            replies.push(reply.bytes());
        }
    }
    let _statistics = RunTime::count()?;
    let mut least = [f64::INFINITY; 2];
    for _ in 0..60 {
        for (replies, least) in replies.iter().zip(&mut least) {
            let before = RunTime::of_programs()?;
            let mut runs = 0;
            for _ in 0..10 {
                for reply in replies {
                    bpf.run_once(Program::IngressBackends, reply)?;
                    runs += 1;
                }
            }
            let after = RunTime::of_programs()?;
            let ran = after.iter().find_map(|(program, (count, time))| {
                let (count_before, time_before) = before.get(program)?;
                (count - count_before == runs).then_some(time - time_before)
            });
            *least = least.min(ran.context("no program has run so often")? as f64 / runs as f64);
        }
    }
    drop(bpf);
    attach::detach_all(&pins(lab)?, &lab.directory("state")?)?;
    Ok(least[1] / least[0])
}

/// Has the kernel count the time that programs take; puts the setting back when dropped.
struct RunTime {
    before: String,
}

impl RunTime {
    const SETTING: &'static str = "/proc/sys/kernel/bpf_stats_enabled";

    fn count() -> Result<Self> {
        let before = fs::read_to_string(Self::SETTING)?;
        fs::write(Self::SETTING, "1")?;
        Ok(Self { before })
    }

    /// How often each program of this process has run, and for how many nanoseconds, by its number.
    fn of_programs() -> Result<BTreeMap<u64, (u64, u64)>> {
        let mut programs = BTreeMap::new();
        for entry in fs::read_dir("/proc/self/fdinfo")? {
            // The descriptor of this very listing is gone by now.
            let Ok(facts) = fs::read_to_string(entry?.path()) else { continue };
            let number = |name: &str| {
                let line = facts.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
                line.trim().parse::<u64>().ok()
            };
            if let (Some(id), Some(count), Some(time)) = (number("prog_id"), number("run_cnt"), number("run_time_ns")) {
                programs.insert(id, (count, time));
            }
        }
        Ok(programs)
    }
}

impl Drop for RunTime {
    fn drop(&mut self) {
        // It only costs a few nanoseconds a packet if it stays.
        let _ = fs::write(Self::SETTING, &self.before);
    }
}

// One client at two frontends.

const TIMES: usize = 100_000;

fn two_frontends_are_told_apart() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    lab.balancer().enter(|| {
        for schedule in ["per-flow", "per-packet"] {
            for backends in [4, 1] {
                tell_apart(&lab, schedule, backends).with_context(|| format!("{schedule}, {backends} backends"))?;
                attach::detach_all(&pins(&lab)?, &lab.directory("state")?)?;
            }
        }
        Ok(())
    })
}

fn tell_apart(lab: &Lab, schedule: &str, backends: usize) -> Result<()> {
    // Both flows of a client have the same two buckets, which fills them sooner than as many flows of distinct clients.
    let limits = Limits { flows: 2_000_000, replies: 300_000, ..Limits::default() };
    let (mut bpf, _) = data_path(lab, &limits)?;
    let frontends = [(FRONTENDS[0], 53), (FRONTENDS[2], 53)];
    let listen =
        frontends.map(|(address, _)| format!("{{ address = \"{address}\", port = 53, protocols = [\"udp\"] }}"));
    let listen = listen.join(", ");
    let addresses: Vec<IpAddr> = lab.backends()[..backends].iter().map(|host| host.v4).collect();
    let listed = addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    // By chance, so that the second frontend often comes to where the first one is.
    let configuration = format!(
        "[[service]]\nname = \"dns\"\nlisten = [{listen}]\nschedule = \"{schedule}\"\nselector = \"random\"\n\
         backends = [{listed}]\n"
    );
    program(&mut bpf, &configuration)?;
    for time in 0..TIMES {
        let client = client(time);
        let mut chosen = Vec::new();
        for (number, frontend) in frontends.into_iter().enumerate() {
            let query = Datagram { from: client, to: frontend };
            match query.run(&bpf, Program::IngressClients)? {
                Ended::Sent { from, to: (backend, 53) } if from == client && addresses.contains(&backend) => {
                    chosen.push(((backend, 53), frontend));
                }
                Ended::Dropped if backends == 1 && number == 1 => {}
                other @ (Ended::Sent { .. } | Ended::Untouched | Ended::Dropped) => {
                    bail!("{query:?}, time {time}: {other:?}, {:?}", bpf.counters()?)
                }
            }
        }
        ensure!(chosen.len() == backends.min(2), "{client:?}: {chosen:?}");
        ensure!(chosen.len() < 2 || chosen[0].0 != chosen[1].0, "one backend for both frontends: {chosen:?}");
        for (backend, frontend) in chosen {
            let reply = Datagram { from: backend, to: client };
            let ended = reply.run(&bpf, Program::IngressBackends)?;
            ensure!(ended == Ended::Sent { from: frontend, to: client }, "{reply:?}: {ended:?}, not from {frontend:?}");
        }
    }
    let (counters, times) = (bpf.counters()?, TIMES as u64);
    let stats = counters.services.values().next().context("there is one service")?;
    let refused = if backends == 1 { times } else { 0 };
    ensure!(stats.tickets == 2 * times && stats.refused == refused, "{stats:?}");
    ensure!(counters.reasons[&Reason::Clash] == refused, "{:?}", counters.reasons);
    // A quarter of the second choices; far fewer would mean that no clash was tried.
    ensure!(backends == 1 || (times / 5..times / 3).contains(&stats.diverted), "{stats:?}");
    ensure!(other_reasons(&counters, &[Reason::Clash]) == 0, "{:?}", counters.reasons);
    Ok(())
}

/// Packets that were not balanced for any other reason than these.
fn other_reasons(counters: &Counters, these: &[Reason]) -> u64 {
    counters.reasons.iter().filter(|(reason, _)| !these.contains(reason)).map(|(_, count)| count).sum()
}

/// A client's address and port; no two numbers below 240000 have the same.
fn client(number: usize) -> (IpAddr, u16) {
    let octet = 150 + u8::try_from(number / 60_000).expect("a small number");
    let port = 2_000 + u16::try_from(number % 60_000).expect("less than 60000");
    (IpAddr::V4(Ipv4Addr::new(10, 9, 0, octet)), port)
}

/// As many as any queue on the way takes at once.
const AT_ONCE: usize = 50;
const ROUNDS: usize = 5;

/// The same with a client, servers and packets: both frontends are asked before either has answered.
fn two_frontends_at_once() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = start_responders(&lab, Duration::from_millis(20))?;
    let frontends = [FRONTENDS[0], FRONTENDS[2]].map(|address| SocketAddr::new(address, 53));
    for (schedule, backends) in [("per-flow", 4), ("per-packet", 4), ("per-flow", 1), ("per-packet", 1)] {
        let listen = frontends.map(|at| format!("{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}", at.ip()));
        let (listen, listed) =
            (listen.join(", "), lab.backends()[..backends].iter().map(|host| format!("\"{}\"", host.v4)));
        let configuration = format!(
            "[[service]]\nname = \"dns\"\nlisten = [{listen}]\nschedule = \"{schedule}\"\nselector = \"random\"\n\
             backends = [{}]\n",
            listed.collect::<Vec<_>>().join(", ")
        );
        let mut evenkeel = Evenkeel::start(&lab, &configuration)?;
        let (mut right, mut wrong) = (0, 0);
        for _ in 0..ROUNDS {
            let patience = Duration::from_millis(300);
            let asked = lab.client().namespace.enter(|| ask_all(&frontends, AT_ONCE, patience))?;
            (right, wrong) = (right + asked.right, wrong + asked.wrong);
        }
        // With one backend whoever came first has its answer, and the other one is counted.
        let expected = ROUNDS * AT_ONCE * if backends == 1 { 1 } else { 2 };
        let context = || format!("{schedule}, {backends} backends: {right} answers and {wrong} wrong ones");
        ensure!(right == expected && wrong == 0, "{}", context());
        let clashes = evenkeel.status()?["not_balanced"].to_string();
        ensure!(clashes.contains("clash") == (backends == 1), "{}: {clashes}", context());
        evenkeel.stop()?;
        evenkeel.detach()?;
    }
    Ok(())
}

// Answers that come twice, and late.

/// Later than most resolvers wait.
const LATE: Duration = Duration::from_secs(3);

fn repeated_and_late_answers() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = start_responders(&lab, LATE)?;
    for backends in [4, 1] {
        let weights: Vec<(usize, u32)> = (0..backends).map(|backend| (backend, 1)).collect();
        let mut evenkeel = Evenkeel::start(&lab, &crowd::configuration(&lab, &weights))?;
        let client = &lab.client().namespace;
        // The same query twice: the same bytes from the same port.
        let ask_twice = |frontend| client.enter(|| ask_all(&[frontend, frontend], AT_ONCE, LATE + LATE));
        let asked = thread::scope(|scope| {
            let asking = [crowd::FLOWS, crowd::PACKETS].map(|frontend| scope.spawn(move || ask_twice(frontend)));
            asking.map(|asked| asked.join().expect("no client panics"))
        });
        for asked in asked {
            let asked = asked?;
            ensure!(asked.right == 2 * AT_ONCE && asked.wrong == 0, "{backends} backends: {asked:?}");
            ensure!(asked.soonest >= LATE, "{asked:?}");
        }
        evenkeel.stop()?;
        evenkeel.detach()?;
    }
    Ok(())
}

/// What came back to [`ask_all`].
#[derive(Clone, Debug)]
struct Asked {
    /// Answers from a frontend that was asked, each at most as often as it was asked.
    right: usize,
    /// Anything else.
    wrong: usize,
    /// How long the first one took.
    soonest: Duration,
}

/// Asks all the servers from each of `sockets` sockets, without waiting for answers in between, and takes what comes
/// until all are there or the time is over.
fn ask_all(servers: &[SocketAddr], sockets: usize, patience: Duration) -> Result<Asked> {
    let mut asked = Asked { right: 0, wrong: 0, soonest: Duration::MAX };
    let begin = Instant::now();
    let any = if servers[0].is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut waiting = Vec::new();
    for number in 0..sockets {
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        let query = datagram::query(u16::try_from(number)?, "who.example.test", 0);
        for server in servers {
            socket.send_to(&query, server)?;
        }
        waiting.push((socket, query, servers.to_vec()));
    }
    let mut buffer = [0; 512];
    while begin.elapsed() < patience && waiting.iter().any(|(.., servers)| !servers.is_empty()) {
        let mut is_idle = true;
        for (socket, query, servers) in &mut waiting {
            let (length, source) = match socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            is_idle = false;
            asked.soonest = asked.soonest.min(begin.elapsed());
            match servers.iter().position(|server| *server == source) {
                Some(position) if length > 12 && buffer[..2] == query[..2] => {
                    servers.remove(position);
                    asked.right += 1;
                }
                Some(_) | None => asked.wrong += 1,
            }
        }
        if is_idle {
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(asked)
}

/// One on each backend, named as it is, on port 53.
fn start_responders(lab: &Lab, delay: Duration) -> Result<Vec<Responder>> {
    (1..).zip(lab.backends()).map(|(n, host)| Responder::start(host, &format!("b{n}"), 53, delay)).collect()
}

// Who never asked a frontend.

fn direct_packets_are_untouched() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    lab.balancer().enter(|| {
        for schedule in ["per-flow", "per-packet"] {
            pass_directly(&lab, schedule).with_context(|| schedule.to_owned())?;
            attach::detach_all(&pins(&lab)?, &lab.directory("state")?)?;
        }
        Ok(())
    })
}

/// Half a million packets between direct clients and a backend, whose port numbers are those of clients with flows.
fn pass_directly(lab: &Lab, schedule: &str) -> Result<()> {
    const PORTS: usize = 60_000;
    let limits = Limits { flows: 200_000, replies: 200_000, ..Limits::default() };
    let (mut bpf, _) = data_path(lab, &limits)?;
    let backend = (lab.backends()[0].v4, 53);
    let frontend = (FRONTENDS[0], 53);
    let configuration = format!(
        "[[service]]\nname = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\n\
         schedule = \"{schedule}\"\nselector = \"rr\"\nbackends = [\"{}\"]\n",
        frontend.0, backend.0
    );
    program(&mut bpf, &configuration)?;
    for number in 0..PORTS {
        let query = Datagram { from: client(number), to: frontend };
        let sent = query.run(&bpf, Program::IngressClients)?;
        ensure!(sent == Ended::Sent { from: query.from, to: backend }, "{query:?}: {sent:?}");
    }
    for number in 0..250_000 {
        let (port, other) = (client(number % PORTS).1, u8::try_from(number / PORTS).expect("less than 5"));
        let direct = (IpAddr::V4(Ipv4Addr::new(10, 9, 0, 200 + other)), port);
        for (program, packet) in [
            (Program::IngressClients, Datagram { from: direct, to: backend }),
            (Program::IngressBackends, Datagram { from: backend, to: direct }),
        ] {
            let ended = packet.run(&bpf, program)?;
            ensure!(ended == Ended::Untouched, "{packet:?}: {ended:?}");
        }
    }
    let counters = bpf.counters()?;
    ensure!(counters.reasons[&Reason::NotOurs] == 500_000, "{:?}", counters.reasons);
    ensure!(other_reasons(&counters, &[Reason::NotOurs]) == 0, "{:?}", counters.reasons);
    // Their clients still get their answers.
    for number in 0..PORTS {
        let reply = Datagram { from: backend, to: client(number) };
        let back = reply.run(&bpf, Program::IngressBackends)?;
        ensure!(back == Ended::Sent { from: frontend, to: reply.to }, "{reply:?}: {back:?}");
    }
    let traffic = &counters.traffic[&BackendId(1)];
    ensure!(traffic.packets_in == PORTS as u64, "{traffic:?}");
    Ok(())
}

fn a_direct_client_is_answered() -> Result<()> {
    let lab = Lab::up(Layout { clients: 2, ..Layout::default() })?;
    let _servers = Bind::start_all(&lab)?;
    let weights: Vec<(usize, u32)> = (0..4).map(|backend| (backend, 1)).collect();
    let _evenkeel = Evenkeel::start(&lab, &crowd::configuration(&lab, &weights))?;
    let [through, direct] = lab.clients() else { unreachable!("the lab has two") };
    let ports = 10_000..14_000;
    for (frontend, backend) in [(crowd::FLOWS, lab.backends()[0].v4), (crowd::PACKETS, lab.backends()[0].v6)] {
        let backend = SocketAddr::new(backend, 53);
        // The same ports at the same time.
        thread::scope(|scope| {
            let asks = [(frontend, through), (backend, direct)].map(|(server, host)| {
                let ports = ports.clone();
                scope.spawn(move || Ask::from_each_port(server, ports).run(&host.namespace))
            });
            for asked in asks {
                let answers = asked.join().expect("no client panics")?;
                let (unanswered, wrong) = (answers.unanswered(), answers.wrong_source);
                ensure!(answers.is_clean(), "{frontend} and {backend}: {unanswered} unanswered, {wrong} of strangers");
            }
            Ok(())
        })?;
    }
    Ok(())
}

// Packets by themselves, through the real program and the real maps.

/// A UDP packet over IPv4.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

/// Where address and port of its two ends lie.
const FROM: (usize, usize) = (26, 34);
const TO: (usize, usize) = (30, 36);

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was sent on, between these.
    Sent { from: (IpAddr, u16), to: (IpAddr, u16) },
    /// The stack has it as it was.
    Untouched,
    /// It was discarded.
    Dropped,
}

impl Datagram {
    fn bytes(&self) -> Vec<u8> {
        // One is built and the others made of it, because millions are wanted. The header's sum, which is not made
        // anew, is for the stack to look at.
        static PATTERN: LazyLock<Vec<u8>> =
            LazyLock::new(|| eth().ipv4("0.0.0.0", "0.0.0.0").udp(0, 0).without_checksum().payload(b"who").bytes());
        let mut bytes = PATTERN.clone();
        for ((address, port), (address_at, port_at)) in [(self.from, FROM), (self.to, TO)] {
            let IpAddr::V4(address) = address else { unreachable!("the packets of this file are of IPv4") };
            bytes[address_at..address_at + 4].copy_from_slice(&address.octets());
            bytes[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        }
        bytes
    }

    fn run(&self, bpf: &Bpf, program: Program) -> Result<Ended> {
        let bytes = self.bytes();
        let (verdict, after) = bpf.run_once(program, &bytes)?;
        match verdict {
            -1 if after == bytes => Ok(Ended::Untouched),
            2 => Ok(Ended::Dropped),
            7 => {
                let end = |(address, port): (usize, usize)| {
                    let octets: [u8; 4] = after[address..address + 4].try_into().expect("four bytes");
                    (IpAddr::from(octets), u16::from_be_bytes([after[port], after[port + 1]]))
                };
                Ok(Ended::Sent { from: end(FROM), to: end(TO) })
            }
            verdict => bail!("{self:?}: verdict {verdict}, {after:02x?}"),
        }
    }
}

/// An empty data path in the lab, whose balancer the caller is in.
fn data_path(lab: &Lab, limits: &Limits) -> Result<(Bpf, Capacity)> {
    let capacity = Capacity::from(limits);
    let (bpf, opening) = Bpf::open_or_create(&Options { pins: pins(lab)?, state: lab.directory("state")?, capacity })?;
    ensure!(!opening.is_adopted, "something was there");
    Ok((bpf, capacity))
}

/// Brings about a configuration in an empty data path, its backends behind the bridge.
fn program(bpf: &mut Bpf, configuration: &str) -> Result<()> {
    let plan = planned(configuration, Way::Neighbour { ifindex: ifindex("br0")? }, &Plan::default())?;
    Ok(bpf.apply(&diff(&Tables::default(), &plan))?)
}

fn pins(lab: &Lab) -> Result<Pins> {
    let path: PathBuf = lab.pins()?.join("evenkeel");
    Ok(Pins::new(path))
}

/// The number of a device in the namespace the caller is in.
fn ifindex(device: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(device).with_context(|| device.to_owned())
}
