//! The verbs of this repository: `cargo xtask VERB`. Each makes sure of what it needs before it begins.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod build;
mod check;
mod demo;
mod fresh;
mod fuzz;
mod machine;
mod mutants;
mod setup;
mod step;
mod test;

/// Builds, shows, tests and checks Evenkeel.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Makes this machine able to build and test; every other verb does its part of it by itself
    Setup,
    /// Builds both halves
    Build(build::Arguments),
    /// Builds a lab of network namespaces and shows Evenkeel beside iptables in it
    Demo(demo::Arguments),
    /// Measures Evenkeel beside nft, iptables and plain routing
    Bench(bench::Arguments),
    /// Runs the tests, all rings or a part
    Test(test::Arguments),
    /// Checks format, lints, documentation, dependencies and spelling
    Check,
    /// Runs the fuzz target over the data path for a while
    Fuzz(fuzz::Arguments),
    /// Breaks the code on purpose, and asks that a named test notices
    Mutants(mutants::Arguments),
    /// Proves that a fresh clone runs the demo on a plain Debian 12
    Fresh(fresh::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run(),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Check => check::run(),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Mutants(arguments) => mutants::run(&arguments),
        Verb::Fresh(arguments) => fresh::run(&arguments),
    }
}
