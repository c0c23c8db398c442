//! tcpdump: when packets came by a device, in the clock of the machine.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    lab::Lab,
    namespace::Namespace,
    process::{Running, wait_until},
};

/// A tcpdump on its way.
#[derive(Debug)]
pub struct Capture {
    running: Running,
}

impl Capture {
    /// Starts to look at a device, at what `filter` says in pcap's language, and waits until it looks.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(lab: &Lab, namespace: &Namespace, device: &str, filter: &str) -> Result<Self> {
        let log = lab.directory("tcpdump")?.join(format!("log-{}-{device}", namespace.name()));
        let mut command = namespace.command("tcpdump");
        // The headers alone: a buffer has room for few whole packets.
        command.args(["-i", device, "-n", "-tt", "-q", "-s", "96", "-B", "8192", "--immediate-mode", filter]);
        let mut running = Running::start("tcpdump", command, &log)?;
        wait_until("tcpdump listens", Duration::from_secs(5), || {
            ensure!(running.is_running()?, "tcpdump has ended: {}", running.log_tail());
            Ok(running.log()?.contains("listening on"))
        })?;
        Ok(Self { running })
    }

    /// Ends it and returns when each packet was seen, as the time since 1970.
    ///
    /// # Errors
    /// It does not end well, or it missed packets.
    pub fn finish(mut self) -> Result<Vec<Duration>> {
        self.running.signal(Signal::SIGINT)?;
        self.running.wait(Duration::from_secs(10))?;
        let log = self.running.log()?;
        ensure!(log.contains("\n0 packets dropped by kernel"), "tcpdump missed packets: {}", self.running.log_tail());
        log.lines().filter(|line| line.contains(" > ")).map(time).collect()
    }
}

/// The time now, in the clock of [`Capture::finish`].
pub fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970")
}

fn time(line: &str) -> Result<Duration> {
    let read = || {
        let (seconds, micros) = line.split_whitespace().next()?.split_once('.')?;
        Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
    };
    read().with_context(|| format!("tcpdump: no time in {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_packet_is_read() {
        let line = "1795260000.000123 IP 10.9.0.101.4000 > 10.100.13.2.53: UDP, length 34";
        assert_eq!(time(line).unwrap(), Duration::from_secs(1_795_260_000) + Duration::from_micros(123));
    }
}
