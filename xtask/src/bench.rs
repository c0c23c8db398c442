//! `cargo xtask bench`: builds, and hands over to the testbed's bench.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use xtask::{bpf, folders};

use crate::{
    build, machine,
    setup::{self, Need},
};

/// What the bench is told.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is measured (stages, frames, ping-pong, queries); all without it
    #[arg(value_name = "PART")]
    parts: Vec<String>,
    /// Measures little of each, to see that the bench itself works
    #[arg(long)]
    quick: bool,
    /// How often each row is measured, in turns with all others
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Where the figures are written, instead of target/bench/bench.json
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the chart is written, instead of target/bench/bench.svg
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Names the object of the bench's own programs to those who load it.
pub(crate) const OBJECT_VARIABLE: &str = "EVENKEEL_BENCH_OBJECT";

const NEEDS_ROOT: &str = "the bench makes network namespaces: run it as root, or from a terminal where sudo can ask";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(machine::sudo().is_some(), NEEDS_ROOT);
    setup::ready(&[Need::Bpf, Need::Lab])?;
    let evenkeel = build::evenkeel(true)?;
    let object = bpf::build(&bpf::find()?, bpf::Object::Bench)?;
    let status = setup::cargo().args(["build", "--release", "--package", "testbed", "--bin", "bench"]).status();
    let status = status.context("cargo cannot be run")?;
    ensure!(status.success(), "the bench does not build: cargo ended with {status}");
    let bench = folders::target().join("release/bench");
    let mut command = machine::as_root(&bench).context(NEEDS_ROOT)?;
    command
        .env("EVENKEEL_BIN", evenkeel)
        .env(OBJECT_VARIABLE, object)
        .args(&arguments.parts)
        .args(arguments.quick.then_some("--quick"))
        .args(arguments.rounds.map(|rounds| format!("--rounds={rounds}")))
        .arg("--json")
        .arg(written(arguments.json.as_deref(), "bench.json"))
        .arg("--svg")
        .arg(written(arguments.svg.as_deref(), "bench.svg"));
    // In place of this process, so that its exit code is ours and a Ctrl-C is waited for until it has cleaned up.
    Err(command.exec()).with_context(|| format!("{} cannot be run", bench.display()))
}

fn written(asked: Option<&Path>, name: &str) -> PathBuf {
    asked.map_or_else(|| folders::target().join("bench").join(name), Path::to_path_buf)
}
