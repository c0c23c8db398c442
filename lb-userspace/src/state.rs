//! What is in no map: names, reasons, the last change and the last refusal. Written by the controller, read by the
//! other commands; losing it costs names in listings, never traffic.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use lb_common::service::ServiceId;
use serde::{Deserialize, Serialize};

use crate::plan::tables::ServiceKey;

/// Where the state is unless told otherwise.
pub const DEFAULT_STATE: &str = "/run/evenkeel";

/// Everything a controller tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Moment,
    /// When it stopped, leaving the data path running.
    pub stopped: Option<Moment>,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it found in the pins: new, or adopted from an earlier one.
    pub opening: String,
    /// The kernel's services by name.
    pub services: Vec<ServiceState>,
    /// The way to each backend.
    pub ways: Vec<WayState>,
    /// What is attached to each interface.
    pub hooks: Vec<HookState>,
    /// The last change that was applied.
    pub last_change: Option<LastChange>,
    /// The last configuration that was refused, unless a good one came after it.
    pub last_refusal: Option<LastRefusal>,
    /// The last sweep of the flow table.
    pub last_sweep: Option<LastSweep>,
    /// What someone should look at.
    pub warnings: Vec<String>,
    /// The maps in which the last audit found something else than was programmed.
    #[serde(default)]
    pub altered: Vec<String>,
    /// What each backend, by its id, had been chosen for when the slots of its service last changed: how even a service
    /// is can be judged from there on only.
    pub counted_from: BTreeMap<u32, u64>,
}

/// Seconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(pub u64);

/// What a service of the kernel is called, and what it cannot tell of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its id in the maps.
    pub id: u32,
    /// What it is known by.
    #[serde(flatten)]
    pub key: ServiceKey,
    /// Its selector.
    pub selector: String,
    /// What it chooses once.
    pub schedule: String,
}

/// The way to a backend, and why not a better one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayState {
    /// The backend's address.
    pub address: IpAddr,
    /// The way.
    pub way: String,
    /// The interface that packets leave by.
    pub interface: Option<String>,
    /// Where its replies are taken: an interface, and the hook there.
    #[serde(default)]
    pub back: String,
    /// Why not a better way.
    pub why: String,
}

/// What is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookState {
    /// The interface.
    pub interface: String,
    /// Its number.
    pub ifindex: u32,
    /// Who is behind it: `clients`, `backends`, or both.
    pub ingress: Option<String>,
    /// Whether replies that the stack forwards are rewritten where they leave by it.
    pub egress: bool,
    /// How the programs of traffic control are attached.
    pub mode: String,
    /// How XDP looks first: `xdp` or `xdp-generic`; nothing where it does not.
    #[serde(default)]
    pub xdp: Option<String>,
    /// Why XDP does not, or what it leaves to traffic control.
    #[serde(default)]
    pub xdp_why: String,
    /// What is wrong.
    pub why: String,
}

/// The last change that was applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastChange {
    /// When.
    pub at: Moment,
    /// What gave cause for it.
    pub cause: String,
    /// Steps it took.
    pub changes: usize,
    /// Milliseconds until packets saw it.
    pub stored_ms: f64,
    /// Milliseconds until no packet saw anything of before.
    pub applied_ms: f64,
}

/// The last configuration that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRefusal {
    /// When.
    pub at: Moment,
    /// All that was wrong with it.
    pub messages: Vec<String>,
}

/// The last sweep of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastSweep {
    /// When.
    pub at: Moment,
    /// Removed backends that flows still name.
    pub waiting_backends: usize,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", .path.display())]
pub struct StateError {
    path: PathBuf,
    source: io::Error,
}

impl State {
    /// The name of this file in the state's folder.
    const FILE: &str = "state.json";

    /// What the last controller wrote in `folder`; nothing where there is none, or what it wrote is not understood.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, StateError> {
        let path = folder.join(Self::FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError { path, source }),
        }
    }

    /// Writes it in one step: whoever reads sees the old one or this one.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), StateError> {
        let path = folder.join(Self::FILE);
        self.replace(&path).map_err(|source| StateError { path, source })
    }

    fn replace(&self, path: &Path) -> io::Result<()> {
        let new = path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let mut file = File::create(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)
    }

    /// Removes what a controller left in `folder`, and the folder where nothing else is in it.
    ///
    /// # Errors
    /// When it is there but cannot be removed.
    pub fn remove(folder: &Path) -> Result<(), StateError> {
        for name in [Self::FILE, "state.json.new", "lock"] {
            let path = folder.join(name);
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(StateError { path, source }),
                Ok(()) | Err(_) => {}
            }
        }
        // The folder may be someone else's choice and hold other things.
        match fs::remove_dir(folder) {
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// What the kernel's service of this id is called.
    pub fn service(&self, id: ServiceId) -> Option<&ServiceState> {
        self.services.iter().find(|service| service.id == id.0)
    }
}

impl Moment {
    /// The time now.
    pub fn now() -> Self {
        // A clock before 1970 is no reason to stop.
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// How long ago this was, for a person.
    pub fn ago(self, now: Self) -> String {
        match now.0.saturating_sub(self.0) {
            0 => "just now".into(),
            seconds @ 1..120 => format!("{seconds} s ago"),
            seconds @ 120..7200 => format!("{} min ago", seconds / 60),
            seconds @ 7200..172_800 => format!("{} h ago", seconds / 3600),
            seconds => format!("{} days ago", seconds / 86_400),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> State {
        let key = ServiceKey { name: "dns".into(), family: 4, protocol: 17, port: 53 };
        State {
            pid: 7,
            services: vec![ServiceState { id: 3, key, selector: "rr".into(), schedule: "per-packet".into() }],
            last_refusal: Some(LastRefusal { at: Moment(5), messages: vec!["a".into(), "b".into()] }),
            ..State::default()
        }
    }

    #[test]
    fn what_was_written_is_read_and_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(State::read(folder.path()).expect("no state is no error"), None);
        sample().write(folder.path()).expect("written");
        assert_eq!(State::read(folder.path()).expect("read"), Some(sample()));
        State::default().write(folder.path()).expect("written again");
        assert_eq!(State::read(folder.path()).expect("read"), Some(State::default()));
        State::remove(folder.path()).expect("removed");
        assert!(!folder.path().exists());
    }

    #[test]
    fn a_state_that_is_not_understood_is_no_state() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("state.json"), "{ \"pid\": \"seven\" }").expect("written");
        assert_eq!(State::read(folder.path()).expect("read"), None);
        fs::write(folder.path().join("state.json"), "{ \"pid\": 7, \"of a later version\": 1 }").expect("written");
        let state = State::read(folder.path()).expect("read").expect("understood");
        assert_eq!(state, State { pid: 7, ..State::default() });
    }

    #[test]
    fn a_folder_with_other_things_in_it_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("mine"), "").expect("written");
        sample().write(folder.path()).expect("written");
        State::remove(folder.path()).expect("removed");
        let left: Vec<_> =
            fs::read_dir(folder.path()).expect("a folder").flatten().map(|one| one.file_name()).collect();
        assert_eq!(left, ["mine"]);
    }

    #[test]
    fn services_are_found_by_id() {
        assert_eq!(sample().service(ServiceId(3)).map(|service| service.key.name.as_str()), Some("dns"));
        assert_eq!(sample().service(ServiceId(4)), None);
    }

    #[test]
    fn times_are_told_as_a_person_would() {
        for (seconds, expected) in [
            (0, "just now"),
            (1, "1 s ago"),
            (119, "119 s ago"),
            (120, "2 min ago"),
            (7200, "2 h ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(Moment(1000).ago(Moment(1000 + seconds)), expected);
        }
    }
}
