//! dnsperf: load, and its own account of what came back.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{ask::allowed_cpus, bind::WHO, lab::Lab, namespace::Namespace, process::Running};

/// The most sockets of one dnsperf, whatever it is asked for; each thread has so many.
pub const MOST_SOCKETS: usize = 256;

/// What dnsperf is to do; a value to start from is [`Dnsperf::to`].
#[derive(Clone, Copy, Debug)]
pub struct Dnsperf {
    /// Where to.
    pub server: SocketAddr,
    /// How many sockets, at most [`MOST_SOCKETS`] a thread. One thread asks from each of them in turn.
    pub clients: usize,
    /// The source port of the first socket, the others having those after it; free ones if there is none.
    pub port: Option<u16>,
    /// The one of our CPUs, counted from 0, that it stays on; any if there is none.
    pub cpu: Option<usize>,
    /// How many threads.
    pub threads: usize,
    /// When to end.
    pub end: End,
    /// At most this many queries a second; as many as come back if there is none.
    pub rate: Option<usize>,
    /// At most this many on their way at once.
    pub outstanding: usize,
    /// How long it waits for each answer.
    pub patience: Duration,
    /// Whether it tells of each query, for [`Load::finish_with_each`].
    pub tells_each: bool,
}

/// When a run of dnsperf ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// After so many queries.
    Queries(usize),
    /// After so many seconds.
    Seconds(u64),
}

/// What dnsperf says at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Queries sent.
    pub sent: usize,
    /// Queries answered in time.
    pub completed: usize,
    /// Queries not answered in time.
    pub lost: usize,
    /// Answers a second.
    pub per_second: f64,
    /// The average time to an answer, in seconds.
    pub latency: f64,
}

impl Dnsperf {
    /// 12000 queries over UDP from one socket.
    pub fn to(server: SocketAddr) -> Self {
        let (end, patience) = (End::Queries(12_000), Duration::from_secs(2));
        let (port, cpu, rate) = (None, None, None);
        Self { server, clients: 1, port, cpu, threads: 1, end, rate, outstanding: 100, patience, tells_each: false }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It does not start, or ends otherwise than with its summary.
    pub fn run(self, lab: &Lab, client: &Namespace) -> Result<Report> {
        self.start(lab, client)?.finish()
    }

    /// Starts it beside whatever the caller does next.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(self, lab: &Lab, client: &Namespace) -> Result<Load> {
        // Files of its own, because others may run at the same time.
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        ensure!(self.clients <= self.threads * MOST_SOCKETS, "{} sockets of dnsperf", self.clients);
        let directory = lab.directory("dnsperf")?;
        let questions = directory.join(format!("questions{number}"));
        fs::write(&questions, format!("{WHO} TXT\n"))?;
        let log = directory.join(format!("log{number}-{}-{}", client.name(), self.server));
        let running = Running::start("dnsperf", self.command(client, &questions)?, &log)?;
        let limit = match self.end {
            End::Queries(_) => Duration::from_secs(120),
            End::Seconds(seconds) => Duration::from_secs(seconds + 30),
        };
        Ok(Load { running, limit })
    }

    fn command(&self, client: &Namespace, questions: &Path) -> Result<Command> {
        let mut command = match self.cpu {
            None => client.command("dnsperf"),
            Some(cpu) => {
                let cpus = allowed_cpus()?;
                let cpu = cpus.get(cpu).with_context(|| format!("CPU {cpu}, but only {} here", cpus.len()))?;
                let mut command = client.command("taskset");
                command.args(["-c", &cpu.to_string(), "dnsperf"]);
                command
            }
        };
        let mut option = |name: &str, value: String| {
            command.arg(name).arg(value);
        };
        option("-s", self.server.ip().to_string());
        option("-p", self.server.port().to_string());
        option("-d", questions.display().to_string());
        option("-c", self.clients.to_string());
        option("-T", self.threads.to_string());
        option("-q", self.outstanding.to_string());
        option("-t", self.patience.as_secs_f64().to_string());
        match self.end {
            End::Queries(queries) => option("-n", queries.to_string()),
            End::Seconds(seconds) => option("-l", seconds.to_string()),
        }
        if let Some(port) = self.port {
            option("-x", port.to_string());
        }
        if let Some(rate) = self.rate {
            option("-Q", rate.to_string());
        }
        if self.tells_each {
            command.arg("-v");
        }
        Ok(command)
    }
}

/// A dnsperf on its way.
#[derive(Debug)]
pub struct Load {
    running: Running,
    limit: Duration,
}

impl Load {
    /// Says whether it still asks.
    ///
    /// # Errors
    /// The operating system does not know the process.
    pub fn is_running(&mut self) -> Result<bool> {
        self.running.is_running()
    }

    /// Waits for its end and reads its summary.
    ///
    /// # Errors
    /// It does not end in its time, or without a summary.
    pub fn finish(self) -> Result<Report> {
        self.finish_with_each().map(|(report, _)| report)
    }

    /// The same, with the seconds that each answer took, where it was asked to tell them.
    ///
    /// # Errors
    /// As [`Load::finish`].
    pub fn finish_with_each(mut self) -> Result<(Report, Vec<f64>)> {
        let status = self.running.wait(self.limit)?;
        ensure!(status.success(), "dnsperf: {status}: {}", self.running.log_tail());
        let log = self.running.log()?;
        let report = parse(&log).with_context(|| format!("dnsperf without a summary: {}", self.running.log_tail()))?;
        Ok((report, parse_each(&log)))
    }
}

/// Each answer has a line: its code, the question, the seconds. That of a query without one ends with the question.
fn parse_each(log: &str) -> Vec<f64> {
    let seconds = |line: &str| line.strip_prefix("> ")?.split_whitespace().nth(3)?.parse().ok();
    log.lines().filter_map(seconds).collect()
}

fn parse(log: &str) -> Option<Report> {
    let number = |mark: &str| log.split_once(mark)?.1.split_whitespace().next();
    Some(Report {
        sent: number("Queries sent:")?.parse().ok()?,
        completed: number("Queries completed:")?.parse().ok()?,
        lost: number("Queries lost:")?.parse().ok()?,
        per_second: number("Queries per second:")?.parse().ok()?,
        latency: number("Average Latency (s):")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_dnsperf_is_read() {
        let log = "Statistics:\n\n  Queries sent:         12000\n  Queries completed:    11999 (99.99%)\n  \
                   Queries lost:         1 (0.01%)\n\n  Run time (s):         0.2\n  \
                   Queries per second:   59995.0\n\n  Average Latency (s):  0.001623 (min 0.0001, max 0.004)\n";
        let report = Report { sent: 12_000, completed: 11_999, lost: 1, per_second: 59_995.0, latency: 0.001_623 };
        assert_eq!(parse(log), Some(report));
        assert!(parse_each(log).is_empty());
    }

    #[test]
    fn the_time_of_each_answer_is_read() {
        let log = "[Status] Sending queries (to 127.0.0.1:53)\n> NOERROR who.example.test TXT 0.000192\n\
                   > T who.example.test TXT\n> NOERROR who.example.test TXT 0.001500\n  Queries sent: 3\n";
        assert_eq!(parse_each(log), [0.000_192, 0.001_5]);
    }
}
