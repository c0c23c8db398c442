//! The command line: one file per command. Exit codes: 0 done, 1 the operation failed, 2 wrong usage or configuration.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write as _, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Error, Result};
use clap::{Args, Parser, Subcommand};

use crate::{
    dataplane::{
        host::{self, Unfit},
        pins::DEFAULT_PINS,
    },
    reconcile::RunError,
    state::DEFAULT_STATE,
};

mod check;
mod detach;
mod ls;
mod run;
mod status;
mod table;

/// Evenkeel, an exact layer-4 load balancer in the kernel.
#[derive(Debug, Parser)]
#[command(name = "evenkeel", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Ls(ls::Ls),
    Status(status::Status),
    Detach(detach::Detach),
}

/// Where a controller keeps what outlives it.
#[derive(Args, Clone, Debug)]
struct Folders {
    /// Where maps and programs are pinned
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PINS)]
    pins: PathBuf,
    /// Where the controller writes its state
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    state: PathBuf,
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Check(check) => check.run(),
        Command::Ls(ls) => ls.run(),
        Command::Status(status) => status.run(),
        Command::Detach(detach) => detach.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A fault of a file begins with its place, as editors want it.
            let who = if exit_code(&error) == 2 { "" } else { "evenkeel: " };
            // Where even that cannot be written, the exit code says it.
            let _ = writeln!(stderr(), "{who}{}", told(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// The error and its causes, without those that the text before them ends with: ours name theirs themselves.
fn told(error: &Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.ends_with(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

fn exit_code(error: &Error) -> u8 {
    match error.downcast_ref::<RunError>() {
        Some(RunError::Refused(_)) => 2,
        Some(_) | None => 1,
    }
}

/// Ends where maps cannot be opened for want of rights, with the way out rather than the first refusal.
fn permitted() -> Result<()> {
    match host::check(&host::probe().context("/proc")?) {
        Err(unfit @ Unfit::NotPermitted) => Err(unfit.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints a result. Whoever reads it may have seen enough.
fn print(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        let denied = || io::Error::from_raw_os_error(1);
        let failed = RunError::System { what: "/run/evenkeel".into(), source: denied() };
        assert_eq!(told(&failed.into()), "/run/evenkeel: Operation not permitted (os error 1)");
        let around = Error::from(denied()).context("/proc").context("probe");
        assert_eq!(told(&around), "probe: /proc: Operation not permitted (os error 1)");
    }

    #[test]
    fn the_unit_of_systemd_calls_commands_that_there_are() {
        let unit = include_str!("../../../deploy/evenkeel.service");
        let ours = unit.lines().filter_map(|line| line.split_once('=')?.1.strip_prefix("/usr/local/bin/"));
        let commands: Vec<Command> = ours
            .map(|line| Cli::try_parse_from(line.split_whitespace()).expect("a command line of ours").command)
            .collect();
        assert!(matches!(commands[..], [Command::Run(_), Command::Check(_)]), "{commands:?}");
    }

    #[test]
    fn a_refused_configuration_and_a_failed_operation_are_told_apart() {
        assert_eq!(exit_code(&RunError::Refused(vec!["why".into()]).into()), 2);
        let failed = RunError::System { what: "/run".into(), source: io::Error::from_raw_os_error(1) };
        assert_eq!(exit_code(&failed.into()), 1);
        assert_eq!(exit_code(&anyhow::anyhow!("something else")), 1);
    }
}
