//! The README's first command, `cargo xtask demo`; the work is in `testbed::demo`.

use std::process::ExitCode;

use clap::Parser;
use nix::unistd::geteuid;
use testbed::demo::{Options, run, take_down};

/// Spreads real DNS queries over four real servers, by iptables and by Evenkeel, and counts who answered.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask demo")]
struct Demo {
    /// Leave the lab up, and print what to try in it
    #[arg(long, conflicts_with = "down")]
    keep: bool,
    /// Remove the labs that were kept, or left by a demo that was killed
    #[arg(long)]
    down: bool,
}

fn main() -> ExitCode {
    let demo = Demo::parse();
    if !geteuid().is_root() {
        eprintln!("the demo makes network namespaces: run it as root");
        return ExitCode::FAILURE;
    }
    let result = if demo.down { take_down().map(|()| true) } else { run(Options { keep: demo.keep }) };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
