//! Which compiler builds the kernel half.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{bpf, versions};

/// Names a compiler outright, before all that is found.
pub const EXPLICIT: &str = "EVENKEEL_BPF_RUSTC";

/// What the machine has that could compile for BPF.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The compiler that `EVENKEEL_BPF_RUSTC` names.
    pub explicit: Option<Rustc>,
    /// The compiler that builds the user side.
    pub running: Option<Rustc>,
    /// A nightly toolchain beside the running one.
    pub nightly: Option<Rustc>,
    /// The distribution's compiler, when another one is running.
    pub system: Option<Rustc>,
}

/// A compiler, and what of BPF comes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rustc {
    /// The compiler itself, never a proxy for it.
    pub path: PathBuf,
    /// The cargo that belongs to it.
    pub cargo: PathBuf,
    /// Where its libraries lie.
    pub sysroot: PathBuf,
    /// Its release, such as `1.95.0`.
    pub release: String,
    /// The major version of its LLVM.
    pub llvm: u32,
    /// Whether `core` for BPF is installed.
    pub has_library: bool,
    /// Whether the source of `core` is installed.
    pub has_source: bool,
}

/// The chosen compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The compiler.
    pub rustc: Rustc,
    /// Whether `core` has to be built first, from its source.
    pub builds_core: bool,
    /// Why it was chosen, as half a sentence.
    pub why: &'static str,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rustc { path, release, llvm, .. } = &self.rustc;
        write!(f, "{} ({release}, LLVM {llvm}): {}", path.display(), self.why)
    }
}

/// Chooses the compiler; the order is that of the doc comment of each line.
///
/// # Errors
///
/// When nothing fits: the message lists what was looked at, and what each lacks.
pub fn choose(machine: &Machine) -> Result<Choice> {
    let Machine { explicit, running, nightly, system } = machine;
    if let Some(rustc) = explicit {
        return with_any(rustc, "EVENKEEL_BPF_RUSTC names it").with_context(|| {
            format!("{}, which {EXPLICIT} names, has neither a core library for BPF nor rust-src", rustc.path.display())
        });
    }
    // A machine with the distribution's packages only.
    with_library(running, "the running compiler, which has a core library for BPF")
        // A toolchain of rustup's to which rust-src was added.
        .or_else(|| with_source(running, "the running compiler, which has rust-src to build core from"))
        .or_else(|| with_source(nightly, "nightly, which has rust-src to build core from"))
        // rustup is there without rust-src, and so are the distribution's packages.
        .or_else(|| with_library(system, "the distribution's compiler, which has a core library for BPF"))
        .with_context(|| format!("no compiler can build for BPF: {}", lacks(machine)))
}

fn with_any(rustc: &Rustc, why: &'static str) -> Option<Choice> {
    let rustc = Some(rustc.clone());
    with_library(&rustc, why).or_else(|| with_source(&rustc, why))
}

fn with_library(rustc: &Option<Rustc>, why: &'static str) -> Option<Choice> {
    let rustc = rustc.as_ref().filter(|rustc| rustc.has_library)?;
    Some(Choice { rustc: rustc.clone(), builds_core: false, why })
}

fn with_source(rustc: &Option<Rustc>, why: &'static str) -> Option<Choice> {
    let rustc = rustc.as_ref().filter(|rustc| rustc.has_source)?;
    Some(Choice { rustc: rustc.clone(), builds_core: true, why })
}

/// Says, route by route, why it is not taken.
fn lacks(machine: &Machine) -> String {
    let name = |rustc: &Option<Rustc>, lack: &str, none: &str| match rustc {
        Some(rustc) => format!("{} ({}) has {lack}", rustc.path.display(), rustc.release),
        None => none.to_owned(),
    };
    [
        name(&machine.running, "neither a core library for BPF nor rust-src", "no rustc runs"),
        name(&machine.nightly, "no rust-src", "there is no nightly toolchain"),
        name(&machine.system, "no core library for BPF", "there is no compiler of the distribution's besides"),
    ]
    .join("; ")
}

/// Describes this machine. Runs the compilers that are there, and starts no installation.
///
/// # Errors
///
/// When the compiler that `EVENKEEL_BPF_RUSTC` names does not run.
pub fn probe() -> Result<Machine> {
    let explicit = match env::var_os(EXPLICIT) {
        Some(path) => Some(describe(Path::new(&path)).with_context(|| format!("{EXPLICIT} names no compiler"))?),
        None => None,
    };
    // In a build script cargo says which compiler it uses.
    let running = describe(Path::new(&env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))).ok();
    let nightly = running.as_ref().and_then(|rustc| nightly_beside(&rustc.sysroot));
    let system = describe(Path::new("/usr/bin/rustc")).ok().filter(|system| Some(system) != running.as_ref());
    Ok(Machine { explicit, running, nightly, system })
}

/// rustup keeps its toolchains beside one another. Asking rustup itself could make it install one.
fn nightly_beside(sysroot: &Path) -> Option<Rustc> {
    let toolchains = sysroot.parent().filter(|folder| folder.ends_with("toolchains"))?;
    let is_nightly =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly"));
    let mut found: Vec<PathBuf> =
        fs::read_dir(toolchains).ok()?.flatten().map(|entry| entry.path()).filter(is_nightly).collect();
    found.retain(|path| path != sysroot);
    found.sort();
    let nightlies: Vec<Rustc> = found.iter().filter_map(|path| describe(&path.join("bin/rustc")).ok()).collect();
    nightlies.iter().find(|rustc| rustc.has_source).or(nightlies.first()).cloned()
}

fn describe(rustc: &Path) -> Result<Rustc> {
    let sysroot = PathBuf::from(bpf::first_line(Command::new(rustc).args(["--print", "sysroot"]))?);
    // rustup's `rustc` is a proxy that chooses by environment and folder; this is what it chose.
    let own = |name: &str| Some(sysroot.join("bin").join(name)).filter(|path| path.exists());
    let path = own("rustc").unwrap_or_else(|| rustc.to_path_buf());
    let cargo = own("cargo").unwrap_or_else(|| "cargo".into());
    let version = bpf::output(Command::new(&path).arg("-vV"))?;
    let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:").context("rustc -vV names no release")?.to_owned();
    let llvm = field("LLVM version:").and_then(|version| version.split('.').next()?.parse().ok());
    let llvm = llvm.context("rustc -vV names no LLVM version")?;
    let has_library = has_core(&sysroot.join("lib/rustlib").join(versions::BPF_TARGET).join("lib"));
    let has_source = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock").exists();
    Ok(Rustc { path, cargo, sysroot, release, llvm, has_library, has_source })
}

fn has_core(folder: &Path) -> bool {
    let is_core = |name: &str| name.starts_with("libcore-") && name.ends_with(".rlib");
    fs::read_dir(folder)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_str().is_some_and(is_core)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rustc(path: &str, has_library: bool, has_source: bool) -> Option<Rustc> {
        Some(Rustc {
            path: path.into(),
            cargo: "cargo".into(),
            sysroot: "/".into(),
            release: "1.95.0".into(),
            llvm: 22,
            has_library,
            has_source,
        })
    }

    fn check(machine: &Machine, path: &str, builds_core: bool) {
        let choice = choose(machine).unwrap();
        assert_eq!((choice.rustc.path.to_str().unwrap(), choice.builds_core), (path, builds_core));
    }

    /// A machine on which every route is open.
    fn everything() -> Machine {
        Machine {
            explicit: rustc("/opt/rustc", true, true),
            running: rustc("/rustup/rustc", true, true),
            nightly: rustc("/nightly/rustc", false, true),
            system: rustc("/usr/bin/rustc", true, false),
        }
    }

    #[test]
    fn an_explicit_choice_comes_first() {
        check(&everything(), "/opt/rustc", false);
        check(&Machine { explicit: rustc("/opt/rustc", false, true), ..everything() }, "/opt/rustc", true);
    }

    #[test]
    fn an_explicit_choice_that_cannot_be_is_refused_and_not_replaced() {
        let machine = Machine { explicit: rustc("/opt/rustc", false, false), ..everything() };
        assert_eq!(
            choose(&machine).unwrap_err().to_string(),
            "/opt/rustc, which EVENKEEL_BPF_RUSTC names, has neither a core library for BPF nor rust-src"
        );
    }

    #[test]
    fn the_running_compiler_comes_before_all_others() {
        let machine = Machine { explicit: None, ..everything() };
        check(&machine, "/rustup/rustc", false);
        check(&Machine { running: rustc("/rustup/rustc", false, true), ..machine }, "/rustup/rustc", true);
    }

    #[test]
    fn nightly_with_source_comes_before_the_distributions() {
        let machine = Machine { explicit: None, running: rustc("/rustup/rustc", false, false), ..everything() };
        check(&machine, "/nightly/rustc", true);
    }

    #[test]
    fn the_distributions_compiler_serves_beside_a_rustup_without_source() {
        let machine = Machine {
            running: rustc("/rustup/rustc", false, false),
            nightly: rustc("/nightly/rustc", false, false),
            system: rustc("/usr/bin/rustc", true, false),
            ..Machine::default()
        };
        check(&machine, "/usr/bin/rustc", false);
    }

    #[test]
    fn a_machine_with_nothing_is_told_what_each_route_lacks() {
        let machine = Machine { running: rustc("/rustup/rustc", false, false), ..Machine::default() };
        assert_eq!(
            choose(&machine).unwrap_err().to_string(),
            "no compiler can build for BPF: /rustup/rustc (1.95.0) has neither a core library for BPF nor rust-src; \
             there is no nightly toolchain; there is no compiler of the distribution's besides"
        );
    }

    #[test]
    fn the_compiler_that_compiled_this_is_described() {
        let machine = probe().unwrap();
        let running = machine.running.unwrap();
        assert!(running.path.exists() && running.llvm > 0, "{running:?}");
    }
}
