//! What has to hold for every single packet: a change is atomic, an answer carries its frontend's address whoever asked
//! what and when, and whoever never asked a frontend is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::Range,
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
use aya::sys::{Stats, enable_stats};
use lb_common::{
    addr::{Family, Port, Protocol},
    backend::{BackendId, Way},
    reason::Reason,
    service::{ServiceId, SocketKey},
};
use lb_userspace::{
    capacity::Capacity,
    dataplane::{
        Counters, Dataplane as _, DataplaneError,
        attach::{self, Hooks, Mode, Role},
        bpf::{Bpf, Options, Program},
        pins::Pins,
    },
    model::{
        Chain, Choice, Schedule, Weighted,
        resolve::{Compiled, CompiledService},
    },
    plan::{
        Batch, Plan,
        change::Change,
        diff, plan,
        tables::{ServiceKey, Tables},
    },
    settings::Limits,
};
use testbed::{
    ask::{Ask, allowed_cpus, pin},
    bind::{self, Bind},
    cases::planned,
    crowd, datagram,
    evenkeel::Evenkeel,
    harness::{on_root, run_side_by_side},
    lab::{CLIENT_SIDE, FRONTENDS, Host, Lab, Layout, Reach},
    packet::eth,
    responder::Responder,
};

fn main() -> ExitCode {
    run_side_by_side(vec![
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

/// Of each service.
const CHANGES: usize = 100_000;
/// Plans in one batch at most, each of which changes both services, so that it holds 256 changes. More of them make each
/// plan slower, but there is a wait in each batch.
const MOST: usize = 256 / WRITTEN.len();
/// Writes of a batch before the writer is interrupted, anywhere in a change, so that many choices are made amid it.
const AT_A_STRETCH: usize = 211;
const INTERRUPTION: Duration = Duration::from_micros(20);
/// A service's backends lie in parts, and the changes of one batch use those of one part only: one half of it and the
/// other in turn.
const PARTS: usize = 4;
const IN_HALF: usize = 3;
const BACKENDS: usize = PARTS * 2 * IN_HALF;
/// A backend's port is its number and this.
const FIRST_PORT: u16 = 20_000;

/// Two CPUs send to two services all the while, per packet over one family and in new flows over the other, and each plan
/// changes both. A batch of one plan goes from a set to one of another part, as the only change since the look before
/// and until the look after it; the batch that follows goes back and forth between two sets of that part. After each
/// batch and its wait, the kernel's own count of each backend's choices may have grown only for the two sets, whose
/// backends are few and no others' of the same service. Sets are of several sizes and selectors; policies and runs are
/// used again in the next batches, by then for another part: a record or a run that is read before it is written whole,
/// or a mixture of two, leads to another part, to no backend or beyond the run, and all of these are counted.
fn changes_are_atomic() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, reach: Reach::Veths, ..Layout::default() })?;
    let backend = &lab.backends()[0];
    // The choices are counted where they are made; beyond that nobody needs the packets.
    backend.namespace.sh("iptables -t raw -A PREROUTING -p udp -j DROP")?;
    backend.namespace.sh("ip6tables -t raw -A PREROUTING -p udp -j DROP")?;
    let cpus = allowed_cpus()?;
    let [first, second, ..] = cpus[..] else { bail!("two CPUs to send from, but only {} here", cpus.len()) };
    let load = Load::default();
    thread::scope(|scope| {
        let sender = |cpu: usize, ports: Range<u16>| {
            let (client, load) = (&lab.client().namespace, &load);
            scope.spawn(move || client.enter(|| load.send(cpu, ports)))
        };
        let changed = lab.balancer().enter(|| {
            let limits = Limits { services: 512, backends: 128, flows: 300_000, ..Limits::default() };
            let (mut bpf, capacity) = data_path(&lab, &limits)?;
            let way = Way::Peer { ifindex: ifindex(lab.port(0))? };
            let mut writer = Writer::new(&mut bpf, capacity, backend, way, &load)?;
            writer.publish(0, &[Half::First])?;
            let hooks = Hooks { name: CLIENT_SIDE.to_owned(), ingress: Some(Role::Clients), egress: false, xdp: None };
            attach::apply(writer.bpf, &BTreeMap::from([(ifindex(CLIENT_SIDE)?, hooks)]), Mode::of_this_kernel())?;
            // Below the ports that the kernel gives to sockets of its own choice.
            let senders = [sender(first, 10_000..20_000), sender(second, 20_000..30_000)];
            let written = writer.publish_all();
            load.is_over.store(true, Ordering::SeqCst);
            for sender in senders {
                sender.join().expect("no sender panics")?;
            }
            written
        });
        // Whatever went wrong before the senders were joined.
        load.is_over.store(true, Ordering::SeqCst);
        changed
    })
}

/// What the senders do.
#[derive(Default)]
struct Load {
    /// The writer changes something now: do not rest.
    is_changed: AtomicBool,
    is_over: AtomicBool,
}

/// Room for the writer between two bursts.
const REST: Duration = Duration::from_micros(200);

impl Load {
    /// Sends in bursts: to the per-packet services from one socket of each family, and to the others from a new one each
    /// time, which the next one of the ports is bound to.
    fn send(&self, cpu: usize, ports: Range<u16>) -> Result<()> {
        const BURST: usize = 8;
        pin(cpu)?;
        let [packets, flows] = [Schedule::PerPacket, Schedule::PerFlow].map(|schedule| {
            let of_schedule = WRITTEN.into_iter().filter(move |(_, other)| *other == schedule);
            of_schedule.map(|(family, schedule)| frontend(family, schedule))
        });
        let one_for_all = packets.map(|to| Ok((bound(to, 0)?, to))).collect::<Result<Vec<_>>>()?;
        let flows: Vec<SocketAddr> = flows.collect();
        let mut ports = ports.cycle();
        while !self.is_over.load(Ordering::Relaxed) {
            for (socket, to) in &one_for_all {
                for _ in 0..BURST {
                    socket.send_to(b"who", to)?;
                }
            }
            for port in ports.by_ref().take(BURST) {
                for to in &flows {
                    bound(*to, port)?.send_to(b"who", to)?;
                }
            }
            if !self.is_changed.load(Ordering::Relaxed) {
                thread::sleep(REST);
            }
        }
        Ok(())
    }

    /// Has the senders at work while something is done.
    fn beside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.is_changed.store(true, Ordering::Relaxed);
        thread::sleep(REST);
        let done = work();
        self.is_changed.store(false, Ordering::Relaxed);
        done
    }
}

/// A socket of the family of whom it will send to.
fn bound(to: SocketAddr, port: u16) -> Result<UdpSocket> {
    let any = if to.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    UdpSocket::bind((any, port)).with_context(|| format!("port {port}"))
}

/// The services that are changed.
const WRITTEN: [(Family, Schedule); 2] = [(Family::V4, Schedule::PerPacket), (Family::V6, Schedule::PerFlow)];

fn frontend(family: Family, schedule: Schedule) -> SocketAddr {
    let port = match schedule {
        Schedule::PerPacket => 53,
        Schedule::PerFlow => 54,
    };
    SocketAddr::new(frontend_of(family, 0), port)
}

/// The first or second frontend of a family.
fn frontend_of(family: Family, number: usize) -> IpAddr {
    match family {
        Family::V4 => FRONTENDS[2 * number],
        Family::V6 => FRONTENDS[2 * number + 1],
    }
}

fn address(host: &Host, family: Family) -> IpAddr {
    match family {
        Family::V4 => host.v4,
        Family::V6 => host.v6,
    }
}

/// Which half of a part a set is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    First,
    Second,
}

/// The publisher as the controller has it, for both services.
struct Writer<'b> {
    bpf: &'b mut Bpf,
    load: &'b Load,
    capacity: Capacity,
    backend: &'b Host,
    ways: BTreeMap<IpAddr, Way>,
    tables: Tables,
    known: BTreeMap<ServiceKey, ServiceId>,
    plans: usize,
    batches: usize,
    /// The numbers of the set in force, the same in each service.
    in_force: BTreeSet<usize>,
    /// Choices for a set that was in force only amid a batch.
    amid: u64,
    /// All of them, by service and number.
    choices: [[u64; BACKENDS]; WRITTEN.len()],
}

impl<'b> Writer<'b> {
    fn new(bpf: &'b mut Bpf, capacity: Capacity, backend: &'b Host, way: Way, load: &'b Load) -> Result<Self> {
        let tables = bpf.read()?;
        Ok(Self {
            bpf,
            load,
            capacity,
            backend,
            ways: BTreeMap::from([(backend.v4, way), (backend.v6, way)]),
            tables,
            known: BTreeMap::new(),
            plans: 0,
            batches: 0,
            in_force: BTreeSet::new(),
            amid: 0,
            choices: [[0; BACKENDS]; WRITTEN.len()],
        })
    }

    fn publish_all(&mut self) -> Result<()> {
        let (mut part, mut halves) = (0, [Half::First, Half::Second]);
        while self.plans < CHANGES {
            part = (part + 1) % PARTS;
            if part == 0 {
                halves.reverse();
            }
            let [own, other] = halves;
            self.publish(part, &[own])?;
            let back_and_forth: Vec<Half> = [other, own].into_iter().cycle().take(MOST).collect();
            self.publish(part, &back_and_forth)?;
        }
        ensure!(self.amid > CHANGES as u64 / 100, "only {} choices were made amid the changes of a batch", self.amid);
        for (choices, (family, schedule)) in self.choices.iter().zip(WRITTEN) {
            let made: u64 = choices.iter().sum();
            ensure!(made > CHANGES as u64 / 4, "only {made} choices {schedule:?} over {}", family.name());
            ensure!(!choices.contains(&0), "{schedule:?} over {}: {choices:?}", family.name());
        }
        let counters = self.bpf.counters()?;
        ensure!(other_reasons(&counters, &[Reason::NotOurs]) == 0, "{:?}", counters.reasons);
        Ok(())
    }

    /// Changes the services once for each of `halves`, to a set of that half of a part.
    fn publish(&mut self, part: usize, halves: &[Half]) -> Result<()> {
        self.batches += 1;
        let [first, second] = self.sets(part);
        let mut allowed = if halves.len() == 1 { self.in_force.clone() } else { BTreeSet::new() };
        let mut batch = Batch::new(self.tables.clone());
        for (number, half) in halves.iter().enumerate() {
            self.plans += 1;
            let set = match half {
                Half::First => &first,
                Half::Second => &second,
            };
            let services = (0..).zip(WRITTEN).map(|(service, _)| self.service(service, set));
            let compiled = Compiled { services: services.collect(), rejected: Vec::new() };
            let plan = plan(&compiled, &self.ways, batch.current(), &self.known, None, &self.capacity, 1);
            ensure!(plan.rejected.is_empty(), "{:?}", plan.rejected);
            if number + 1 == halves.len() {
                self.known.clone_from(&plan.services);
                self.tables.clone_from(&plan.tables);
                self.in_force = set.iter().copied().collect();
            }
            batch.add(plan);
            allowed.extend(set);
        }
        let changes = batch.finish();
        let swaps = changes.iter().filter(|change| matches!(change, Change::SwapService(..))).count();
        ensure!(swaps == halves.len() * WRITTEN.len(), "{swaps} swaps for {} plans", halves.len());
        self.load.beside(|| {
            for some in changes.chunks(AT_A_STRETCH) {
                self.bpf.apply(some)?;
                thread::sleep(INTERRUPTION);
            }
            Ok::<_, DataplaneError>(())
        })?;
        let new = self.look(&allowed)?;
        if halves.len() > 1 {
            self.amid += new.iter().filter(|(number, _)| !self.in_force.contains(number)).map(|(_, n)| n).sum::<u64>();
        }
        Ok(())
    }

    /// A set of each half of a part, the same for a whole batch and the one before it.
    fn sets(&self, part: usize) -> [Vec<usize>; 2] {
        let round = self.batches / 2;
        let first = 2 * part * IN_HALF;
        [(first, round), (first + IN_HALF, round / IN_HALF)].map(|(first, round)| {
            let size = 1 + round % IN_HALF;
            (0..size).map(|n| first + (round / 2 + n) % IN_HALF).collect()
        })
    }

    /// A service with these backends, among which this change chooses in its own way.
    fn service(&self, service: usize, set: &[usize]) -> (ServiceKey, CompiledService) {
        let ((family, schedule), change) = (WRITTEN[service], self.plans + service);
        let frontend = frontend(family, schedule);
        let mut keys: Vec<SocketKey> = set.iter().map(|number| self.key(service, *number)).collect();
        keys.rotate_left(change / 4 % set.len());
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
        let key = SocketKey::new(frontend.ip().into(), Port::new(frontend.port()), Protocol::UDP);
        let number = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        (
            ServiceKey { name: "dns".to_owned(), family: number, protocol: Protocol::UDP.0, port: frontend.port() },
            CompiledService { frontends: BTreeSet::from([key]), schedule, choice },
        )
    }

    fn key(&self, service: usize, number: usize) -> SocketKey {
        let port = FIRST_PORT + u16::try_from(service * BACKENDS + number).expect("a small number");
        SocketKey::new(address(self.backend, WRITTEN[service].0).into(), Port::new(port), Protocol::UDP)
    }

    /// How often each was chosen since the last look, in all services: none but those which were allowed to.
    fn look(&mut self, allowed: &BTreeSet<usize>) -> Result<BTreeMap<usize, u64>> {
        let mut new = BTreeMap::new();
        let traffic = self.bpf.counters()?.traffic;
        for (id, record) in &self.tables.backends {
            let place = usize::from(record.key.port.number() - FIRST_PORT);
            let (service, number) = (place / BACKENDS, place % BACKENDS);
            let choices = traffic.get(id).map_or(0, |traffic| traffic.choices);
            let before = &mut self.choices[service][number];
            let (family, schedule) = WRITTEN[service];
            ensure!(
                choices == *before || allowed.contains(&number),
                "plan {}, {schedule:?} over {}: backend {number} was chosen {} times; the two sets are {allowed:?}",
                self.plans,
                family.name(),
                choices - *before
            );
            *new.entry(number).or_default() += choices - *before;
            *before = choices;
        }
        Ok(new)
    }
}

// What a reply costs.

/// The kernel's own clock around the program, the smallest of many averages, both in turn; of five such rounds the one
/// in the middle, because what the machine does beside may fall on either side of one of them.
fn sixty_frontends_cost_the_same() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    lab.balancer().enter(|| {
        for family in Family::ALL {
            for (schedule, name) in [("", "per flow"), ("schedule = \"per-packet\"\n", "per packet")] {
                let mut ratios = [0.0; 5];
                for ratio in &mut ratios {
                    *ratio = cost_ratio(&lab, family, schedule)?;
                }
                ratios.sort_by(f64::total_cmp);
                let told = format!("over {}, {name}", family.name());
                ensure!(ratios[2] <= 1.10, "{told}: with sixty frontends a reply costs {ratios:.3?} times as much");
            }
        }
        Ok(())
    })
}

/// How much more a reply costs whose backend has sixty frontends than one whose backend has one.
fn cost_ratio(lab: &Lab, family: Family, schedule: &str) -> Result<f64> {
    let (mut bpf, _) = data_path(lab, &Limits::default())?;
    let frontend = frontend_of(family, 0);
    let listens = |ports: Range<u16>| {
        let listen = |port| format!("{{ address = \"{frontend}\", port = {port}, protocols = [\"udp\"] }}");
        ports.map(listen).collect::<Vec<_>>().join(", ")
    };
    let backends =
        [(address(&lab.backends()[0], family), 1000..1001), (address(&lab.backends()[1], family), 2000..2060)];
    let services = backends.iter().map(|(backend, ports)| {
        let (listen, backend) = (listens(ports.clone()), SocketAddr::new(*backend, 53));
        format!(
            "[[service]]\nname = \"of-{}\"\nlisten = [{listen}]\n{schedule}selector = \"rr\"\nbackends = [\"{backend}\"]\n",
            ports.len()
        )
    });
    let configuration: String = services.collect();
    program(&mut bpf, &configuration)?;
    let client = address(lab.client(), family);
    // Sixty clients each, so that both touch as much memory.
    let mut replies = [const { Vec::new() }; 2];
    for ((backend, ports), replies) in backends.iter().zip(&mut replies) {
        for (number, client_port) in (0..60).zip(30_000..) {
            let port = ports.start + number % u16::try_from(ports.len()).expect("at most 60");
            let query = Datagram { from: (client, client_port), to: (frontend, port) };
            let sent = query.run(&bpf, Program::IngressClients)?;
            ensure!(sent == Ended::Sent { from: (client, client_port), to: (*backend, 53) }, "{query:?}: {sent:?}");
            let reply = Datagram { from: (*backend, 53), to: (client, client_port) };
            let back = reply.run(&bpf, Program::IngressBackends)?;
            ensure!(back == Ended::Sent { from: query.to, to: query.from }, "{reply:?}: {back:?}");
            replies.push(reply.bytes());
        }
    }
    // Until this is closed; the kernel sees to that however this process ends.
    let _statistics = enable_stats(Stats::RunTime)?;
    let mut least = [f64::INFINITY; 2];
    for _ in 0..30 {
        for (replies, least) in replies.iter().zip(&mut least) {
            let before = run_times()?;
            let mut runs = 0;
            for _ in 0..10 {
                for reply in replies {
                    bpf.run_once(Program::IngressBackends, reply)?;
                    runs += 1;
                }
            }
            let after = run_times()?;
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

/// How often each program of this process has run, and for how many nanoseconds, by its number.
fn run_times() -> Result<BTreeMap<u64, (u64, u64)>> {
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

// One client at two frontends.

/// How often over each family.
const TIMES: [(Family, usize); 2] = [(Family::V4, 100_000), (Family::V6, 25_000)];

fn two_frontends_are_told_apart() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    lab.balancer().enter(|| {
        for schedule in ["per-flow", "per-packet"] {
            for (backends, (family, times)) in [4, 1].into_iter().flat_map(|n| TIMES.map(|times| (n, times))) {
                tell_apart(&lab, schedule, backends, family, times)
                    .with_context(|| format!("{schedule}, {backends} backends, {}", family.name()))?;
                attach::detach_all(&pins(&lab)?, &lab.directory("state")?)?;
            }
        }
        Ok(())
    })
}

fn tell_apart(lab: &Lab, schedule: &str, backends: usize, family: Family, times: usize) -> Result<()> {
    // Both flows of a client have the same two buckets, which fills them sooner than as many flows of distinct clients.
    let limits = Limits { flows: 2_000_000, replies: 300_000, ..Limits::default() };
    let (mut bpf, _) = data_path(lab, &limits)?;
    let frontends = [0, 1].map(|number| (frontend_of(family, number), 53));
    let listen =
        frontends.map(|(address, _)| format!("{{ address = \"{address}\", port = 53, protocols = [\"udp\"] }}"));
    let listen = listen.join(", ");
    let addresses: Vec<IpAddr> = lab.backends()[..backends].iter().map(|host| address(host, family)).collect();
    let listed = addresses.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    // By chance, so that the second frontend often comes to where the first one is.
    let configuration = format!(
        "[[service]]\nname = \"dns\"\nlisten = [{listen}]\nschedule = \"{schedule}\"\nselector = \"random\"\n\
         backends = [{listed}]\n"
    );
    program(&mut bpf, &configuration)?;
    for time in 0..times {
        let client = client(family, time);
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
    let (counters, times) = (bpf.counters()?, times as u64);
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
fn client(family: Family, number: usize) -> (IpAddr, u16) {
    let octet = 150 + u8::try_from(number / 60_000).expect("a small number");
    let port = 2_000 + u16::try_from(number % 60_000).expect("less than 60000");
    (neighbour(family, octet), port)
}

/// An address beside the lab's clients'.
fn neighbour(family: Family, octet: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(10, 9, 0, octet)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 1, u16::from(octet))),
    }
}

/// As many as any queue on the way takes at once.
const AT_ONCE: usize = 50;
const ROUNDS: usize = 5;

/// The same with a client, servers and packets: both frontends are asked before either has answered.
fn two_frontends_at_once() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = start_responders(&lab, Duration::from_millis(20))?;
    for (schedule, backends) in [("per-flow", 4), ("per-packet", 4), ("per-flow", 1), ("per-packet", 1)] {
        let listen =
            FRONTENDS.map(|address| format!("{{ address = \"{address}\", port = 53, protocols = [\"udp\"] }}"));
        let hosts = lab.backends()[..backends].iter();
        let listed: Vec<String> = hosts.flat_map(|host| [host.v4, host.v6]).map(|at| format!("\"{at}\"")).collect();
        let configuration = format!(
            "[[service]]\nname = \"dns\"\nlisten = [{}]\nschedule = \"{schedule}\"\nselector = \"random\"\n\
             backends = [{}]\n",
            listen.join(", "),
            listed.join(", ")
        );
        let mut evenkeel = Evenkeel::start(&lab, &configuration)?;
        let mut clashes = 0;
        for family in Family::ALL {
            let frontends = [0, 1].map(|number| SocketAddr::new(frontend_of(family, number), 53));
            let (mut right, mut wrong) = (0, 0);
            for _ in 0..ROUNDS {
                let patience = Duration::from_millis(300);
                let asked = lab.client().namespace.enter(|| ask_all(&frontends, AT_ONCE, patience))?;
                (right, wrong) = (right + asked.right, wrong + asked.wrong);
            }
            // With one backend whoever came first has its answer, and the other one is counted.
            let refused = if backends == 1 { ROUNDS * AT_ONCE } else { 0 };
            let status = evenkeel.status()?;
            let not_balanced = status["not_balanced"].as_array().context("what was not balanced")?;
            let clash = not_balanced.iter().find(|one| one["reason"] == Reason::Clash.name());
            let counted = clash.and_then(|one| one["packets"].as_u64()).unwrap_or(0);
            let told = format!("{schedule}, {backends} backends, {}: {right} answers", family.name());
            ensure!(right == 2 * ROUNDS * AT_ONCE - refused && wrong == 0, "{told} and {wrong} wrong ones");
            clashes += refused as u64;
            ensure!(counted == clashes, "{told}, {counted} clashes and not {clashes}");
        }
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
            let asking = crowd::UDP.map(|frontend| scope.spawn(move || ask_twice(frontend)));
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

/// One on each backend and each port that BIND would have, named as the backend is.
fn start_responders(lab: &Lab, delay: Duration) -> Result<Vec<Responder>> {
    let sockets = (1..).zip(lab.backends()).flat_map(|one| bind::PORTS.map(|port| (one, port)));
    sockets.map(|((n, host), port)| Responder::start(host, &format!("b{n}"), port, delay)).collect()
}

// Who never asked a frontend.

/// Packets by each schedule: a million in all.
const DIRECT: [(Family, usize); 2] = [(Family::V4, 300_000), (Family::V6, 200_000)];

fn direct_packets_are_untouched() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    lab.balancer().enter(|| {
        for schedule in ["per-flow", "per-packet"] {
            for (family, packets) in DIRECT {
                pass_directly(&lab, schedule, family, packets)
                    .with_context(|| format!("{schedule}, {}", family.name()))?;
                attach::detach_all(&pins(&lab)?, &lab.directory("state")?)?;
            }
        }
        Ok(())
    })
}

/// So many packets between direct clients and a backend, whose port numbers are those of clients with flows.
fn pass_directly(lab: &Lab, schedule: &str, family: Family, packets: usize) -> Result<()> {
    const PORTS: usize = 60_000;
    let limits = Limits { flows: 200_000, replies: 200_000, ..Limits::default() };
    let (mut bpf, _) = data_path(lab, &limits)?;
    let backend = (address(&lab.backends()[0], family), 53);
    let frontend = (frontend_of(family, 0), 53);
    let configuration = format!(
        "[[service]]\nname = \"dns\"\nlisten = [{{ address = \"{}\", port = 53, protocols = [\"udp\"] }}]\n\
         schedule = \"{schedule}\"\nselector = \"rr\"\nbackends = [\"{}\"]\n",
        frontend.0, backend.0
    );
    program(&mut bpf, &configuration)?;
    for number in 0..PORTS {
        let query = Datagram { from: client(family, number), to: frontend };
        let sent = query.run(&bpf, Program::IngressClients)?;
        ensure!(sent == Ended::Sent { from: query.from, to: backend }, "{query:?}: {sent:?}");
    }
    for number in 0..packets / 2 {
        let (_, port) = client(family, number % PORTS);
        let direct = (neighbour(family, 200 + u8::try_from(number / PORTS).expect("less than 5")), port);
        for (program, packet) in [
            (Program::IngressClients, Datagram { from: direct, to: backend }),
            (Program::IngressBackends, Datagram { from: backend, to: direct }),
        ] {
            let ended = packet.run(&bpf, program)?;
            ensure!(ended == Ended::Untouched, "{packet:?}: {ended:?}");
        }
    }
    let counters = bpf.counters()?;
    ensure!(counters.reasons[&Reason::NotOurs] == packets as u64, "{:?}", counters.reasons);
    ensure!(other_reasons(&counters, &[Reason::NotOurs]) == 0, "{:?}", counters.reasons);
    // Their clients still get their answers.
    for number in 0..PORTS {
        let reply = Datagram { from: backend, to: client(family, number) };
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
    let host = &lab.backends()[0];
    for (number, frontend) in (1..).zip(crowd::UDP) {
        let ports = number * 10_000..number * 10_000 + 4000;
        let address = if frontend.is_ipv4() { host.v4 } else { host.v6 };
        let backend = SocketAddr::new(address, crowd::port_of_backends(frontend));
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

/// A UDP packet.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

/// Where address and port of the two ends lie in a packet, as ranges of bytes.
struct Ends {
    from: (Range<usize>, Range<usize>),
    to: (Range<usize>, Range<usize>),
}

const V4: Ends = Ends { from: (26..30, 34..36), to: (30..34, 36..38) };
const V6: Ends = Ends { from: (22..38, 54..56), to: (38..54, 56..58) };

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
    fn ends(&self) -> Ends {
        if self.to.0.is_ipv4() { V4 } else { V6 }
    }

    fn bytes(&self) -> Vec<u8> {
        // One is built and the others made of it, because millions are wanted. The sums, which are not made anew, are for
        // the stack to look at.
        static OF_V4: LazyLock<Vec<u8>> =
            LazyLock::new(|| eth().ipv4("0.0.0.0", "0.0.0.0").udp(0, 0).without_checksum().payload(b"who").bytes());
        static OF_V6: LazyLock<Vec<u8>> = LazyLock::new(|| eth().ipv6("::", "::").udp(0, 0).payload(b"who").bytes());
        let mut bytes = if self.to.0.is_ipv4() { OF_V4.clone() } else { OF_V6.clone() };
        let Ends { from, to } = self.ends();
        for ((address, port), (address_at, port_at)) in [(self.from, from), (self.to, to)] {
            match address {
                IpAddr::V4(address) => bytes[address_at].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes[address_at].copy_from_slice(&address.octets()),
            }
            bytes[port_at].copy_from_slice(&port.to_be_bytes());
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
                let end = |(address, port): (Range<usize>, Range<usize>)| {
                    let octets = &after[address];
                    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
                    let v6 = <[u8; 16]>::try_from(octets).map(IpAddr::from);
                    let port = after[port].try_into().map(u16::from_be_bytes);
                    (v4.or(v6).expect("an address of either family"), port.expect("two bytes"))
                };
                let Ends { from, to } = self.ends();
                Ok(Ended::Sent { from: end(from), to: end(to) })
            }
            verdict => bail!("{self:?}: verdict {verdict}, {after:02x?}"),
        }
    }
}

/// An empty data path in the lab, whose balancer the caller is in.
fn data_path(lab: &Lab, limits: &Limits) -> Result<(Bpf, Capacity)> {
    let capacity = Capacity::from(limits);
    let (bpf, opening) =
        Bpf::open_or_create(&Options { pins: pins(lab)?, state: lab.directory("state")?, capacity, trace: None })?;
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
