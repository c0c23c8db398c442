//! `cargo xtask build`: both halves.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use xtask::{bpf, folders};

use crate::setup::{self, Need};

/// What is built, and how.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Builds what is shipped rather than what is debugged
    #[arg(long)]
    release: bool,
    /// Builds the kernel half alone and prints where its object is
    #[arg(long, conflicts_with = "release")]
    bpf: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ready(&[Need::Bpf])?;
    let built =
        if arguments.bpf { bpf::build(&bpf::find()?, bpf::Object::Plain)? } else { evenkeel(arguments.release)? };
    println!("{}", built.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the command and returns its path. Its build script builds the kernel half, which it carries.
pub(crate) fn evenkeel(release: bool) -> Result<PathBuf> {
    let mut command = setup::cargo();
    command.args(["build", "--package", "lb-userspace", "--bin", "evenkeel"]).args(release.then_some("--release"));
    let status = command.status().context("cargo cannot be run")?;
    ensure!(status.success(), "evenkeel does not build: cargo ended with {status}");
    Ok(folders::target().join(if release { "release/evenkeel" } else { "debug/evenkeel" }))
}
