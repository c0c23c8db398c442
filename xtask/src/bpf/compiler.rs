//! Which compiler builds the kernel half.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, COMPILER_VARIABLE, LINKER_VARIABLE},
    versions,
};

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
    /// Whether `EVENKEEL_BPF_LINKER` names a linker, whose LLVM its user knows and we do not.
    pub has_own_linker: bool,
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
    if let Some(rustc) = &machine.explicit {
        return with_any(rustc, "EVENKEEL_BPF_RUSTC names it").with_context(|| {
            format!(
                "{}, which {COMPILER_VARIABLE} names, has neither a core library for BPF nor rust-src",
                rustc.path.display()
            )
        });
    }
    // Those that the linker fits first, so that a linker which is named changes nothing where one of them is.
    in_order(machine, |rustc| is_linkable(rustc.llvm))
        .or_else(|| in_order(machine, |_| machine.has_own_linker))
        .with_context(|| format!("no compiler can build for BPF: {}", lacks(machine)))
}

/// Returns whether the pinned linker is built with this LLVM, and so reads what a compiler with it writes.
pub fn is_linkable(llvm: u32) -> bool {
    versions::BPF_LINKER_LLVM.contains(&llvm)
}

fn in_order(machine: &Machine, fits: impl Fn(&Rustc) -> bool) -> Option<Choice> {
    let fitting = |rustc: &Option<Rustc>| rustc.clone().filter(|rustc| fits(rustc));
    let (running, nightly, system) =
        (&fitting(&machine.running), &fitting(&machine.nightly), &fitting(&machine.system));
    // A machine with the distribution's packages only.
    with_library(running, "the running compiler, which has a core library for BPF")
        // A toolchain of rustup's to which rust-src was added.
        .or_else(|| with_source(running, "the running compiler, which has rust-src to build core from"))
        .or_else(|| with_source(nightly, "nightly, which has rust-src to build core from"))
        // rustup is there without rust-src, and so are the distribution's packages.
        .or_else(|| with_library(system, "the distribution's compiler, which has a core library for BPF"))
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
    let name = |rustc: &Option<Rustc>, is_equipped: fn(&Rustc) -> bool, lack: &str, none: &str| match rustc {
        Some(rustc) if is_equipped(rustc) => format!(
            "{} ({}) has LLVM {}, and bpf-linker {} is built here with {:?}",
            rustc.path.display(),
            rustc.release,
            rustc.llvm,
            versions::BPF_LINKER,
            versions::BPF_LINKER_LLVM
        ),
        Some(rustc) => format!("{} ({}) has {lack}", rustc.path.display(), rustc.release),
        None => none.to_owned(),
    };
    let has_either = |rustc: &Rustc| rustc.has_library || rustc.has_source;
    let none_of_the_system = "there is no compiler of the distribution's besides";
    [
        name(&machine.running, has_either, "neither a core library for BPF nor rust-src", "no rustc runs"),
        name(&machine.nightly, |rustc| rustc.has_source, "no rust-src", "there is no nightly toolchain"),
        name(&machine.system, |rustc| rustc.has_library, "no core library for BPF", none_of_the_system),
        format!("{COMPILER_VARIABLE} can name another one"),
    ]
    .join("; ")
}

/// Describes this machine. Runs the compilers that are there, and starts no installation.
///
/// # Errors
///
/// When the compiler that `EVENKEEL_BPF_RUSTC` names does not run.
pub fn probe() -> Result<Machine> {
    let explicit = match env::var_os(COMPILER_VARIABLE) {
        Some(path) => {
            Some(describe(Path::new(&path)).with_context(|| format!("{COMPILER_VARIABLE} names no compiler"))?)
        }
        None => None,
    };
    // In a build script cargo says which compiler it uses.
    let running = describe(Path::new(&env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))).ok();
    let nightly = running.as_ref().and_then(|rustc| nightly_beside(&rustc.sysroot));
    let system = describe(Path::new("/usr/bin/rustc")).ok().filter(|system| Some(system) != running.as_ref());
    let has_own_linker = env::var_os(LINKER_VARIABLE).is_some();
    Ok(Machine { explicit, running, nightly, system, has_own_linker })
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
    let with_source = || nightlies.iter().filter(|rustc| rustc.has_source);
    let fitting = with_source().find(|rustc| is_linkable(rustc.llvm));
    fitting.or(with_source().next()).or(nightlies.first()).cloned()
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
            has_own_linker: false,
        }
    }

    /// The same with an LLVM that the linker is not built with.
    fn newer(rustc: Option<Rustc>) -> Option<Rustc> {
        rustc.map(|rustc| Rustc { llvm: 99, release: "1.199.0".into(), ..rustc })
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
             there is no nightly toolchain; there is no compiler of the distribution's besides; \
             EVENKEEL_BPF_RUSTC can name another one"
        );
    }

    #[test]
    fn a_compiler_whose_llvm_the_linker_does_not_fit_comes_after_all_that_it_fits() {
        let all = Machine { explicit: None, ..everything() };
        let running_newer = Machine { running: newer(all.running.clone()), ..all.clone() };
        check(&running_newer, "/nightly/rustc", true);
        let both_newer = Machine { nightly: newer(all.nightly.clone()), ..running_newer };
        check(&both_newer, "/usr/bin/rustc", false);
        check(&Machine { has_own_linker: true, ..both_newer }, "/usr/bin/rustc", false);
    }

    #[test]
    fn where_the_linker_fits_no_compiler_the_way_out_is_told() {
        let machine =
            Machine { running: newer(rustc("/rustup/rustc", false, true)), nightly: None, ..Machine::default() };
        assert_eq!(
            choose(&machine).unwrap_err().to_string(),
            "no compiler can build for BPF: /rustup/rustc (1.199.0) has LLVM 99, and bpf-linker 0.13.0 is built here \
             with [22]; there is no nightly toolchain; there is no compiler of the distribution's besides; \
             EVENKEEL_BPF_RUSTC can name another one"
        );
    }

    #[test]
    fn a_linker_or_a_compiler_that_is_named_is_taken_at_its_word() {
        let newer_only = Machine { running: newer(rustc("/rustup/rustc", false, true)), ..Machine::default() };
        check(&Machine { has_own_linker: true, ..newer_only.clone() }, "/rustup/rustc", true);
        check(&Machine { explicit: newer(rustc("/opt/rustc", true, false)), ..newer_only }, "/opt/rustc", false);
    }

    #[test]
    fn the_compiler_that_compiled_this_is_described() {
        let machine = probe().unwrap();
        let running = machine.running.unwrap();
        assert!(running.path.exists() && running.llvm > 0, "{running:?}");
    }
}
