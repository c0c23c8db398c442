//! `cargo xtask check`: what a change has to pass besides the tests.

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use xtask::{
    bpf::{self, Toolchain},
    folders,
};

use crate::{
    setup::{self, Need, tools},
    step,
};

pub(crate) fn run() -> Result<ExitCode> {
    setup::ready(&[Need::Bpf, Need::Audit])?;
    let toolchain = bpf::find()?;
    let checks: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("format", &format),
        ("clippy, user side", &|| clippy("clippy, user side")),
        ("clippy, kernel half", &|| kernel_half(&toolchain)),
        ("documentation", &documentation),
        ("licences, bans and sources of dependencies", &dependencies),
        ("spelling", &spelling),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        if let Err(error) = check() {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    eprintln!("  advisories: not run, they need a network (`cargo deny check advisories`)");
    if failed.is_empty() {
        println!("Everything was found in order.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("Not in order: {}.", failed.join("; "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Result<()> {
    step::run("format", setup::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(label: &str) -> Result<()> {
    step::run(label, setup::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]))
}

/// The compiler that builds the kernel half also lints it. Where it has no clippy, its own warnings have to do.
fn kernel_half(toolchain: &Toolchain) -> Result<()> {
    let rustc = &toolchain.compiler.rustc.path;
    let has_clippy = rustc.parent().is_some_and(|folder| folder.join("clippy-driver").exists());
    let folder = folders::target().join("bpf-check");
    if has_clippy {
        return step::run("clippy, kernel half", &mut bpf::cargo(toolchain, "clippy", &folder, &["-Dwarnings"]));
    }
    let label = format!("warnings, kernel half ({} has no clippy)", rustc.display());
    step::run(&label, &mut bpf::cargo(toolchain, "build", &folder, &["-Dwarnings"]))
}

fn documentation() -> Result<()> {
    let mut command = setup::cargo();
    command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-Dwarnings");
    step::run("documentation", &mut command)
}

fn dependencies() -> Result<()> {
    let mut command = Command::new(tools::deny()?);
    command.args(["--workspace", "check", "bans", "licenses", "sources"]).current_dir(folders::workspace());
    step::run("licences, bans and sources of dependencies", &mut command)
}

fn spelling() -> Result<()> {
    let Some(typos) = tools::typos() else {
        eprintln!("  spelling: not run, typos cannot be had here without a long build");
        return Ok(());
    };
    step::run("spelling", Command::new(typos).current_dir(folders::workspace()))
        .with_context(|| format!("what is no mistake goes into {}", Path::new("typos.toml").display()))
}
