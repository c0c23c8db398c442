//! `cargo xtask setup`, and the part of it that each other verb asks for.
//!
//! It looks first, and touches the machine only for what is missing. What it installs it names, with the reason.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use xtask::{
    bpf::{self, compiler, linker},
    versions,
};

use crate::{machine, setup::packages::Package, step};

pub(crate) mod packages;
pub(crate) mod tools;

/// What a verb needs before it can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A compiler and a linker for the kernel half.
    Bpf,
    /// The real servers and clients, and what builds the lab around them.
    Lab,
    /// The lints of the chosen BPF compiler, and the auditors of dependencies and of spelling.
    Audit,
    /// What builds the fuzz target.
    Fuzz,
}

pub(crate) fn run() -> Result<ExitCode> {
    ready(&[Need::Bpf, Need::Lab, Need::Audit, Need::Fuzz])?;
    let toolchain = bpf::find()?;
    println!("BPF linker: {}", toolchain.linker.display());
    println!("Everything is there: `cargo xtask demo` shows Evenkeel, `cargo xtask test` tests it.");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure of what is needed.
///
/// # Errors
///
/// When something is missing and cannot be had: one sentence says what, and what to do.
pub(crate) fn ready(needs: &[Need]) -> Result<()> {
    for need in needs {
        match need {
            Need::Bpf => bpf_toolchain()?,
            Need::Lab => packages::install(packages::LAB)?,
            Need::Audit => audit()?,
            Need::Fuzz => {
                packages::install(packages::FUZZ)?;
                tools::cargo_fuzz()?;
            }
        }
    }
    Ok(())
}

/// Returns the cargo that runs this, or the one in `PATH`.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(xtask::folders::workspace());
    command
}

fn bpf_toolchain() -> Result<()> {
    let compiler = compiler()?;
    // Each time, since nothing else tells which of several it is.
    eprintln!("setup: BPF compiler: {compiler}");
    if linker::find(compiler.rustc.llvm).is_err() {
        if std::env::var_os(bpf::LINKER_VARIABLE).is_some() {
            linker::find(compiler.rustc.llvm)?;
        }
        eprintln!("setup: building bpf-linker, because the kernel half is linked with it");
        let label =
            format!("bpf-linker {} with LLVM {} (about two minutes)", versions::BPF_LINKER, compiler.rustc.llvm);
        linker::install(&compiler.rustc, |command| step::run(&label, command))?;
    }
    Ok(())
}

fn compiler() -> Result<compiler::Choice> {
    let lack = match compiler::choose(&compiler::probe()?) {
        Ok(choice) => return Ok(choice),
        Err(lack) => lack,
    };
    if std::env::var_os(bpf::COMPILER_VARIABLE).is_some() {
        return Err(lack);
    }
    eprintln!("setup: {lack:#}");
    let mut tried = Vec::new();
    for (name, attempt) in ATTEMPTS {
        if let Err(error) = attempt() {
            tried.push(format!("{name}: {error:#}"));
            continue;
        }
        match compiler::choose(&compiler::probe()?) {
            Ok(choice) => return Ok(choice),
            Err(_) => tried.push(format!("{name}: done, and still no compiler builds for BPF")),
        }
    }
    Err(lack).with_context(|| format!("no BPF compiler can be had ({})", tried.join("; ")))
}

type Attempt = fn() -> Result<()>;

/// The ways to a BPF compiler, in the order they are tried. The distribution's packages come before rustup,
/// whose server cannot be reached from every machine.
const ATTEMPTS: [(&str, Attempt); 2] =
    [("the distribution's packages", || packages::install(packages::COMPILER)), ("rustup", rust_src)];

fn rust_src() -> Result<()> {
    if machine::find("rustup").is_none() {
        bail!("not installed");
    }
    let running = compiler::probe()?.running;
    if let Some(llvm) = running.map(|rustc| rustc.llvm).filter(|llvm| !compiler::is_linkable(*llvm)) {
        bail!("its compiler has LLVM {llvm}, which bpf-linker is not built with here");
    }
    eprintln!("setup: adding rust-src to the running toolchain, because core for BPF is built from it");
    let at_most = std::time::Duration::from_secs(60);
    step::bounded(
        "rustup component add rust-src",
        Command::new("rustup").args(["component", "add", "rust-src"]),
        at_most,
    )
}

/// The distribution's compiler has its lints and its formatter in packages of their own; rustup's come with it.
fn audit() -> Result<()> {
    let machine = compiler::probe()?;
    let is_distributions = |rustc: &compiler::Rustc| rustc.path.starts_with("/usr/bin");
    if machine.running.as_ref().is_some_and(is_distributions) {
        packages::install(packages::FORMAT)?;
    }
    if compiler::choose(&machine).is_ok_and(|choice| is_distributions(&choice.rustc))
        && packages::install(packages::LINTS).is_err()
    {
        eprintln!("setup: the distribution's clippy cannot be had: the kernel half is checked by its compiler alone");
    }
    tools::deny()?;
    tools::typos();
    Ok(())
}

/// Names packages, for a sentence.
fn listed(packages: &[&Package]) -> String {
    packages.iter().map(|package| package.name).collect::<Vec<_>>().join(" ")
}
