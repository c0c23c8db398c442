//! `cargo xtask fresh`: a plain Debian 12 in a folder, a fresh clone in it, and the demo run twice.
//!
//! The mounts and processes live in namespaces of their own, which end with the run; the folder is removed after it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{bpf, folders};

use crate::{fresh::root::Root, machine, step};

mod apt;
mod root;

/// How the clone in the new root gets its Rust, and what is run there.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rust of Debian's own packages, and nothing else; both ways without either flag
    #[arg(long)]
    distribution_rust: bool,
    /// A copy of the running rustup toolchain, without rust-src
    #[arg(long)]
    rustup: bool,
    /// Leaves the folder, to look into
    #[arg(long)]
    keep: bool,
    /// The verb that is run twice, with its arguments
    #[arg(last = true, default_value = "demo")]
    verb: Vec<String>,
}

/// Where the Rust of the new root comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rust {
    Distribution,
    Rustup,
}

/// How long the demo may take from nothing.
const FIRST: Duration = Duration::from_secs(12 * 60);

/// How long it may take when all is there.
const AGAIN: Duration = Duration::from_secs(90);

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(machine::is_root(), "fresh makes a Debian of its own, which takes root: run it as root");
    let asked = [(arguments.distribution_rust, Rust::Distribution), (arguments.rustup, Rust::Rustup)];
    let both = !arguments.distribution_rust && !arguments.rustup;
    let mut code = ExitCode::SUCCESS;
    for (_, rust) in asked.into_iter().filter(|(asked, _)| *asked || both) {
        match prove(rust, arguments) {
            Ok((first, again)) => {
                println!("{rust:?}: from nothing {} s, again {} s, nothing left", first.as_secs(), again.as_secs());
            }
            Err(error) => {
                println!("{rust:?}: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn prove(rust: Rust, arguments: &Arguments) -> Result<(Duration, Duration)> {
    let root = Root::make(&folders::target().join(format!("fresh-{}", std::process::id())), arguments.keep)?;
    root.prepare()?;
    match rust {
        Rust::Distribution => root.run(
            "Debian's Rust",
            "apt-get -q update && apt-get -q -y --no-install-recommends install rustc-web cargo-web",
        )?,
        Rust::Rustup => {
            root.run(
                "a C linker, which rustup asks for",
                "apt-get -q update && apt-get -q -y --no-install-recommends install gcc libc6-dev",
            )?;
            copy_toolchain(&root)?;
        }
    }
    clone(&root)?;
    let verb = arguments.verb.join(" ");
    let begin = Instant::now();
    root.verb(&verb)?;
    let first = begin.elapsed();
    let begin = Instant::now();
    root.verb(&verb)?;
    let again = begin.elapsed();
    if arguments.verb[0] == "demo" {
        ensure!(first <= FIRST, "from nothing it took {} s, and {} are allowed", first.as_secs(), FIRST.as_secs());
        ensure!(again <= AGAIN, "again it took {} s, and {} are allowed", again.as_secs(), AGAIN.as_secs());
    }
    Ok((first, again))
}

/// What was committed, and nothing that only lies about.
fn clone(root: &Root) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["clone", "--quiet", "--no-hardlinks"]).arg(folders::workspace()).arg(root.path("srv/evenkeel"));
    step::run("a fresh clone", &mut command)
}

/// Copies the running toolchain to where rustup would have put it, without its sources and its books.
fn copy_toolchain(root: &Root) -> Result<()> {
    let machine = bpf::compiler::probe()?;
    let running = machine.running.context("no rustc runs")?;
    let sysroot = running.sysroot;
    if sysroot.starts_with("/usr") && !sysroot.starts_with("/usr/local") {
        bail!("the running toolchain is the distribution's: run this from rustup's stable");
    }
    let home = cargo_home()?;
    let name = sysroot.file_name().context("the toolchain has a name")?;
    let toolchain = root.path("srv/.rustup/toolchains").join(name);
    let mut command = Command::new("sh");
    command
        .args(["-ec", COPY, "copy"])
        .arg(&sysroot)
        .arg(&toolchain)
        .arg(home.join("bin"))
        .arg(root.path("srv/.cargo/bin"));
    step::run("a copy of the running toolchain, without rust-src", &mut command)?;
    let settings = format!("version = \"12\"\ndefault_toolchain = \"{}\"\n", name.to_string_lossy());
    fs::write(root.path("srv/.rustup/settings.toml"), settings).context("rustup's settings cannot be written")
}

/// Copies the toolchain `$1` to `$2` and rustup's proxies `$3` to `$4`.
const COPY: &str = r#"
mkdir -p "$2" "$4"
(cd "$1" && tar -c --exclude=./share --exclude=./lib/rustlib/src .) | tar -x -C "$2"
for proxy in cargo rustc rustdoc rustup; do cp -a "$3/$proxy" "$4/"; done
"#;

/// Returns the folder of the user's cargo.
fn cargo_home() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("neither CARGO_HOME nor HOME is set")
}
