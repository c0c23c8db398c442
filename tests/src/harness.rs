//! The harness of the rings that need root: without it a trial is reported as ignored with its reason, never as passed.

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::unistd::geteuid;

/// What a trial cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing of the machine.
    Nothing,
    /// Namespaces, BPF, packet filters.
    Root,
}

impl Needs {
    /// Why the need is not met, if it is not.
    pub fn unmet(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Root if geteuid().is_root() => None,
            Self::Root => Some("needs root"),
        }
    }
}

/// Makes one trial of a function.
pub fn trial(name: &str, needs: Needs, body: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(reason) = needs.unmet() {
            return Ok(Completion::ignored_with(reason));
        }
        match body() {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        }
    })
}

/// Makes one trial of a function that needs root.
pub fn on_root(name: &str, body: fn() -> Result<()>) -> Trial {
    trial(name, Needs::Root, body)
}

/// Runs a trial on what all trials of a file use one after the other; the first one sets it up.
///
/// # Errors
/// When it cannot be set up, or the trial fails.
pub fn on_shared<S>(
    shared: &Mutex<Option<S>>,
    set: impl FnOnce() -> Result<S>,
    body: impl FnOnce(&mut S) -> Result<()>,
) -> Result<()> {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if shared.is_none() {
        *shared = Some(set()?);
    }
    body(shared.as_mut().context("it was just set")?)
}

/// Runs the trials that the command line asks for, one at a time unless it says `--test-threads`.
///
/// One at a time, because they share something or would be late under another's load.
pub fn run(trials: Vec<Trial>) -> ExitCode {
    run_with(trials, Some(1))
}

/// The same for trials that share nothing and mind no other's load: on every CPU at once.
pub fn run_side_by_side(trials: Vec<Trial>) -> ExitCode {
    run_with(trials, None)
}

fn run_with(trials: Vec<Trial>, threads: Option<usize>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(threads);
    libtest_mimic::run(&arguments, trials).exit_code()
}
