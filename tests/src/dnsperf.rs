//! dnsperf: load, and its own account of what came back.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{bind::WHO, lab::Lab, namespace::Namespace, process::Running};

/// What dnsperf is to do; a value to start from is [`Dnsperf::to`].
#[derive(Clone, Copy, Debug)]
pub struct Dnsperf {
    /// Where to.
    pub server: SocketAddr,
    /// How many sockets.
    pub clients: usize,
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
        Self { server, clients: 1, threads: 1, end, rate: None, outstanding: 100, patience }
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
        let directory = lab.directory("dnsperf")?;
        let questions = directory.join("questions");
        fs::write(&questions, format!("{WHO} TXT\n"))?;
        let log = directory.join(format!("log-{}-{}", client.name(), self.server));
        let running = Running::start("dnsperf", self.command(client, &questions), &log)?;
        let limit = match self.end {
            End::Queries(_) => Duration::from_secs(120),
            End::Seconds(seconds) => Duration::from_secs(seconds + 30),
        };
        Ok(Load { running, limit })
    }

    fn command(&self, client: &Namespace, questions: &Path) -> Command {
        let mut command = client.command("dnsperf");
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
        if let Some(rate) = self.rate {
            option("-Q", rate.to_string());
        }
        command
    }
}

/// A dnsperf on its way.
#[derive(Debug)]
pub struct Load {
    running: Running,
    limit: Duration,
}

impl Load {
    /// Waits for its end and reads its summary.
    ///
    /// # Errors
    /// It does not end in its time, or without a summary.
    pub fn finish(mut self) -> Result<Report> {
        let status = self.running.wait(self.limit)?;
        ensure!(status.success(), "dnsperf: {status}: {}", self.running.log_tail());
        let log = self.running.log()?;
        parse(&log).with_context(|| format!("dnsperf without a summary: {}", self.running.log_tail()))
    }
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
    }
}
