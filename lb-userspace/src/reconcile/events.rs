//! What the controller waits for: signals, a changed file, a changed network, the time for a sweep.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, Interval, MissedTickBehavior, interval},
};

use super::RunError;
use crate::network::{
    View,
    netlink::{Changes, NetworkError},
};

/// Something to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// End, leaving the data path running.
    Stop,
    /// Read the configuration again.
    Reload,
    /// The network is not what it was.
    Network,
    /// It is time to sweep.
    Sweep,
}

/// Everything that is waited for but the network, whose socket is older.
pub(super) struct Events {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    look_at_file: Interval,
    file: Watched,
    sweep: Interval,
    /// The network is not looked at again before this moment.
    network_from: Instant,
    returned: Option<Instant>,
}

impl Events {
    const SWEEP: Duration = Duration::from_secs(5);
    const LOOK_AT_FILE: Duration = Duration::from_millis(250);
    const LONGEST_REST: Duration = Duration::from_millis(500);

    /// Begins to wait.
    pub(super) fn open(config: &Path) -> Result<Self, RunError> {
        let signal = |kind| signal(kind).map_err(|source| RunError::System { what: "signals".into(), source });
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            look_at_file: every(Self::LOOK_AT_FILE),
            file: Watched::new(config),
            sweep: every(Self::SWEEP),
            network_from: Instant::now(),
            returned: None,
        })
    }

    /// Waits for the next event; `view` is what is known of the network.
    pub(super) async fn next(&mut self, changes: &mut Changes, view: &View) -> Result<Event, NetworkError> {
        // A network that changes all the time gets a quarter of this thread's time.
        let busy = self.returned.map_or(Duration::ZERO, |returned| returned.elapsed());
        self.network_from = Instant::now() + (busy * 3).min(Self::LONGEST_REST);
        let event = self.wait(changes, view).await;
        self.returned = Some(Instant::now());
        event
    }

    async fn wait(&mut self, changes: &mut Changes, view: &View) -> Result<Event, NetworkError> {
        loop {
            let network = async {
                tokio::time::sleep_until(self.network_from).await;
                changes.next(view).await
            };
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Ok(Event::Stop),
                _ = self.interrupt.recv() => return Ok(Event::Stop),
                _ = self.hang_up.recv() => {
                    self.file.accept();
                    return Ok(Event::Reload);
                }
                _ = self.look_at_file.tick() => if self.file.has_changed() {
                    return Ok(Event::Reload);
                },
                _ = self.sweep.tick() => return Ok(Event::Sweep),
                changed = network => return changed.map(|()| Event::Network),
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval.reset();
    interval
}

/// A file whose changes are told once it has settled: whoever writes it may be half way.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    told: Option<Stamp>,
    last: Option<Stamp>,
}

/// What tells one state of a file from another: device, inode, length and the time of change to the nanosecond.
type Stamp = (u64, u64, u64, i64, i64);

impl Watched {
    fn new(path: &Path) -> Self {
        let stamp = stamp(path);
        Self { path: path.to_owned(), told: stamp, last: stamp }
    }

    /// Takes the file as it is for told.
    fn accept(&mut self) {
        self.last = stamp(&self.path);
        self.told = self.last;
    }

    /// Whether the file is other than what was told, and as it was when last asked. A file that is gone for a moment, as
    /// while it is replaced, has not changed.
    fn has_changed(&mut self) -> bool {
        let now = stamp(&self.path);
        let is_settled = now == self.last;
        self.last = now;
        let has_changed = is_settled && now.is_some() && now != self.told;
        if has_changed {
            self.told = now;
        }
        has_changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let data = fs::metadata(path).ok()?;
    Some((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_told_once_and_when_it_has_settled() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evenkeel.toml");
        fs::write(&path, "one").expect("written");
        let mut watched = Watched::new(&path);
        assert!(!watched.has_changed());
        fs::write(&path, "half").expect("written");
        assert!(!watched.has_changed(), "it may not be whole yet");
        fs::write(&path, "half and half").expect("written");
        assert!(!watched.has_changed(), "indeed it was not");
        assert!(watched.has_changed());
        assert!(!watched.has_changed());
    }

    #[test]
    fn a_replaced_file_is_a_changed_one_even_with_the_same_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evenkeel.toml");
        fs::write(&path, "one").expect("written");
        let mut watched = Watched::new(&path);
        fs::write(folder.path().join("new"), "one").expect("written");
        fs::rename(folder.path().join("new"), &path).expect("renamed");
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
    }

    #[test]
    fn a_file_that_is_gone_has_not_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evenkeel.toml");
        fs::write(&path, "one").expect("written");
        let mut watched = Watched::new(&path);
        fs::remove_file(&path).expect("removed");
        assert!(!watched.has_changed() && !watched.has_changed());
        fs::write(&path, "two").expect("written");
        assert!(!watched.has_changed() && watched.has_changed());
    }

    #[test]
    fn a_file_that_was_read_for_another_reason_is_not_told_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("evenkeel.toml");
        fs::write(&path, "one").expect("written");
        let mut watched = Watched::new(&path);
        fs::write(&path, "another").expect("written");
        watched.accept();
        assert!(!watched.has_changed() && !watched.has_changed());
    }
}
