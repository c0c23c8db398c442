//! The demo: the same client asks four real BINDs through today's rules and through Evenkeel, and who answered is
//! counted.

mod table;

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::table::{Cell, Row};
use crate::{
    ask::{Answers, Ask, Ports},
    bind::{Arrivals, Bind, WHO},
    cleanup::{self, Left},
    engine::Engine,
    evenkeel::Evenkeel,
    lab::{FRONTENDS, Lab, Layout},
    paint::Paint,
    reference::{Reference, Rules},
    statistic,
};

/// What the user of the demo may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Leave the lab up and say what to try next.
    pub keep: bool,
}

/// Runs the demo, printing as it goes, and says whether everything was as promised: every query answered, by the
/// counts of the servers too, and Evenkeel's nth and rr exact.
///
/// # Errors
/// The lab cannot be built, or something in it ends.
pub fn run(options: Options) -> Result<bool> {
    let start = Instant::now();
    let paint = Paint::of(&io::stdout());
    let mut stage = Stage::set(paint)?;
    stage.table()?;
    let mut evenkeel = stage.evenkeel.take().context("Evenkeel runs since the table")?;
    println!("{}", paint.bold("evenkeel ls --stats"));
    show(&evenkeel, &["ls", "--stats"])?;
    println!("\n{}", paint.bold("evenkeel status"));
    show(&evenkeel, &["status"])?;
    println!("\n{}", stage.verdict());
    let is_fine = stage.faults.is_empty();
    if options.keep {
        println!("{}", stage.what_next(&evenkeel)?);
        stage.keep(evenkeel)?;
    } else {
        evenkeel.stop()?;
        evenkeel.detach()?;
        stage.lab.down()?;
    }
    println!("{}", paint.dim(&format!("{:.0} s", start.elapsed().as_secs_f64())));
    Ok(is_fine)
}

/// Removes the labs that `--keep` or a killed process left, and says how many.
///
/// # Errors
/// One of them does not go.
pub fn take_down() -> Result<()> {
    println!("{}", taken_down(cleanup::remove_left()?));
    Ok(())
}

fn taken_down(left: Left) -> String {
    let labs = |count: usize, what: &str| match count {
        0 => None,
        1 => Some(format!("1 lab that {what}")),
        many => Some(format!("{many} labs that {what}")),
    };
    let removed = [labs(left.kept, "--keep left"), labs(left.orphans, "a killed process left")];
    let removed: Vec<_> = removed.into_iter().flatten().collect();
    if removed.is_empty() { "no lab was left".to_owned() } else { format!("removed {}", removed.join(" and ")) }
}

/// How many queries each round asks.
const ROUNDS: [usize; 3] = [100, 1200, 12_000];
const BACKENDS: usize = 4;

/// What Evenkeel is told to do, in the order of the table.
const METHODS: [Method; 6] = [
    Method { selector: "random", schedule: Schedule::PerFlow },
    Method { selector: "nth", schedule: Schedule::PerFlow },
    Method { selector: "rr", schedule: Schedule::PerFlow },
    Method { selector: "random", schedule: Schedule::PerPacket },
    Method { selector: "nth", schedule: Schedule::PerPacket },
    Method { selector: "rr", schedule: Schedule::PerPacket },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Method {
    selector: &'static str,
    schedule: Schedule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PerFlow,
    PerPacket,
}

impl Schedule {
    fn name(self) -> &'static str {
        match self {
            Self::PerFlow => "per-flow",
            Self::PerPacket => "per-packet",
        }
    }
}

impl Method {
    fn title(self) -> String {
        let what = match self.schedule {
            Schedule::PerFlow => "per flow",
            Schedule::PerPacket => "per query",
        };
        format!("Evenkeel {}, {what}", self.selector)
    }

    fn is_exact(self) -> bool {
        self.selector != "random"
    }
}

/// What the rows of a method must come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// Every query is answered.
    Answered,
    /// And where each query is a choice, no backend gets two more than another.
    Exact(Schedule),
}

/// The lab with its servers, and what was found not as promised.
struct Stage {
    paint: Paint,
    lab: Lab,
    servers: Vec<Bind>,
    engine: Option<Engine>,
    evenkeel: Option<Evenkeel>,
    faults: Vec<String>,
    asked: usize,
}

impl Stage {
    fn set(paint: Paint) -> Result<Self> {
        let start = Instant::now();
        progress("building a lab of network namespaces, and four BINDs in it");
        let lab = Lab::up(Layout { backends: BACKENDS, ..Layout::default() })?;
        let servers = Bind::start_all(&lab)?;
        let built = format!("({:.1} s)", start.elapsed().as_secs_f64());
        println!(
            "A client, a balancer with eth3 ({}) and eth3:1 ({}), four BIND 9 servers b1 to b4 behind its bridge. {}\n\
             The client asks for the server's name: from one socket, and from a socket for each query.\n\
             Where the choice is per flow, one socket is one choice; deviation is that of the farthest from its share.\n",
            FRONTENDS[0],
            FRONTENDS[2],
            paint.dim(&built)
        );
        let (engine, evenkeel, faults) = (None, None, Vec::new());
        Ok(Self { paint, lab, servers, engine, evenkeel, faults, asked: 0 })
    }

    fn table(&mut self) -> Result<()> {
        println!("{}", table::head(BACKENDS, self.paint));
        for (title, rules) in
            [("iptables random", Rules::Random), ("iptables nth", Rules::Nth(statistic::cascade(BACKENDS)))]
        {
            let reference = Reference::start(&self.lab, &rules, 53)?;
            self.rows(title, Promise::Answered, Some(&reference), &mut Ports::default())?;
            reference.stop()?;
        }
        self.engine = Some(Engine::start(&self.lab)?);
        // A flow that was seen lives on for a while, and its port would not be a new choice.
        let mut unseen = Ports::default();
        for method in METHODS {
            let configuration = self.configuration(method);
            match &mut self.evenkeel {
                None => self.evenkeel = Some(Evenkeel::start(&self.lab, &configuration)?),
                Some(evenkeel) => evenkeel.apply(&configuration)?,
            }
            let promise = if method.is_exact() { Promise::Exact(method.schedule) } else { Promise::Answered };
            match method.schedule {
                Schedule::PerFlow => self.rows(&method.title(), promise, None, &mut unseen)?,
                Schedule::PerPacket => self.rows(&method.title(), promise, None, &mut Ports::default())?,
            }
        }
        self.other_frontends(&mut unseen)
    }

    /// The rows of one method, one for each number of queries.
    fn rows(&mut self, title: &str, promise: Promise, reference: Option<&Reference>, ports: &mut Ports) -> Result<()> {
        println!("{}", self.paint.bold(title));
        for count in ROUNDS {
            let server = SocketAddr::new(FRONTENDS[0], 53);
            if let Some(reference) = reference {
                reference.forget_connections()?;
            }
            let asks = asks(server, count, ports);
            let mut cells = Vec::new();
            for (ask, sockets) in asks.into_iter().zip(["one socket", "many sockets"]) {
                progress(&format!("{title}: {count} queries from {sockets}"));
                let must_be_even = match (promise, sockets) {
                    (Promise::Exact(Schedule::PerPacket), _) | (Promise::Exact(Schedule::PerFlow), "many sockets") => {
                        true
                    }
                    (Promise::Exact(Schedule::PerFlow) | Promise::Answered, _) => false,
                };
                cells.push(self.ask(&format!("{title}, {count} queries from {sockets}"), &ask, must_be_even)?);
            }
            let is_dead = cells.iter().all(Cell::is_unanswered);
            println!("{}", Row { asked: count, cells }.line(self.paint));
            if is_dead {
                // Waiting for thousands more would tell nothing new.
                break;
            }
        }
        Ok(())
    }

    /// A line for each further address of the interface that is served: the alias, and IPv6.
    fn other_frontends(&mut self, ports: &mut Ports) -> Result<()> {
        println!("{}", self.paint.bold("The same service at eth3's other addresses"));
        for address in &FRONTENDS[1..] {
            let server = SocketAddr::new(*address, 53);
            let count = 1200;
            let mut cells = Vec::new();
            for ask in &asks(server, count, ports) {
                cells.push(self.ask(&format!("{count} queries to {address}"), ask, true)?);
            }
            println!("{}  {}", Row { asked: count, cells }.line(self.paint), self.paint.dim(&address.to_string()));
        }
        println!();
        Ok(())
    }

    /// One run, counted by the client and by the servers, and judged.
    fn ask(&mut self, what: &str, ask: &Ask, must_be_even: bool) -> Result<Cell> {
        let before = self.arrivals()?;
        let answers = ask.clone().patience(Duration::from_millis(500)).run(&self.lab.client().namespace)?;
        let after = self.arrivals()?;
        let arrived: Vec<_> = after.iter().zip(before).map(|(after, before)| after.total() - before.total()).collect();
        self.asked += ask.count();
        let cell = Cell { counts: answers.of_backends(BACKENDS), asked: ask.count() };
        self.judge(what, &answers, &cell, &arrived, must_be_even);
        Ok(cell)
    }

    fn judge(&mut self, what: &str, answers: &Answers, cell: &Cell, arrived: &[u64], must_be_even: bool) {
        let mut fault = |text: String| self.faults.push(format!("{what}: {text}"));
        if !answers.is_clean() {
            let Answers { wrong_source, repeated, malformed, .. } = answers;
            let unanswered = answers.unanswered();
            fault(format!(
                "{unanswered} unanswered, {wrong_source} from a wrong source, {repeated} repeated, {malformed} malformed"
            ));
        }
        if cell.counts.iter().zip(arrived).any(|(count, arrived)| *count as u64 != *arrived) {
            fault(format!("the client counts {:?}, the servers {arrived:?}", cell.counts));
        }
        if must_be_even && cell.spread() > 1 {
            fault(format!("{:?} is not even", cell.counts));
        }
    }

    fn arrivals(&self) -> Result<Vec<Arrivals>> {
        self.servers.iter().map(Bind::arrivals).collect()
    }

    /// The same DNS service with a method's selector and schedule.
    fn configuration(&self, method: Method) -> String {
        let backends: Vec<_> = self.lab.backends().iter().flat_map(|host| [host.v4, host.v6]).collect();
        let backends: Vec<_> = backends.iter().map(|address| format!("\"{address}\"")).collect();
        format!(
            "[[service]]\nname     = \"dns\"\n\
             listen   = [{{ interface = \"eth3\", port = 53, protocols = [\"udp\", \"tcp\"] }}]\n\
             selector = \"{}\"\nschedule = \"{}\"\nbackends = [{}]\n",
            method.selector,
            method.schedule.name(),
            backends.join(", ")
        )
    }

    fn verdict(&self) -> String {
        if self.faults.is_empty() {
            let all = format!("All {} queries were answered, by the servers' own counts too;", self.asked);
            return self.paint.good(&format!("{all} Evenkeel's nth and rr were exact."));
        }
        let mut text = self.paint.bad("Not as promised:");
        for fault in &self.faults {
            write!(text, "\n  {fault}").expect("a string takes all");
        }
        text
    }

    fn what_next(&self, evenkeel: &Evenkeel) -> Result<String> {
        let (client, balancer) = (self.lab.client().namespace.path(), self.lab.balancer().path());
        let (client, balancer) = (client.display(), balancer.display());
        let (program, folders) = (evenkeel.program().display(), evenkeel.folders().join(" "));
        let configuration = evenkeel.configuration();
        let pid = evenkeel.pid().map_or_else(String::new, |pid| pid.to_string());
        let server = FRONTENDS[0];
        let questions = self.lab.directory("demo")?.join("questions");
        fs::write(&questions, format!("{WHO} TXT\n"))?;
        let questions = questions.display();
        Ok(format!(
            "The lab stays up. To try next, as root:\n\
             \n  # who answers?\n  nsenter --net={client} dig +short @{server} {WHO} TXT\n\
             \n  # load, and the rates beside it\n  \
             nsenter --net={client} dnsperf -s {server} -l 10 -d {questions}\n  \
             nsenter --net={balancer} {program} ls --rate {folders}\n\
             \n  # another selector, or fewer backends: edit, and it is reloaded\n  ${{EDITOR:-vi}} {}\n\
             \n  # the controller may die, the answers go on\n  kill -9 {pid}\n\
             \n  # and away with all of it\n  cargo xtask demo --down\n",
            configuration.display()
        ))
    }

    fn keep(self, evenkeel: Evenkeel) -> Result<()> {
        evenkeel.keep();
        self.servers.into_iter().for_each(Bind::keep);
        if let Some(engine) = self.engine {
            engine.keep();
        }
        self.lab.keep()
    }
}

/// The same queries from one socket and from many.
fn asks(server: SocketAddr, count: usize, ports: &mut Ports) -> [Ask; 2] {
    let one = ports.take(1).start;
    [Ask::from_one_socket(server, count).port(one), Ask::from_each_port(server, ports.take(count))]
}

/// Runs a command of Evenkeel's with our own stdout, so that it is coloured where we are.
fn show(evenkeel: &Evenkeel, arguments: &[&str]) -> Result<()> {
    io::stdout().flush()?;
    let status = evenkeel.command(arguments).status().context("evenkeel")?;
    ensure!(status.success(), "evenkeel {}: {status}", arguments.join(" "));
    Ok(())
}

/// Says on a terminal what goes on; the next line printed takes its place.
fn progress(what: &str) {
    let stderr = io::stderr();
    if stderr.is_terminal() && io::stdout().is_terminal() {
        // The cursor goes back to the line's start, for whoever prints next.
        let _ = write!(stderr.lock(), "\r\x1b[K{what} …\r");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_down_is_told() {
        for (kept, orphans, expected) in [
            (0, 0, "no lab was left"),
            (1, 0, "removed 1 lab that --keep left"),
            (0, 2, "removed 2 labs that a killed process left"),
            (2, 1, "removed 2 labs that --keep left and 1 lab that a killed process left"),
        ] {
            assert_eq!(taken_down(Left { kept, orphans }), expected);
        }
    }
}
