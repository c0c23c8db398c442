//! `cargo xtask test`: the rings one after the other, and one line at the end that adds them up.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use xtask::{bpf, folders};

use crate::{
    bench, build, machine,
    setup::{self, Need},
    test::{
        results::{Counts, Refusal},
        rings::Ring,
    },
};

pub(crate) mod results;
mod rings;

/// What is tested.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A ring (unit, cases, scenarios), a file of tests/tests, or a part of the tests' names; all without it
    #[arg(value_name = "RING|NAME")]
    what: Option<String>,
}

/// How often a command that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let files = files(&folders::workspace().join("tests/tests"))?;
    let (rings, filter) = rings::asked(arguments.what.as_deref(), &files);
    let sudo = machine::sudo();
    let mut total = Counts::default();
    let mut not_passed = Vec::new();
    let prepared = prepare(&rings, sudo.is_some());
    if let Err(error) = &prepared {
        eprintln!("error: {error:#}");
        total.failed += 1;
    }
    let begin = Instant::now();
    if prepared.is_ok() {
        for (number, ring) in rings.iter().enumerate() {
            let seconds = begin.elapsed().as_secs();
            println!("══ {} ({} of {}, begun after {seconds} s)", ring.name, number + 1, rings.len());
            let began = Instant::now();
            let counts = run_ring(ring, filter.as_deref(), sudo, &mut not_passed)?;
            println!("══ {}: {counts}, {} s", ring.name, began.elapsed().as_secs());
            total += counts;
        }
    }
    for line in not_passed {
        println!("{line}");
    }
    let verdict = results::judge(total, sudo.is_some(), machine::is_ci());
    match verdict {
        Ok(()) | Err(Refusal::Failed) => {}
        Err(Refusal::Skipped) => println!("A test was skipped, and here all have to run."),
        Err(Refusal::Empty) => println!("No test ran."),
    }
    println!("{total}");
    Ok(if verdict.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare(rings: &[Ring], has_root: bool) -> Result<()> {
    setup::ready(&[Need::Bpf])?;
    // Without a way to root these tests skip themselves, and need nothing.
    if has_root && rings.iter().any(|ring| ring.needs_root) {
        setup::ready(&[Need::Lab])?;
        build::evenkeel(false)?;
        bpf::build(&bpf::find()?, bpf::Object::Bench)?;
    }
    Ok(())
}

/// Lists the testbed's test files, which are in `folder`. Without them rings would be missing, so none may be hidden.
fn files(folder: &Path) -> Result<Vec<String>> {
    let unreadable = || format!("{} cannot be read", folder.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            files.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    files.sort();
    Ok(files)
}

fn run_ring(ring: &Ring, filter: Option<&str>, sudo: Option<&[&str]>, not_passed: &mut Vec<String>) -> Result<Counts> {
    let mut total = Counts::default();
    for run in &ring.runs {
        let mut counts = Counts::default();
        let mut cargo = setup::cargo();
        cargo.args(["test", "--no-fail-fast"]).args(run);
        // The binaries run as root, cargo itself as the one who called: its folders stay theirs.
        match sudo {
            Some([]) => {}
            Some(words) if ring.needs_root => {
                cargo.args(["--config", &format!("target.'cfg(all())'.runner = {words:?}")]);
            }
            None if ring.needs_root => println!("Not root, and no sudo: what needs root is skipped."),
            Some(_) | None => {}
        }
        cargo.args(filter.map(|filter| ["--", filter]).into_iter().flatten());
        cargo.env("EVENKEEL_BIN", folders::target().join("debug/evenkeel"));
        cargo.env(bench::OBJECT_VARIABLE, bpf::Object::Bench.path());
        let status = for_each_line(&mut cargo, |line| {
            println!("{line}");
            if let Some(result) = results::result(line) {
                counts += result;
            }
            if let Some(name) = results::not_passed(line) {
                not_passed.push(format!("{}: {name}", ring.name));
            }
        })?;
        if !status.success() && counts.failed == 0 {
            // It did not build, or a test binary died before it could say what failed.
            not_passed.push(format!("{}: cargo test {} ended with {status}", ring.name, run.join(" ")));
            counts.failed += 1;
        }
        total += counts;
    }
    Ok(total)
}

/// Runs a command and hands over each line of its output, until it ends.
///
/// A process that a test left behind may hold the output open for ever, so the end of the command is what counts.
pub(crate) fn for_each_line(command: &mut Command, mut with: impl FnMut(&str)) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("{program} cannot be run"))?;
    let output = child.stdout.take().context("the output was asked for")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut ended = None;
    loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => with(&line),
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            // What it wrote before it ended has been read by now: it ended a whole look ago.
            Err(RecvTimeoutError::Timeout) => match ended {
                Some(status) => return Ok(status),
                None => ended = child.try_wait()?,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(script: &str) -> (Vec<String>, bool) {
        let mut lines = Vec::new();
        let status = for_each_line(Command::new("sh").args(["-c", script]), |line| lines.push(line.to_owned()));
        (lines, status.unwrap().success())
    }

    #[test]
    fn test_files_are_listed_by_name_and_a_folder_that_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.rs", "a.rs", "notes.md"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(files(folder.path()).unwrap(), ["a", "b"]);
        let missing = folder.path().join("missing");
        let message = files(&missing).unwrap_err().to_string();
        assert_eq!(message, format!("{} cannot be read", missing.display()));
    }

    #[test]
    fn all_lines_are_read_and_the_exit_is_known() {
        assert_eq!(lines("echo a; sleep 0.5; echo b; exit 1"), (vec!["a".to_owned(), "b".to_owned()], false));
        assert_eq!(lines("seq 5000 | tail -n 2"), (vec!["4999".to_owned(), "5000".to_owned()], true));
    }

    #[test]
    fn a_process_that_is_left_behind_is_not_waited_for() {
        let begin = Instant::now();
        assert_eq!(lines("echo a; sleep 20 & exit 0"), (vec!["a".to_owned()], true));
        assert!(begin.elapsed() < Duration::from_secs(15));
    }
}
