//! One network namespace: commands in it, and our own code in it.

use std::{fs::File, panic, path::PathBuf, process::Command, thread};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use crate::process;

/// A network namespace by its name; it is a lab that makes and removes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// The name `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside.
    ///
    /// By nsenter, because `ip netns exec` hides the BPF file system behind a new /sys.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command inside to its end and returns what it printed on stdout.
    ///
    /// # Errors
    /// It cannot be started or does not exit with 0.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        process::output(self.command(program).args(arguments))
    }

    /// Runs one line of words, split at blanks, such as `ip route show`.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn sh(&self, line: &str) -> Result<String> {
        process::output(self.command("env").args(line.split_whitespace()))
    }

    /// Runs `work` on a thread of its own inside the namespace; the sockets it opens belong there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` returns an error.
    ///
    /// # Panics
    /// When `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            self.enter_thread()?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// How many packets have come to it with a wrong TCP or UDP checksum, over both families.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn checksum_errors(&self) -> Result<u64> {
        let counters = self.run("cat", &["/proc/net/snmp", "/proc/net/snmp6"])?;
        checksum_errors(&counters).with_context(|| format!("no such counters in {counters}"))
    }

    /// How many packets its stack has dropped for their IP header, such as one without a hop left, over both families.
    ///
    /// # Errors
    /// The kernel's counters cannot be read.
    pub fn header_errors(&self) -> Result<u64> {
        let counters = self.run("cat", &["/proc/net/snmp", "/proc/net/snmp6"])?;
        let sum = || Some(of_names(&counters, "Ip:", "InHdrErrors")? + of_name(&counters, "Ip6InHdrErrors")?);
        sum().with_context(|| format!("no such counters in {counters}"))
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// The namespace is gone or the caller is not root.
    pub(crate) fn enter_thread(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("namespace {}: not entered", self.name))
    }
}

fn checksum_errors(counters: &str) -> Option<u64> {
    let of_names = |protocol| of_names(counters, protocol, "InCsumErrors");
    Some(of_names("Tcp:")? + of_names("Udp:")? + of_name(counters, "Udp6InCsumErrors")?)
}

/// proc_net(5): `snmp` has a line of names and one of values per protocol.
fn of_names(counters: &str, protocol: &str, name: &str) -> Option<u64> {
    let mut own = lines(counters).filter(|line| line.first() == Some(&protocol));
    let (names, values) = (own.next()?, own.next()?);
    let column = names.iter().position(|own| *own == name)?;
    values.get(column)?.parse().ok()
}

/// proc_net(5): `snmp6` has a name and a value per line.
fn of_name(counters: &str, name: &str) -> Option<u64> {
    lines(counters).find(|line| line.first() == Some(&name))?.get(1)?.parse().ok()
}

fn lines(counters: &str) -> impl Iterator<Item = Vec<&str>> {
    counters.lines().map(|line| line.split_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_checksums_of_all_protocols_are_added_up() {
        let counters = "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: InSegs InCsumErrors\nTcp: 10 3\n\
                        Udp: InDatagrams InCsumErrors\nUdp: 20 4\nUdp6InErrors 9\nUdp6InCsumErrors 5\n";
        assert_eq!(checksum_errors(counters), Some(12));
        assert_eq!(checksum_errors("Tcp: InSegs\nTcp: 10\n"), None);
    }
}
