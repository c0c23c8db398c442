//! `cargo xtask bench`; the work is in `testbed::bench`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use nix::unistd::geteuid;
use testbed::bench::{Options, Part, run};

/// Measures Evenkeel beside nft, iptables and plain routing, in network namespaces.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Bench {
    /// What is measured; all without it
    #[arg(value_name = "PART", value_parser = part)]
    parts: Vec<Part>,
    /// Measure little of each, to see that the bench itself works
    #[arg(long)]
    quick: bool,
    /// How often each row is measured, in turns with all others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Where the figures are written
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the chart is written
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn part(word: &str) -> Result<Part, String> {
    let names = || Part::ALL.map(Part::name).join(", ");
    Part::ALL.into_iter().find(|part| part.name() == word).ok_or_else(|| format!("it is none of {}", names()))
}

fn main() -> ExitCode {
    let bench = Bench::parse();
    if !geteuid().is_root() {
        eprintln!("the bench makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    let mut options = if bench.quick { Options::quick() } else { Options::default() };
    if !bench.parts.is_empty() {
        options.parts = bench.parts;
    }
    if let Some(rounds) = bench.rounds {
        options.rounds = rounds;
    }
    (options.json, options.svg) = (bench.json, bench.svg);
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
