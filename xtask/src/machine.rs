//! What the machine lets us do: who we are, which commands there are.

use std::{
    env, fs,
    io::{self, IsTerminal},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use xtask::bpf;

/// Returns whether we are root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Returns whether the environment says that this is a continuous integration's run.
pub(crate) fn is_ci() -> bool {
    env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false")
}

/// Finds a command, also where only root's `PATH` leads.
pub(crate) fn find(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(command)).find(|path| path.is_file())
}

/// Returns how root's rights are had: nothing in front for root, `sudo` for others, `None` where there is no way.
pub(crate) fn sudo() -> Option<&'static [&'static str]> {
    if is_root() {
        return Some(&[]);
    }
    find("sudo")?;
    let may_ask = io::stdin().is_terminal();
    let asks_nothing = || {
        let tried = Command::new("sudo").args(["-n", "true"]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    (may_ask || asks_nothing()).then_some(&["sudo", "-E"])
}

/// Returns a command that runs as root, or `None` where there is no way to.
pub(crate) fn as_root(program: &Path) -> Option<Command> {
    let mut words = sudo()?.iter();
    let Some(first) = words.next() else { return Some(bpf::clean(program)) };
    let mut command = bpf::clean(Path::new(first));
    command.args(words).arg(program);
    Some(command)
}
