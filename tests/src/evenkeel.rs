//! Evenkeel itself in a lab: started as systemd would, reloaded, killed, asked, taken away.

use std::{
    env, fs,
    io::ErrorKind,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use serde_json::Value;

use crate::{
    lab::Lab,
    namespace::Namespace,
    process::{Running, output},
};

/// How long a start or a reload may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A controller in a lab's balancer, with pins and state of its own.
///
/// Dropping it kills the controller; the data path stays as long as the lab, or until [`Evenkeel::detach`].
#[derive(Debug)]
pub struct Evenkeel {
    balancer: Namespace,
    program: PathBuf,
    directory: PathBuf,
    pins: PathBuf,
    options: Vec<String>,
    notices: UnixDatagram,
    starts: usize,
    running: Option<Running>,
}

/// How a controller that did not start ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it said, on stdout and stderr.
    pub said: String,
}

/// Packets of ours that XDP has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByXdp {
    /// Those it sent.
    pub sent: u64,
    /// Those it left to traffic control.
    pub left: u64,
}

impl ByXdp {
    /// What was added to it after `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, left: self.left - before.left }
    }
}

impl Evenkeel {
    /// Starts the controller on a configuration and waits until it says that it is ready.
    ///
    /// # Errors
    /// It is not built, ends, or is not ready in time; the end of its log is in the error.
    pub fn start(lab: &Lab, configuration: &str) -> Result<Self> {
        Self::start_with(lab, configuration, &[])
    }

    /// The same with more options for `run`.
    ///
    /// # Errors
    /// As [`Evenkeel::start`].
    pub fn start_with(lab: &Lab, configuration: &str, options: &[&str]) -> Result<Self> {
        let mut evenkeel = Self::prepare(lab, options)?;
        evenkeel.write(configuration)?;
        evenkeel.restart()?;
        Ok(evenkeel)
    }

    /// Starts the controller on something it is expected to refuse, and returns how it did.
    ///
    /// # Errors
    /// It goes on running.
    pub fn start_refused(lab: &Lab, configuration: &str, options: &[&str]) -> Result<Refusal> {
        let mut evenkeel = Self::prepare(lab, options)?;
        evenkeel.write(configuration)?;
        let mut running = evenkeel.spawn()?;
        let status = running.wait(PATIENCE).context("it was not refused")?;
        Ok(Refusal { code: status.code(), said: running.log()? })
    }

    /// Starts the controller again, on what it left and the configuration as it is now.
    ///
    /// # Errors
    /// As [`Evenkeel::start`].
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "it still runs");
        self.forget_notices()?;
        self.running = Some(self.spawn()?);
        self.wait_for("READY=1").map(drop)
    }

    /// Replaces the configuration in one step, and says nothing to the controller, which will see it by itself.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, configuration: &str) -> Result<()> {
        let next = self.directory.join("evenkeel.toml.next");
        fs::write(&next, configuration)?;
        fs::rename(&next, self.configuration())?;
        Ok(())
    }

    /// Replaces the configuration, sends SIGHUP, and waits until the controller has applied or refused it; returns
    /// the status that it gave with that, if it gave one.
    ///
    /// # Errors
    /// It ends, or is not done in time.
    pub fn reload(&mut self, configuration: &str) -> Result<Option<String>> {
        self.forget_notices()?;
        self.write(configuration)?;
        let since = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        self.signal(Signal::SIGHUP)?;
        loop {
            let began = self.wait_for("RELOADING=1")?;
            let stamp = began.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")?.parse().ok());
            // One that began before may be on an older file, since the controller also looks for changes by itself.
            if stamp.is_none_or(|stamp| Duration::from_micros(stamp) >= since) {
                let done = self.wait_for("READY=1")?;
                return Ok(done.iter().find_map(|line| line.strip_prefix("STATUS=")).map(str::to_owned));
            }
        }
    }

    /// Replaces the configuration with one that is applied as a whole.
    ///
    /// # Errors
    /// As [`Evenkeel::reload`], or the controller says anything but that it was applied.
    pub fn apply(&mut self, configuration: &str) -> Result<()> {
        let told = self.reload(configuration)?;
        ensure!(told.as_deref() == Some("configuration applied"), "the reload ended with {told:?}");
        Ok(())
    }

    /// Kills the controller at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill();
        }
    }

    /// Ends the controller as systemd would; the data path stays.
    ///
    /// # Errors
    /// It does not end in time, or not with 0.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let mut running = self.running.take().context("it was just signalled")?;
        let status = running.wait(PATIENCE)?;
        ensure!(status.success(), "ended with {status}: {}", running.log_tail());
        Ok(())
    }

    /// Runs `evenkeel detach`: hooks and pins are gone after it.
    ///
    /// # Errors
    /// It is refused.
    pub fn detach(&self) -> Result<String> {
        output(&mut self.command(&["detach"]))
    }

    /// What `evenkeel ls` says with these options, as JSON.
    ///
    /// # Errors
    /// It is refused, or what it says is no JSON.
    pub fn ls(&self, options: &[&str]) -> Result<Value> {
        self.json("ls", options)
    }

    /// What `evenkeel status` says, as JSON.
    ///
    /// # Errors
    /// As [`Evenkeel::ls`].
    pub fn status(&self) -> Result<Value> {
        self.json("status", &[])
    }

    /// What XDP has done so far, over all interfaces.
    ///
    /// # Errors
    /// As [`Evenkeel::ls`].
    pub fn by_xdp(&self) -> Result<ByXdp> {
        let mut all = ByXdp::default();
        for one in self.status()?["xdp"].as_array().context("a status")? {
            all.sent += one["sent"].as_u64().context("a number of packets")?;
            all.left += one["left"].as_u64().context("a number of packets")?;
        }
        Ok(all)
    }

    /// Waits until packets to every backend take this way.
    ///
    /// # Errors
    /// They do not within 5 s; the ways they take and why are in the error.
    pub fn wait_for_way(&self, way: &str) -> Result<()> {
        let mut ways = Value::Null;
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            ways = self.status()?["ways"].take();
            if ways.as_array().is_some_and(|ways| !ways.is_empty() && ways.iter().all(|one| one["way"] == way)) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("not every backend is reached by {way}: {ways}")
    }

    /// Runs any command of it with the lab's pins and state, and returns all it said.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))
    }

    /// Any command of it with the lab's pins and state, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.balancer.command(&self.program.to_string_lossy());
        command.args(arguments).args(self.folders());
        command
    }

    /// The options that make another `evenkeel` look at this one's pins and state.
    pub fn folders(&self) -> [String; 4] {
        let state = self.directory.join("state");
        ["--pins".to_owned(), self.pins.display().to_string(), "--state".to_owned(), state.display().to_string()]
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The configuration's file.
    pub fn configuration(&self) -> PathBuf {
        self.directory.join("evenkeel.toml")
    }

    /// The controller's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::pid)
    }

    /// All that the running controller has said.
    ///
    /// # Errors
    /// It does not run.
    pub fn log(&self) -> Result<String> {
        self.running.as_ref().context("it does not run")?.log()
    }

    /// Leaves the controller running after this value is gone.
    pub fn keep(mut self) {
        if let Some(running) = self.running.take() {
            running.keep();
        }
    }

    fn prepare(lab: &Lab, options: &[&str]) -> Result<Self> {
        let directory = lab.directory("evenkeel")?;
        let socket = directory.join("notify");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        // By a path, because an abstract name would be unknown in the balancer's namespace.
        let notices = UnixDatagram::bind(&socket).with_context(|| socket.display().to_string())?;
        Ok(Self {
            balancer: lab.balancer().clone(),
            program: find_program()?,
            pins: lab.pins()?.join("evenkeel"),
            directory,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            notices,
            starts: 0,
            running: None,
        })
    }

    fn spawn(&mut self) -> Result<Running> {
        let configuration = self.configuration();
        let mut command = self.command(&["run", "--config", &configuration.to_string_lossy()]);
        command.args(&self.options).env("NOTIFY_SOCKET", self.directory.join("notify"));
        self.starts += 1;
        Running::start("evenkeel", command, &self.directory.join(format!("log{}", self.starts)))
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.running.as_mut().context("evenkeel does not run")?.signal(signal)
    }

    /// Waits for a notice with this line in it and returns all lines of it.
    fn wait_for(&mut self, line: &str) -> Result<Vec<String>> {
        let running = self.running.as_mut().context("evenkeel does not run")?;
        let end = Instant::now() + PATIENCE;
        self.notices.set_nonblocking(false)?;
        self.notices.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut buffer = [0; 4096];
        loop {
            match self.notices.recv(&mut buffer) {
                Ok(length) => {
                    let notice = String::from_utf8_lossy(&buffer[..length]);
                    let lines: Vec<_> = notice.lines().map(str::to_owned).collect();
                    if lines.iter().any(|own| own == line) {
                        return Ok(lines);
                    }
                }
                Err(error) => {
                    let is_to_go_on =
                        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted);
                    ensure!(is_to_go_on, "notices: {error}");
                }
            }
            if !running.is_running()? {
                let status = running.wait(PATIENCE)?;
                let said = running.log_tail();
                self.running = None;
                bail!("evenkeel ended ({status}) before {line}: {said}");
            }
            ensure!(Instant::now() < end, "evenkeel: no {line} within {PATIENCE:?}: {}", running.log_tail());
        }
    }

    fn forget_notices(&self) -> Result<()> {
        self.notices.set_nonblocking(true)?;
        while self.notices.recv(&mut [0; 4096]).is_ok() {}
        Ok(())
    }

    fn json(&self, verb: &str, options: &[&str]) -> Result<Value> {
        let mut command = self.command(&[verb, "--json"]);
        let said = output(command.args(options))?;
        serde_json::from_str(&said).with_context(|| format!("evenkeel {verb}: {said}"))
    }
}

/// The program that `EVENKEEL_BIN` names. None is looked for: what lies about may be of older sources than the tests.
///
/// # Errors
/// None is named, or it is not there.
pub fn find_program() -> Result<PathBuf> {
    let program = env::var_os("EVENKEEL_BIN").map(PathBuf::from).context(
        "EVENKEEL_BIN names no program: what starts Evenkeel is run by `cargo xtask`, as `test` or `demo`, which builds it",
    )?;
    ensure!(program.is_file(), "EVENKEEL_BIN: {} is not there", program.display());
    Ok(program)
}
