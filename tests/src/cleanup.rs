//! What a lab leaves behind, found by its prefix alone: so it can be removed by its own drop, by a signal, or by
//! the next lab when its process was killed.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::process::{run, wait_until};

/// Everything a lab made carries this prefix: its namespaces, and its directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(String);

impl Prefix {
    /// Takes a new prefix and makes its directory; what carries it is removed if this process is interrupted.
    ///
    /// # Errors
    /// The directory cannot be made, or something is there already, which is not ours to use or to remove.
    pub(crate) fn take() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        watch_signals();
        remove_orphans();
        let prefix = Self(format!("ek{}n{}", process::id(), NEXT.fetch_add(1, Ordering::SeqCst)));
        // Held until it is among them: an interruption removes it, but nothing that was there before.
        let mut live = live();
        make_directory(&prefix.directory())?;
        live.insert(prefix.clone());
        drop(live);
        Ok(prefix)
    }

    /// The prefix itself.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The name of one of the lab's namespaces.
    pub(crate) fn namespace(&self, role: &str) -> String {
        format!("{}-{role}", self.0)
    }

    /// The lab's directory: configurations, logs, pins.
    pub fn directory(&self) -> PathBuf {
        env::temp_dir().join(format!("evenkeel-lab-{}", self.0))
    }

    /// Where the lab's own BPF file system is mounted.
    pub fn pins(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    /// Where the lab's own view of the kernel's traces is mounted.
    pub(crate) fn traces(&self) -> PathBuf {
        self.directory().join("traces")
    }

    /// The lab's own trace there.
    pub(crate) fn trace(&self) -> PathBuf {
        self.traces().join("instances").join(format!("evenkeel-{}", self.0))
    }

    /// Lets the lab outlive this process.
    pub(crate) fn keep(&self) -> Result<()> {
        fs::write(self.directory().join(KEPT), "")?;
        live().remove(self);
        Ok(())
    }

    /// Removes all of it: processes by pid, mounts, namespaces, the directory.
    ///
    /// # Errors
    /// Something stays although it was asked to go.
    pub(crate) fn remove(&self) -> Result<()> {
        let namespaces = self.namespaces()?;
        for namespace in &namespaces {
            for pid in pids(namespace)? {
                // Gone already is fine.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        wait_until("processes of the lab ended", Duration::from_secs(5), || {
            Ok(namespaces.iter().all(|namespace| pids(namespace).unwrap_or_default().is_empty()))
        })?;
        let directory = self.directory();
        let is_ours = is_ours(&directory);
        if is_ours {
            let trace = self.trace();
            if trace.exists() {
                // The kernel's, which would outlive what shows it.
                fs::remove_dir(&trace).with_context(|| format!("{}: not removed", trace.display()))?;
            }
            for mounted in [self.pins(), self.traces()] {
                if let Err(error) = umount2(&mounted, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                    && error != Errno::EINVAL
                    && error != Errno::ENOENT
                {
                    return Err(error).with_context(|| format!("{}: not unmounted", mounted.display()));
                }
            }
        }
        for namespace in &namespaces {
            run("ip", &["netns", "del", namespace])?;
        }
        if is_ours {
            fs::remove_dir_all(&directory).with_context(|| format!("{}: not removed", directory.display()))?;
        }
        live().remove(self);
        Ok(())
    }

    /// The names of the lab's namespaces that exist now.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn namespaces(&self) -> Result<Vec<String>> {
        let start = self.namespace("");
        let mut names: Vec<_> = names_in("/run/netns")?.into_iter().filter(|name| name.starts_with(&start)).collect();
        names.sort();
        Ok(names)
    }

    /// Whether the lab was kept on purpose.
    fn is_kept(&self) -> bool {
        is_ours(&self.directory()) && self.directory().join(KEPT).exists()
    }

    /// Whether its process is gone, and it was not kept on purpose.
    fn is_orphan(&self) -> bool {
        !self.is_kept() && self.owner().is_some_and(|owner| kill(owner, None) == Err(Errno::ESRCH))
    }

    /// The process that made the lab.
    fn owner(&self) -> Option<Pid> {
        let (pid, _) = self.0.strip_prefix("ek")?.split_once('n')?;
        pid.parse().ok().map(Pid::from_raw)
    }
}

/// Removes the labs that were kept on purpose and those of processes that were killed, and returns how many there were
/// of either. Labs that are in use stay.
///
/// # Errors
/// One of them does not go.
pub fn remove_left() -> Result<Left> {
    let known = known()?;
    let of = |is_of: fn(&Prefix) -> bool| known.iter().filter(move |prefix| is_of(prefix));
    let (kept, orphans): (Vec<_>, Vec<_>) = (of(Prefix::is_kept).collect(), of(Prefix::is_orphan).collect());
    for prefix in kept.iter().chain(&orphans) {
        prefix.remove()?;
    }
    Ok(Left { kept: kept.len(), orphans: orphans.len() })
}

/// How many labs were left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// On purpose.
    pub kept: usize,
    /// By processes that were killed.
    pub orphans: usize,
}

/// The file in a lab's directory that says it was kept on purpose.
const KEPT: &str = "kept";

/// Labs of processes that were killed and could not clean up.
fn remove_orphans() {
    for prefix in known().unwrap_or_default() {
        if prefix.is_orphan()
            && let Err(error) = prefix.remove()
        {
            eprintln!("a lab left by a killed process stays: {error:#}");
        }
    }
}

/// Every prefix that left a namespace or a directory on this machine.
fn known() -> Result<BTreeSet<Prefix>> {
    let mut known = BTreeSet::new();
    for name in names_in("/run/netns")? {
        if let Some((prefix, _)) = name.split_once('-') {
            known.insert(Prefix(prefix.to_owned()));
        }
    }
    for name in names_in(&env::temp_dir().to_string_lossy())? {
        if let Some(prefix) = name.strip_prefix("evenkeel-lab-")
            && is_ours(&env::temp_dir().join(&name))
        {
            known.insert(Prefix(prefix.to_owned()));
        }
    }
    known.retain(|prefix| prefix.owner().is_some());
    Ok(known)
}

/// Makes a directory for this user alone; refuses one that is there.
fn make_directory(directory: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(directory).with_context(|| format!("{}: not made", directory.display()))
}

/// Whether this is a directory, no link to one, and this user's. Anyone may make one of any name among temporary files.
fn is_ours(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
}

fn names_in(directory: &str) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(directory) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// The processes in a namespace, without ourselves.
fn pids(namespace: &str) -> Result<Vec<Pid>> {
    let own = Pid::this();
    let all = run("ip", &["netns", "pids", namespace])?;
    Ok(all.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).filter(|pid| *pid != own).collect())
}

fn live() -> std::sync::MutexGuard<'static, BTreeSet<Prefix>> {
    static LIVE: Mutex<BTreeSet<Prefix>> = Mutex::new(BTreeSet::new());
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On SIGINT and SIGTERM, removes the live labs and ends the process as the signal would have.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut signals = Signals::new([SIGINT, SIGTERM]).expect("the two signals can be handled");
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                eprintln!("interrupted: removing the lab");
                let labs = live().clone();
                for prefix in labs {
                    if let Err(error) = prefix.remove() {
                        eprintln!("{error:#}");
                    }
                }
                process::exit(128 + signal);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_directory_is_made_for_its_user_alone_and_never_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("lab");
        make_directory(&directory).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        let message = format!("{:#}", make_directory(&directory).unwrap_err());
        assert_eq!(message, format!("{}: not made: File exists (os error 17)", directory.display()));
        let link = folder.path().join("link");
        symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert!(make_directory(&link).is_err(), "a link that leads nowhere is not followed");
    }

    #[test]
    fn only_an_own_directory_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("lab");
        assert!(!is_ours(&directory), "it is not there");
        fs::create_dir(&directory).unwrap();
        assert!(is_ours(&directory));
        let link = folder.path().join("link");
        symlink(&directory, &link).unwrap();
        assert!(!is_ours(&link), "a link may lead anywhere");
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(!is_ours(&file));
        if geteuid().is_root() {
            std::os::unix::fs::chown(&directory, Some(65534), None).unwrap();
            assert!(!is_ours(&directory), "it is somebody else's");
        } else {
            assert!(!is_ours(Path::new("/proc/1")), "it is root's");
        }
    }
}
