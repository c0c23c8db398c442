//! `cargo xtask demo`: builds, and hands over to the testbed's demo.

use std::{os::unix::process::CommandExt, process::ExitCode};

use anyhow::{Context, Result, ensure};
use xtask::folders;

use crate::{
    build, machine,
    setup::{self, Need},
};

/// What the demo is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leaves the lab up and says what to try next
    #[arg(long)]
    keep: bool,
    /// Removes the labs that were left up, by a demo that was killed too
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

const NEEDS_ROOT: &str = "the demo makes network namespaces: run it as root, or from a terminal where sudo can ask";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(machine::sudo().is_some(), NEEDS_ROOT);
    setup::ready(&[Need::Bpf, Need::Lab])?;
    let evenkeel = build::evenkeel(false)?;
    let status = setup::cargo().args(["build", "--package", "testbed", "--bin", "demo"]).status();
    let status = status.context("cargo cannot be run")?;
    ensure!(status.success(), "the demo does not build: cargo ended with {status}");
    let demo = folders::target().join("debug/demo");
    let mut command = machine::as_root(&demo).context(NEEDS_ROOT)?;
    command
        .env("EVENKEEL_BIN", evenkeel)
        .args(arguments.keep.then_some("--keep"))
        .args(arguments.down.then_some("--down"));
    // In place of this process, so that its exit code is ours and a Ctrl-C is waited for until it has cleaned up.
    Err(command.exec()).with_context(|| format!("{} cannot be run", demo.display()))
}
