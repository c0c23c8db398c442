//! Clients that ask without a pause while something changes, and the services that they ask: one per flow over IPv4,
//! one per packet over IPv6, and one for TCP.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    ask::{Answers, Ask, Ports},
    dnsperf::{Dnsperf, End, Load},
    lab::{FRONTENDS, Lab},
    namespace::Namespace,
};

/// The frontend of the per-flow service.
pub const FLOWS: SocketAddr = SocketAddr::new(FRONTENDS[0], 53);
/// The frontend of the per-packet service.
pub const PACKETS: SocketAddr = SocketAddr::new(FRONTENDS[1], 53);
/// The frontend of the TCP service.
pub const WEB: SocketAddr = SocketAddr::new(FRONTENDS[0], 80);

/// A configuration with the three services, each with these backends, counted from 0, and their weights.
pub fn configuration(lab: &Lab, weights: &[(usize, u32)]) -> String {
    let mut text = String::new();
    for (name, frontend, more) in
        [("flows", FLOWS, ""), ("packets", PACKETS, "schedule = \"per-packet\"\n"), ("web", WEB, "")]
    {
        let protocol = if name == "web" { "tcp" } else { "udp" };
        let backends = weights.iter().map(|(backend, weight)| {
            let host = &lab.backends()[*backend];
            let address = if frontend.is_ipv4() { host.v4 } else { host.v6 };
            format!("{{ address = \"{address}\", weight = {weight} }}")
        });
        let backends = backends.collect::<Vec<_>>().join(", ");
        write!(
            text,
            "[[service]]\nname = \"{name}\"\nlisten = [{{ address = \"{}\", port = {}, protocols = [\"{protocol}\"] }}]\n\
             selector = \"wrr\"\n{more}backends = [{backends}]\n",
            frontend.ip(),
            frontend.port(),
        )
        .expect("a string takes all");
    }
    text
}

/// dnsperf and our own client, asking both UDP services.
#[derive(Debug)]
pub struct Crowd {
    loads: Vec<Load>,
    is_over: Arc<AtomicBool>,
    asking: JoinHandle<Result<Tally>>,
}

/// What the crowd got.
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
    /// Starts to ask; dnsperf will end after so many seconds.
    ///
    /// # Errors
    /// dnsperf does not start.
    pub fn start(lab: &Lab, seconds: u64) -> Result<Self> {
        let client = &lab.client().namespace;
        let load = |server| {
            let (rate, end) = (Some(1000), End::Seconds(seconds));
            Dnsperf { clients: 10, rate, end, ..Dnsperf::to(server) }.start(lab, client)
        };
        let loads = vec![load(FLOWS)?, load(PACKETS)?];
        let is_over = Arc::new(AtomicBool::new(false));
        let asking = thread::spawn({
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            move || ask_until(&client, &is_over)
        });
        Ok(Self { loads, is_over, asking })
    }

    /// Waits for dnsperf's end and counts.
    ///
    /// # Errors
    /// A client did not work.
    pub fn finish(self) -> Result<Tally> {
        let reports = self.loads.into_iter().map(Load::finish).collect::<Result<Vec<_>>>();
        self.is_over.store(true, Ordering::SeqCst);
        let asked = self.asking.join().ok().context("our client panicked")?;
        let mut tally = asked?;
        for report in reports? {
            tally.sent += report.sent;
            tally.lost += report.sent - report.completed;
        }
        Ok(tally)
    }
}

impl Tally {
    fn add(&mut self, answers: &Answers) {
        self.asked += answers.by_query.len();
        self.unanswered += answers.unanswered();
        self.wrong_source += answers.wrong_source;
        self.odd += answers.repeated + answers.malformed;
    }

    /// Says that every query was answered, once, by the frontend it was sent to.
    ///
    /// # Errors
    /// One was not, or hardly anything was asked.
    pub fn check(&self) -> Result<()> {
        let is_clean = self.unanswered == 0 && self.wrong_source == 0 && self.odd == 0 && self.lost == 0;
        ensure!(is_clean && self.asked > 100 && self.sent > 1000, "{self:?}");
        Ok(())
    }
}

fn ask_until(client: &Namespace, is_over: &AtomicBool) -> Result<Tally> {
    // Those of dnsperf are drawn by the kernel, from 32768 on.
    let mut ports = Ports::default();
    let mut tally = Tally::default();
    while !is_over.load(Ordering::SeqCst) {
        let mut next = ports.take(50);
        if next.end > 32_000 {
            ports = Ports::default();
            next = ports.take(50);
        }
        for ask in
            [Ask::from_each_port(FLOWS, next), Ask::from_one_socket(FLOWS, 50), Ask::from_one_socket(PACKETS, 50)]
        {
            tally.add(&ask.window(16).run(client)?);
        }
        // Room for dnsperf and the servers on the same CPUs.
        thread::sleep(Duration::from_millis(40));
    }
    Ok(tally)
}
