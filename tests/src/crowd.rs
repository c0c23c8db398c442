//! Clients that ask without a pause while something changes, and the services that they ask: one per flow, one per
//! packet, and one for TCP, each over both families.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    ask::{Answers, Ask, Ports},
    bind,
    dnsperf::{Dnsperf, End, Load},
    lab::{FRONTENDS, Lab},
    losses::losses,
    namespace::Namespace,
};

/// The frontends of the per-flow service, IPv4 first.
pub const FLOWS: [SocketAddr; 2] = [SocketAddr::new(FRONTENDS[0], 53), SocketAddr::new(FRONTENDS[1], 53)];
/// The frontends of the per-packet service, IPv4 first.
pub const PACKETS: [SocketAddr; 2] = [SocketAddr::new(FRONTENDS[2], 53), SocketAddr::new(FRONTENDS[3], 53)];
/// The frontends of both services for UDP.
pub const UDP: [SocketAddr; 4] = [FLOWS[0], FLOWS[1], PACKETS[0], PACKETS[1]];
/// The frontends of the TCP service, IPv4 first.
pub const WEB: [SocketAddr; 2] = [SocketAddr::new(FRONTENDS[0], 80), SocketAddr::new(FRONTENDS[1], 80)];

/// The backends' port of the service that has a frontend.
pub fn port_of_backends(frontend: SocketAddr) -> u16 {
    match frontend.port() {
        53 => bind::PORTS[usize::from(PACKETS.contains(&frontend))],
        port => port,
    }
}

/// A configuration with the three services, each with these backends, counted from 0, and their weights.
pub fn configuration(lab: &Lab, weights: &[(usize, u32)]) -> String {
    let mut text = String::new();
    for (name, frontends, protocol, more) in [
        ("flows", FLOWS, "udp", ""),
        ("packets", PACKETS, "udp", "schedule = \"per-packet\"\n"),
        ("web", WEB, "tcp", ""),
    ] {
        let listen = frontends.map(|frontend| {
            let (address, port) = (frontend.ip(), frontend.port());
            format!("{{ address = \"{address}\", port = {port}, protocols = [\"{protocol}\"] }}")
        });
        let backends = weights.iter().flat_map(|(backend, weight)| {
            let host = &lab.backends()[*backend];
            [host.v4, host.v6].map(|address| {
                let backend = SocketAddr::new(address, port_of_backends(frontends[0]));
                format!("{{ address = \"{backend}\", weight = {weight} }}")
            })
        });
        let backends = backends.collect::<Vec<_>>().join(", ");
        write!(
            text,
            "[[service]]\nname = \"{name}\"\nlisten = [{}]\nselector = \"wrr\"\n{more}backends = [{backends}]\n",
            listen.join(", "),
        )
        .expect("a string takes all");
    }
    text
}

/// dnsperf and our own client, asking every frontend of both UDP services.
#[derive(Debug)]
pub struct Crowd {
    loads: Vec<(SocketAddr, Load)>,
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<Result<Tallies>>,
}

/// What the crowd got from each frontend.
pub type Tallies = BTreeMap<SocketAddr, Tally>;

/// What the crowd got from one frontend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Queries of our client.
    pub asked: usize,
    /// Those without an answer from the frontend they were sent to.
    pub unanswered: usize,
    /// Datagrams from someone else.
    pub wrong_source: usize,
    /// Datagrams that answer nothing, or the same twice.
    pub odd: usize,
    /// Queries of dnsperf.
    pub sent: usize,
    /// Those it got no answer to.
    pub lost: usize,
}

impl Crowd {
    /// Starts to ask; dnsperf will end after so many seconds, at most 45.
    ///
    /// # Errors
    /// dnsperf does not start.
    pub fn start(lab: &Lab, seconds: u64) -> Result<Self> {
        // No port asks two frontends: where few backends are, one that does is not always answered.
        let mut ports = Ports::default();
        ensure!(seconds <= 45, "{seconds} s, but a client has ports for 45");
        let client = &lab.client().namespace;
        let loads = UDP.map(|server| {
            let (rate, end, port) = (Some(500), End::Seconds(seconds), Some(ports.take(10).start));
            Ok((server, Dnsperf { clients: 10, port, rate, end, ..Dnsperf::to(server) }.start(lab, client)?))
        });
        let loads = loads.into_iter().collect::<Result<Vec<_>>>()?;
        let is_over = Arc::new(AtomicBool::new(false));
        let asking = thread::spawn({
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            move || ask_until(&client, ports, &is_over)
        });
        Ok(Self { loads, is_over, asking })
    }

    /// Says whether all of them still ask.
    ///
    /// # Errors
    /// The operating system does not know dnsperf.
    pub fn is_asking(&mut self) -> Result<bool> {
        let running = self.loads.iter_mut().map(|(_, load)| load.is_running()).collect::<Result<Vec<_>>>()?;
        Ok(running.into_iter().all(|is_running| is_running) && !self.asking.is_finished())
    }

    /// Waits for dnsperf's end and counts.
    ///
    /// # Errors
    /// A client did not work.
    pub fn finish(self) -> Result<Tallies> {
        let reports = self.loads.into_iter().map(|(server, load)| Ok((server, load.finish()?)));
        let reports = reports.collect::<Result<Vec<_>>>();
        self.is_over.store(true, Ordering::SeqCst);
        let asked = self.asking.join().ok().context("our client panicked")?;
        let mut tallies = asked?;
        for (server, report) in reports? {
            let tally = tallies.entry(server).or_default();
            tally.sent += report.sent;
            tally.lost += report.sent - report.completed;
        }
        Ok(tallies)
    }
}

/// Says that every frontend has answered every query that was sent to it, once, and that there were many.
///
/// # Errors
/// One has not; what the lab itself has lost is in the error.
pub fn check(tallies: &Tallies, lab: &Lab) -> Result<()> {
    for frontend in UDP {
        let tally = tallies.get(&frontend).copied().unwrap_or_default();
        if !tally.is_clean() {
            bail!("{frontend}: {tally:?}, lost in the lab: {:?}", losses(lab)?);
        }
        ensure!(tally.asked > 50 && tally.sent > 1000, "{frontend} was hardly asked: {tally:?}");
    }
    Ok(())
}

impl Tally {
    fn add(&mut self, answers: &Answers) {
        self.asked += answers.by_query.len();
        self.unanswered += answers.unanswered();
        self.wrong_source += answers.wrong_source;
        self.odd += answers.repeated + answers.malformed;
    }

    fn is_clean(&self) -> bool {
        self.unanswered == 0 && self.wrong_source == 0 && self.odd == 0 && self.lost == 0
    }
}

fn ask_until(client: &Namespace, mut ports: Ports, is_over: &AtomicBool) -> Result<Tallies> {
    const AT_ONCE: usize = 25;
    let mut tallies = Tallies::new();
    while !is_over.load(Ordering::SeqCst) {
        let new_flows = FLOWS.map(|server| (server, Ask::from_each_port(server, ports.take(AT_ONCE))));
        let one_socket = UDP.map(|server| (server, Ask::from_one_socket(server, AT_ONCE).port(ports.take(1).start)));
        for (server, ask) in new_flows.into_iter().chain(one_socket) {
            tallies.entry(server).or_default().add(&ask.window(16).run(client)?);
        }
        // Room for dnsperf and the servers on the same CPUs.
        thread::sleep(Duration::from_millis(40));
    }
    Ok(tallies)
}
