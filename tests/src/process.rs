//! Commands: run to the end and judged, or left running and ended by pid.

use std::{
    fs::File,
    io::Read as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Runs a command to its end and returns what it printed on stdout.
///
/// # Errors
/// The command cannot be started or does not exit with 0; its stderr is in the error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    output(&mut command)
}

/// Runs a prepared command to its end and returns what it printed on stdout.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    // A Ctrl-C on the terminal is for us; what removes a lab must not die of it.
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).process_group(0).output().with_context(|| format!("{command:?}: not started"))?;
    let stderr = String::from_utf8_lossy(&stderr);
    ensure!(status.success(), "{command:?}: {status}: {}", stderr.trim());
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Waits until `condition` holds, looking every few milliseconds.
///
/// # Errors
/// It did not hold within `limit`, or looking itself failed.
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !condition()? {
        ensure!(Instant::now() < end, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A process of ours in the background; dropping it kills it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command` in a process group of its own, with its output in the file `log`.
    ///
    /// # Errors
    /// The log cannot be written or the command not started.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("{}: cannot be written", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: {command:?} not started"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says whether the process still runs.
    ///
    /// # Errors
    /// The operating system does not know the process.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        ensure!(self.is_running()?, "{} has ended: {}", self.name, self.log_tail());
        let pid = i32::try_from(self.child.id()).context("a pid that is no i32")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{}: {signal} not sent", self.name))
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} (pid {}) still runs after {limit:?}", self.name, self.pid());
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything the process has printed so far.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        let mut text = Vec::new();
        File::open(&self.log)?.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The last lines that the process has printed, for an error message.
    pub fn log_tail(&self) -> String {
        let log = self.log().unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Kills the process at once and waits until it is gone.
    pub fn kill(&mut self) {
        // Both fail only if the process was waited for already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Leaves the process running after this value is gone.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
