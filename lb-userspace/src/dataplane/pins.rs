//! The folder of pins: what in it belongs to whom, who may use it now, and whether this program can read what it holds.
//!
//! ```text
//! PINS/NAME                     a map, adopted by the next controller
//! PINS/programs-N               the program array of the N-th loading; its programs tail-call through it
//! PINS/xdp-programs-N           the same for its XDP programs
//! PINS/links/IFINDEX-POINT      a tcx link, or one of XDP
//! PINS/filters/IFINDEX-…        a clsact filter's program, and a mark for a clsact qdisc that we made
//! PINS/mounted                  a folder, as a mark that we mounted the filesystem
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use lb_common::{hash::Secret, limits::LAYOUT_VERSION};
use zerocopy::IntoBytes as _;

use super::sys::{self, Map, Shape};

/// Where the pins are unless told otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/evenkeel";

/// Where bpf filesystems are mounted by habit.
const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// The maps that are not adopted: they belong to the programs they were loaded with. Those of traffic control, and those
/// of XDP.
pub(super) const PROGRAMS: [&str; 2] = ["PROGRAMS", "XDP_PROGRAMS"];

/// The map that says what all others are.
pub(super) const SETTINGS: &str = "SETTINGS";

const SETTINGS_WORDS: usize = 32;
const VERSION_WORD: usize = 0;
const JIFFIES_WORD: usize = 1;
const SECRET_WORD: usize = 2;

/// Why a folder of pins cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinsError {
    /// Not on a bpf filesystem.
    #[error("{} is not on a bpf filesystem; mount one (`mount -t bpf bpf {}`) or use {DEFAULT_PINS}", .0.display(), .0.display())]
    NotBpffs(PathBuf),
    /// Nothing there.
    #[error("nothing is pinned in {}; is a controller running, with the same --pins?", .0.display())]
    Absent(PathBuf),
    /// Someone else's.
    #[error(
        "another controller{} uses {}; stop that one, or give this one its own --pins and --state", of_pid(*pid), path.display()
    )]
    InUse {
        /// The folder, of pins or of the state.
        path: PathBuf,
        /// Its process, where it said so.
        pid: Option<u32>,
    },
    /// Written by another version.
    #[error(
        "{} holds map layout {found}, this version reads layout {LAYOUT_VERSION}; go back to the version that wrote it, \
         or remove it with `evenkeel detach` and start again (flows are lost)", path.display()
    )]
    Layout {
        /// The folder.
        path: PathBuf,
        /// Its layout.
        found: u64,
    },
    /// Made with other sizes.
    #[error(
        "pinned map {map} has {what} {found}, this configuration makes it {wanted}; start with the old [limits], or \
         remove the pins with `evenkeel detach` and start again (flows are lost)"
    )]
    Shape {
        /// The map.
        map: String,
        /// In what it differs.
        what: &'static str,
        /// What it has.
        found: String,
        /// What it would be given.
        wanted: String,
    },
    /// One of the maps is not there.
    #[error("pinned map {map} is missing in {}; remove the rest with `evenkeel detach` and start again", path.display())]
    Missing {
        /// The map.
        map: String,
        /// The folder.
        path: PathBuf,
    },
    /// Something cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn of_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// A folder of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins(PathBuf);

impl Pins {
    /// The folder at `path`, whether or not it exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder where it is missing; mounts the bpf filesystem where only that is missing and the folder is in
    /// its usual place. Tells whether it mounted.
    ///
    /// # Errors
    /// When there is no bpf filesystem, or it cannot be written.
    pub fn create(&self) -> Result<bool, PinsError> {
        let existing = self.0.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let mounted = if sys::is_bpffs(existing).map_err(|error| io_error(existing, error))? {
            false
        } else if self.0.starts_with(DEFAULT_MOUNT) {
            let mount = Path::new(DEFAULT_MOUNT);
            sys::mount_bpffs(mount).map_err(|error| io_error(mount, error))?;
            true
        } else {
            return Err(PinsError::NotBpffs(self.0.clone()));
        };
        for folder in [self.0.clone(), self.links(), self.filters()] {
            fs::create_dir_all(&folder).map_err(|error| io_error(&folder, error))?;
        }
        if mounted {
            let mark = self.mount_mark();
            fs::create_dir(&mark).map_err(|error| io_error(&mark, error))?;
        }
        Ok(mounted)
    }

    /// The folder of tcx links.
    pub(super) fn links(&self) -> PathBuf {
        self.0.join("links")
    }

    /// The folder of clsact filters.
    pub(super) fn filters(&self) -> PathBuf {
        self.0.join("filters")
    }

    fn mount_mark(&self) -> PathBuf {
        self.0.join("mounted")
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The pin of a program array of one loading.
    pub(super) fn programs(&self, generation: u64, map: &str) -> PathBuf {
        self.0.join(format!("{}-{generation}", map.to_ascii_lowercase().replace('_', "-")))
    }

    /// Every loading whose program arrays are still pinned.
    pub(super) fn generations(&self) -> Result<Vec<u64>, PinsError> {
        let mut generations: Vec<u64> = names(&self.0)?
            .iter()
            .filter_map(|name| name.strip_prefix("programs-").and_then(|number| number.parse().ok()))
            .collect();
        generations.sort_unstable();
        Ok(generations)
    }

    /// Whether nothing is attached through these pins.
    pub(super) fn is_detached(&self) -> Result<bool, PinsError> {
        Ok(names(&self.links())?.is_empty() && names(&self.filters())?.is_empty())
    }

    /// What the pinned maps were made for; `None` where none were made, or not all.
    pub(super) fn settings(&self) -> Result<Option<Settings>, PinsError> {
        let path = self.map(SETTINGS);
        let map = match Map::open(&path) {
            Ok(map) => map,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, error)),
        };
        let mut words = [0_u64; SETTINGS_WORDS];
        // The version is the first word whatever the layout, but only a map of this size can be read here.
        if map.value_bytes() != size_of_val(&words) {
            return Err(PinsError::Layout { path: self.0.clone(), found: 0 });
        }
        map.lookup(0_u32.as_bytes(), words.as_mut_bytes()).map_err(|error| io_error(&path, error))?;
        match words[VERSION_WORD] {
            0 => Ok(None),
            version if version == u64::from(LAYOUT_VERSION) => Ok(Some(Settings::from_words(&words))),
            found => Err(PinsError::Layout { path: self.0.clone(), found }),
        }
    }

    /// Says what the maps are made for. The last step of making them: without it they are made again.
    pub(super) fn write_settings(&self, settings: &Settings) -> Result<(), PinsError> {
        let path = self.map(SETTINGS);
        let map = Map::open(&path).map_err(|error| io_error(&path, error))?;
        map.update(0_u32.as_bytes(), settings.to_words().as_bytes()).map_err(|error| io_error(&path, error))
    }

    /// Compares every pinned map with what would be made. aya takes a pinned map as it is, whatever its shape.
    pub(super) fn check_shapes(&self, wanted: &BTreeMap<String, Shape>) -> Result<(), PinsError> {
        for (name, wanted) in wanted {
            let path = self.map(name);
            let found = match Map::open(&path) {
                Ok(map) => map.shape(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(PinsError::Missing { map: name.clone(), path: self.0.clone() });
                }
                Err(error) => return Err(io_error(&path, error)),
            };
            if let Some((what, found, wanted)) = difference(found, *wanted) {
                return Err(PinsError::Shape { map: name.clone(), what, found, wanted });
            }
        }
        Ok(())
    }

    /// Removes every pin and then the folders; tells whether the filesystem was mounted for these pins alone.
    ///
    /// In a folder that a controller made, all pins are a controller's, if not this version's. In any other only those
    /// of `maps` and the program arrays go: what else lies there stays, and so does the folder.
    pub(super) fn remove_all(&self, maps: impl IntoIterator<Item = String>) -> Result<bool, PinsError> {
        let mut pins = if self.is_made_by_controller() {
            [files(&self.links())?, files(&self.filters())?, files(&self.0)?].concat()
        } else {
            let of = |generation| PROGRAMS.map(|map| self.programs(generation, map));
            let programs = self.generations()?.into_iter().flat_map(of);
            maps.into_iter().map(|name| self.map(&name)).chain(programs).collect()
        };
        // By it the folder is known to be a controller's, should something before it fail.
        pins.sort_by_key(|path| *path == self.map(SETTINGS));
        for path in pins {
            sys::unpin(&path).map_err(|error| io_error(&path, error))?;
        }
        let has_mounted = self.mount_mark().exists();
        for folder in [self.links(), self.filters(), self.mount_mark(), self.0.clone()] {
            match fs::remove_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                done => done.map_err(|error| io_error(&folder, error))?,
            }
        }
        Ok(has_mounted)
    }

    /// Whether the folder has what [`Self::create`] makes or the settings, and is not all of a filesystem, which others
    /// use too.
    pub(super) fn is_made_by_controller(&self) -> bool {
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let is_in_filesystem = device(&self.0.join("..")) == device(&self.0);
        let has_marks = self.map(SETTINGS).exists() || (self.links().is_dir() && self.filters().is_dir());
        is_in_filesystem && has_marks
    }
}

/// Everything in a folder but folders; nothing where there is no folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let paths = names(folder)?.into_iter().map(|name| folder.join(name));
    Ok(paths.filter(|path| !path.is_dir()).collect())
}

/// Unmounts the bpf filesystem in its usual place, unless someone else has begun to use it.
pub(super) fn unmount() -> Result<(), PinsError> {
    // What the kernel itself puts into each one (kernel/bpf/preload).
    const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];
    let mount = Path::new(DEFAULT_MOUNT);
    if names(mount)?.iter().all(|name| PRELOADED.contains(&name.as_str())) {
        sys::unmount(mount).map_err(|error| io_error(mount, error))
    } else {
        Ok(())
    }
}

/// What all maps of a folder were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// Jiffies in a second.
    pub(super) jiffies_per_second: u32,
    /// Where keys lie in the tables.
    pub(super) secret: Secret,
}

impl Settings {
    /// Those of a new set of maps.
    pub(super) fn draw() -> io::Result<Self> {
        let mut secret = Secret([0; Secret::WORDS]);
        File::open("/dev/urandom")?.read_exact(secret.as_mut_bytes())?;
        Ok(Self { jiffies_per_second: jiffies_per_second(sys::jiffy()?.as_nanos()), secret })
    }

    fn to_words(self) -> [u64; SETTINGS_WORDS] {
        let mut words = [0; SETTINGS_WORDS];
        words[VERSION_WORD] = u64::from(LAYOUT_VERSION);
        words[JIFFIES_WORD] = u64::from(self.jiffies_per_second);
        words[SECRET_WORD..SECRET_WORD + Secret::WORDS].copy_from_slice(&self.secret.0);
        words
    }

    fn from_words(words: &[u64; SETTINGS_WORDS]) -> Self {
        let secret = std::array::from_fn(|i| words[SECRET_WORD + i]);
        Self { jiffies_per_second: words[JIFFIES_WORD] as u32, secret: Secret(secret) }
    }
}

/// The kernel's HZ from the resolution of its coarse clocks, which is one jiffy in whole nanoseconds.
fn jiffies_per_second(nanoseconds: u128) -> u32 {
    let rounded = (1_000_000_000 + nanoseconds / 2) / nanoseconds.max(1);
    u32::try_from(rounded).unwrap_or(u32::MAX)
}

/// The right to change what a folder of pins holds; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    pins: Option<File>,
    _state: Option<File>,
}

impl Lock {
    /// Takes it, of the state first. Either folder may be missing, and is nobody's then.
    ///
    /// # Errors
    /// When another process has it.
    pub fn take(pins: &Pins, state: &Path) -> Result<Self, PinsError> {
        let file = if state.exists() { Some(Self::of_state(state)?) } else { None };
        // Another controller with the same pins may have another state folder.
        let folder = match File::open(pins.path()) {
            Ok(folder) => Some(folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error(pins.path(), error)),
        };
        if let Some(folder) = &folder {
            lock(folder, pins.path(), None)?;
        }
        Ok(Self { pins: folder, _state: file })
    }

    /// Gives the pins back and keeps the state: an open folder of theirs would keep their filesystem in use.
    pub(super) fn give_pins_back(&mut self) {
        self.pins = None;
    }

    /// Whether somebody has the lock of this state: a controller runs.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn is_taken(state: &Path) -> Result<bool, PinsError> {
        let path = state.join(Self::FILE);
        match File::open(&path) {
            // Taken for a moment; whoever wants it then tries again.
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(io_error(&path, error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error(&path, error)),
        }
    }

    const FILE: &str = "lock";

    /// Locks a file that says who has the lock.
    fn of_state(state: &Path) -> Result<File, PinsError> {
        let path = state.join(Self::FILE);
        let of_file = |error| io_error(&path, error);
        let mut file = loop {
            let mut file =
                File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(of_file)?;
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(of_file)?;
            lock(&file, state, pid.trim().parse().ok())?;
            // Whoever had it may have removed the file; another one lies there then, or none.
            let is_same = |there: fs::Metadata| file.metadata().is_ok_and(|ours| ours.ino() == there.ino());
            if fs::metadata(&path).is_ok_and(is_same) {
                break file;
            }
        };
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(of_file)?;
        Ok(file)
    }
}

fn lock(file: &File, path: &Path, pid: Option<u32>) -> Result<(), PinsError> {
    // `status` may be looking whether somebody has it.
    const LOOKED_AT: Duration = Duration::from_millis(100);
    let deadline = Instant::now() + LOOKED_AT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Err(PinsError::InUse { path: path.to_owned(), pid }),
            Err(TryLockError::Error(error)) => return Err(io_error(path, error)),
        }
    }
}

/// The first difference, with both values.
fn difference(found: Shape, wanted: Shape) -> Option<(&'static str, String, String)> {
    if found.kind != wanted.kind {
        return Some(("type", found.kind_name().to_owned(), wanted.kind_name().to_owned()));
    }
    [
        ("key size", found.key_size, wanted.key_size),
        ("value size", found.value_size, wanted.value_size),
        ("max_entries", found.max_entries, wanted.max_entries),
        ("flags", found.flags, wanted.flags),
    ]
    .into_iter()
    .find(|(_, found, wanted)| found != wanted)
    .map(|(what, found, wanted)| (what, found.to_string(), wanted.to_string()))
}

/// Names in a folder; none where there is no folder.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, PinsError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(folder, error)),
    };
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| io_error(folder, error))?;
    names.sort_unstable();
    Ok(names)
}

fn io_error(path: &Path, source: io::Error) -> PinsError {
    PinsError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_their_map() {
        let settings = Settings { jiffies_per_second: 250, secret: Secret(std::array::from_fn(|i| i as u64 * 3)) };
        assert_eq!(Settings::from_words(&settings.to_words()), settings);
        assert_eq!(settings.to_words()[VERSION_WORD], u64::from(LAYOUT_VERSION));
    }

    #[test]
    fn a_state_is_locked_with_and_without_pins_and_looking_does_not_hold_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pins, state) = (Pins::new(folder.path().join("pins")), folder.path());
        assert!(!Lock::is_taken(state).expect("no lock is no error"));
        let lock = Lock::take(&pins, state).expect("nobody has it");
        assert!(Lock::is_taken(state).expect("looked at"));
        let refused = Lock::take(&pins, state).expect_err("it is taken");
        assert!(matches!(refused, PinsError::InUse { pid: Some(pid), .. } if pid == std::process::id()), "{refused}");
        drop(lock);
        assert!(!Lock::is_taken(state).expect("looked at"));
        let looking = File::open(state.join("lock")).expect("it stays");
        looking.try_lock_shared().expect("nobody has it");
        let done = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            drop(looking);
        });
        assert!(Lock::take(&pins, state).is_ok(), "whoever looks does so for a moment");
        done.join().expect("it ends");
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_on_the_next_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (pins, path) = (Pins::new("/nonexistent/pins"), folder.path().join("lock"));
        let first = Lock::take(&pins, folder.path()).expect("nobody has it");
        let remover = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            fs::remove_file(path).expect("it is there");
            drop(first);
        });
        let second = Lock::take(&pins, folder.path()).expect("given back meanwhile");
        remover.join().expect("it ends");
        assert!(Lock::is_taken(folder.path()).expect("looked at"), "by the file that lies there now");
        drop(second);
    }

    #[test]
    fn two_drawn_secrets_differ() {
        let draw = || Settings::draw().expect("there is a source of random numbers");
        assert_ne!(draw().secret, draw().secret);
    }

    #[test]
    fn the_usual_jiffies_are_recognised() {
        for (nanoseconds, hz) in [(10_000_000, 100), (4_000_000, 250), (3_333_333, 300), (1_000_000, 1000)] {
            assert_eq!(jiffies_per_second(nanoseconds), hz);
        }
    }

    #[test]
    fn every_part_of_a_shape_is_compared() {
        let shape = Shape { kind: 2, key_size: 4, value_size: 64, max_entries: 100, flags: 1024 };
        assert_eq!(difference(shape, shape), None);
        for (other, what) in [
            (Shape { kind: 1, ..shape }, "type"),
            (Shape { key_size: 8, ..shape }, "key size"),
            (Shape { value_size: 72, ..shape }, "value size"),
            (Shape { max_entries: 101, ..shape }, "max_entries"),
            (Shape { flags: 0, ..shape }, "flags"),
        ] {
            assert_eq!(difference(other, shape).map(|(what, ..)| what), Some(what));
        }
    }

    #[test]
    fn refusals_name_the_way_out() {
        let message = PinsError::Shape {
            map: "FLOWS".to_owned(),
            what: "max_entries",
            found: "1024".to_owned(),
            wanted: "2048".to_owned(),
        };
        assert_eq!(
            message.to_string(),
            "pinned map FLOWS has max_entries 1024, this configuration makes it 2048; start with the old [limits], or \
             remove the pins with `evenkeel detach` and start again (flows are lost)"
        );
        let message = PinsError::InUse { path: "/run/evenkeel".into(), pid: Some(7) };
        assert_eq!(
            message.to_string(),
            "another controller (process 7) uses /run/evenkeel; stop that one, or give this one its own --pins and \
             --state"
        );
        let message = PinsError::Layout { path: "/sys/fs/bpf/evenkeel".into(), found: 9 };
        assert_eq!(
            message.to_string(),
            "/sys/fs/bpf/evenkeel holds map layout 9, this version reads layout 2; go back to the version that wrote \
             it, or remove it with `evenkeel detach` and start again (flows are lost)"
        );
        let message = PinsError::NotBpffs("/tmp/pins".into());
        assert_eq!(
            message.to_string(),
            "/tmp/pins is not on a bpf filesystem; mount one (`mount -t bpf bpf /tmp/pins`) or use /sys/fs/bpf/evenkeel"
        );
    }
}
