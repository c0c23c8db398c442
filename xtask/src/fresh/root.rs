//! A Debian in a folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    fresh::{apt, cargo_home},
    machine,
    setup::packages,
    step,
};

/// A root that is removed when dropped, unless it is to be kept.
pub(crate) struct Root {
    folder: PathBuf,
    keep: bool,
}

impl Root {
    /// Makes a root with what Debian calls its minimal base, and nothing of Rust.
    pub(crate) fn make(folder: &Path, keep: bool) -> Result<Root> {
        packages::install(packages::FRESH)?;
        let debootstrap = machine::find("debootstrap").context("debootstrap was installed and is not there")?;
        sweep(folder);
        let root = Root { folder: folder.to_path_buf(), keep };
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        // It mounts /proc and /sys in the folder. Were it interrupted, they must not be there when the folder is removed.
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]).arg(debootstrap);
        command.args(["--variant=minbase", "--include=ca-certificates", apt::RELEASE]).arg(folder).arg(apt::mirror()?);
        step::run("debootstrap", &mut command)?;
        Ok(root)
    }

    /// Returns a path inside the root.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Lets the root reach what this machine reaches: names, packages, crates. What it trusts comes along.
    pub(crate) fn prepare(&self) -> Result<()> {
        let mut command = Command::new("sh");
        command.args(["-ec", PREPARE, "prepare"]).arg(&self.folder).arg(cargo_home()?);
        step::run("this machine's sources and certificates", &mut command)
    }

    /// Runs a script inside.
    pub(crate) fn run(&self, label: &str, script: &str) -> Result<()> {
        step::run(label, &mut self.command(script))
    }

    /// Runs a verb of ours inside, with its output on the screen, and checks that it left nothing.
    pub(crate) fn verb(&self, verb: &str) -> Result<()> {
        let status = self.command(&format!("{VERB}\nverb {verb}")).status().context("unshare cannot be run")?;
        ensure!(status.success(), "`cargo xtask {verb}` ended with {status}, or left what is named above");
        Ok(())
    }

    fn command(&self, script: &str) -> Command {
        let mut command = xtask::bpf::clean(Path::new("unshare"));
        // All processes of a namespace end with its first, and all its mounts with the last of them.
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--"]);
        command.args(["sh", "-ec", ENTER, "enter"]).arg(&self.folder).arg(script);
        for name in ["CARGO_HOME", "RUSTUP_HOME", "CI", "LD_LIBRARY_PATH", "TMPDIR"] {
            command.env_remove(name);
        }
        command
            .env("HOME", "/srv")
            .env("PATH", "/srv/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Removes the roots beside this one whose runs were interrupted; their names end with a process that is gone.
fn sweep(folder: &Path) {
    let beside = folder.parent().and_then(|parent| fs::read_dir(parent).ok());
    for path in beside.into_iter().flatten().flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let process = name.strip_prefix("fresh-").and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            eprintln!("Removing what an interrupted run left: {}", path.display());
            // What cannot be removed now is named again by the next run.
            let _ = fs::remove_dir_all(&path);
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if self.keep {
            eprintln!("Left for you: {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left: {error}", self.folder.display());
        }
    }
}

/// Copies into the root `$1` what this machine reaches packages and crates by; `$2` is its cargo's folder.
const PREPARE: &str = r#"
etc=$1/etc
rm -rf "$etc/apt/sources.list" "$etc/apt/sources.list.d"
for path in apt/sources.list apt/sources.list.d apt/auth.conf.d apt/trusted.gpg.d resolv.conf hosts ssl/certs; do
    if [ -e "/etc/$path" ]; then
        mkdir -p "$etc/$path" && rm -rf "$etc/$path"
        cp -rL "/etc/$path" "$etc/$path"
    fi
done
# Of apt's settings those of the network alone: others call programs that are not there.
for file in /etc/apt/apt.conf /etc/apt/apt.conf.d/*; do
    if [ -f "$file" ] && grep -q 'Acquire::' "$file"; then
        mkdir -p "$1$(dirname "$file")"
        grep 'Acquire::' "$file" >"$1$file"
    fi
done
if [ -d /usr/share/keyrings ]; then cp -rL /usr/share/keyrings/. "$1/usr/share/keyrings"; fi
mkdir -p "$1/srv/.cargo"
for file in config config.toml; do
    if [ -f "$2/$file" ]; then cp -L "$2/$file" "$1/srv/.cargo/"; fi
done
"#;

/// Goes into the root `$1` and runs the script `$2` there.
const ENTER: &str = r#"
root=$1
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/lock"
exec chroot "$root" sh -ec "$2"
"#;

/// Runs a verb and compares what is there before and after it: namespaces, links, pins, processes, mounts.
const VERB: &str = r#"
state() {
    # `ip` comes with the set-up; before it nothing can have been made.
    ls /run/netns 2>/dev/null | sed 's/^/namespace /'
    ls /sys/class/net | sed 's/^/link /'
    find /sys/fs/bpf -mindepth 1 2>/dev/null | sed 's/^/pin /'
    awk '{ print "mount " $2 }' /proc/mounts
    for process in /proc/[0-9]*; do
        name=$(cat $process/comm 2>/dev/null) || continue
        case $name in sh|ls|sed|find|awk|cat|sort) ;; *) echo "process $name" ;; esac
    done
}
verb() {
    cd /srv/evenkeel
    state | sort >/tmp/before
    code=0
    cargo xtask "$@" || code=$?
    sleep 1
    state | sort >/tmp/after
    # An empty folder for namespaces stays mounted on itself once `ip netns` made one.
    if ! left=$(diff /tmp/before /tmp/after | grep '^>' | grep -v ' mount /run/netns$'); then left=; fi
    if [ -n "$left" ]; then
        echo "left behind by cargo xtask $*:"
        echo "$left"
        code=1
    fi
    exit $code
}
"#;
