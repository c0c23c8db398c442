//! Builds the kernel half: compiler, linker, child cargo, gate.
//!
//! The choice of a compiler is a pure function ([`compiler::choose`]) of a description of the machine
//! ([`compiler::Machine`]); what is looked up or run lies around it.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{folders, versions};

pub mod compiler;
pub mod gate;
pub mod linker;

/// The compiler and the linker that build the kernel half.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The chosen compiler, and why it was chosen.
    pub compiler: compiler::Choice,
    /// The path of the BPF linker.
    pub linker: PathBuf,
}

/// Names a linker outright, before all that is found.
pub const LINKER_VARIABLE: &str = "EVENKEEL_BPF_LINKER";

/// Names a compiler outright, before all that is found.
pub const COMPILER_VARIABLE: &str = "EVENKEEL_BPF_RUSTC";

/// The package that holds the kernel half.
const PACKAGE: &str = "lb-ebpf";

/// An object of the kernel half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// What is loaded as a rule.
    Plain,
    /// The same with the decision trace.
    Tracing,
    /// The programs that `cargo xtask bench` measures with.
    Bench,
}

impl Object {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Tracing, Self::Bench];

    /// Where it is, once it is built.
    pub fn path(self) -> PathBuf {
        self.folder().join(versions::BPF_TARGET).join("bpf").join(self.binary())
    }

    /// That with the trace in a folder of its own, so that it and the plain one are not built anew because of each other.
    fn folder(self) -> PathBuf {
        folders::target().join(match self {
            Self::Plain | Self::Bench => "bpf",
            Self::Tracing => "bpf-tracing",
        })
    }

    const fn binary(self) -> &'static str {
        match self {
            Self::Plain | Self::Tracing => "evenkeel-ebpf",
            Self::Bench => "evenkeel-bench-ebpf",
        }
    }

    const fn features(self) -> &'static str {
        match self {
            Self::Plain | Self::Bench => "bpf",
            Self::Tracing => "bpf,trace",
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "kernel half",
            Self::Tracing => "kernel half with the trace",
            Self::Bench => "the bench's programs",
        })
    }
}

/// What a change of makes another object.
pub const SOURCES: &[&str] =
    &["lb-ebpf/src", "lb-ebpf/Cargo.toml", "lb-common/src", "lb-common/Cargo.toml", "Cargo.toml", "Cargo.lock"];

/// Finds the compiler and the linker, installing nothing.
///
/// # Errors
///
/// When one is missing: the sentence says which, and to run `cargo xtask setup`.
pub fn find() -> Result<Toolchain> {
    let compiler = compiler::choose(&compiler::probe()?)
        .context("no BPF compiler is in reach: run `cargo xtask setup`, which gets one")?;
    let linker = linker::find(compiler.rustc.llvm)
        .context("no BPF linker is in reach: run `cargo xtask setup`, which builds one")?;
    Ok(Toolchain { compiler, linker })
}

/// Builds an object of the kernel half and returns its path.
///
/// # Errors
///
/// When it does not compile, when the object contains a panic, which the kernel would not load, or when it handles
/// memory byte by byte.
pub fn build(toolchain: &Toolchain, object: Object) -> Result<PathBuf> {
    run(&mut cargo(toolchain, "build", object, &object.folder(), &[]))?;
    let object = object.path();
    let bytes = fs::read(&object).with_context(|| format!("{} was built but cannot be read", object.display()))?;
    gate::check(&bytes).with_context(|| format!("{}", object.display()))?;
    gate::check_speed(&bytes).with_context(|| format!("{}", object.display()))?;
    Ok(object)
}

/// Returns the command that lets the chosen toolchain do `verb` (`build`, `clippy`) to an object of the kernel half.
///
/// `flags` are added to those of the compiler, such as `-Dwarnings`.
pub fn cargo(toolchain: &Toolchain, verb: &str, object: Object, folder: &Path, flags: &[&str]) -> Command {
    let compiler = &toolchain.compiler;
    let mut command = clean(&compiler.rustc.cargo);
    command
        .current_dir(folders::workspace())
        .args([verb, "--package", PACKAGE, "--bin", object.binary()])
        .args(["--no-default-features", "--features", object.features()])
        .args(["--profile", "bpf", "--target", versions::BPF_TARGET, "--target-dir"])
        .arg(folder);
    if compiler.builds_core {
        command.args(["-Z", "build-std=core"]);
    }
    command
        .env("RUSTC", &compiler.rustc.path)
        // A stable compiler knows the BPF target, but hands it out only when asked like this.
        .env("RUSTC_BOOTSTRAP", "1")
        // Set and empty, they win over a user's cargo configuration.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain.linker, flags))
        .env("PATH", path_with(&compiler.rustc.path));
    command
}

fn rustflags(linker: &Path, more: &[&str]) -> OsString {
    let mut flags = OsString::from("-Cdebuginfo=2\x1f-Clink-arg=--btf\x1f-Clinker=");
    flags.push(linker);
    flags.push(format!("\x1f-Ctarget-cpu={}", versions::BPF_CPU));
    for flag in more {
        flags.push("\x1f");
        flags.push(flag);
    }
    flags
}

/// `cargo clippy` finds `cargo-clippy` and `clippy-driver` by `PATH`: the compiler's own have to come first.
fn path_with(rustc: &Path) -> OsString {
    let mut path = rustc.parent().map(OsString::from).unwrap_or_default();
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

/// Returns a command without what a calling cargo, rustup or build script left in the environment.
///
/// A user's own settings for the network and the registries (`CARGO_HOME`, `CARGO_HTTP_…`) stay.
pub fn clean(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_caller) {
            command.env_remove(name);
        }
    }
    command
}

fn is_of_the_caller(name: &str) -> bool {
    const KEPT: &[&str] = &[
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    const DROPPED: &[&str] = &[
        "DEBUG",
        "HOST",
        "MAKEFLAGS",
        "MFLAGS",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_BOOTSTRAP",
        "RUSTC_LINKER",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "TARGET",
    ];
    let of_cargo = name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept));
    of_cargo || DROPPED.contains(&name)
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("{program} cannot be run"))?;
    ensure!(status.success(), "the kernel half does not build: {program} ended with {status}");
    Ok(())
}

/// Runs a command for its first line of output.
fn first_line(command: &mut Command) -> Result<String> {
    let text = output(command)?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Runs a command for its output.
fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{program} cannot be run"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_build_script_was_told_does_not_reach_the_child() {
        for name in
            ["CARGO", "CARGO_PKG_NAME", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTUP_TOOLCHAIN", "TARGET"]
        {
            assert!(is_of_the_caller(name), "{name}");
        }
    }

    #[test]
    fn the_users_own_settings_reach_the_child() {
        for name in
            ["CARGO_HOME", "CARGO_HTTP_CAINFO", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_INDEX", "HOME", "RUSTUP_HOME"]
        {
            assert!(!is_of_the_caller(name), "{name}");
        }
    }

    #[test]
    fn flags_of_the_compiler_are_kept_apart() {
        let flags = rustflags(Path::new("/a b/bpf-linker"), &["-Dwarnings"]);
        let flags: Vec<&str> = flags.to_str().unwrap().split('\x1f').collect();
        assert_eq!(
            flags,
            ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clinker=/a b/bpf-linker", "-Ctarget-cpu=v3", "-Dwarnings"]
        );
    }
}
