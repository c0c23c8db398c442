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
    machine,
    setup::{self, Need, tools},
    step,
};

pub(crate) fn run() -> Result<ExitCode> {
    setup::ready(&[Need::Bpf, Need::Audit])?;
    let toolchain = bpf::find()?;
    let checks: [(&str, Check<'_>); 6] = [
        ("format", &format),
        ("clippy, user side", &|| clippy("clippy, user side")),
        ("clippy, kernel half", &|| kernel_half(&toolchain)),
        ("documentation", &documentation),
        ("licences, bans and sources of dependencies", &dependencies),
        ("spelling", &spelling),
    ];
    let (mut failed, mut not_run) = (Vec::new(), Vec::new());
    for (name, check) in checks {
        match check() {
            Ok(Ran::Whole) => {}
            Ok(Ran::NotWhole(why)) => {
                eprintln!("  {name}: not run, {why}");
                not_run.push(name);
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                failed.push(name);
            }
        }
    }
    // The one check that may be missing everywhere: what it compares with changes from day to day.
    eprintln!("  advisories: not run, they need a network (`cargo deny check advisories`)");
    let (verdict, is_fine) = judge(&failed, &not_run, machine::is_ci());
    println!("{verdict}");
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How much of a check there was.
enum Ran {
    /// All of it.
    Whole,
    /// Not all of it, with why, as half a sentence.
    NotWhole(String),
}

type Check<'a> = &'a dyn Fn() -> Result<Ran>;

/// Says how it went, and whether well; where a continuous integration asks, every check has to run.
fn judge(failed: &[&str], not_run: &[&str], is_ci: bool) -> (String, bool) {
    let mut said = Vec::new();
    if !failed.is_empty() {
        said.push(format!("Not in order: {}.", failed.join("; ")));
    }
    if !not_run.is_empty() {
        let all_have_to = if is_ci { ", and here all have to be" } else { "" };
        said.push(format!("Not run: {}{all_have_to}.", not_run.join("; ")));
    }
    if failed.is_empty() {
        let what = if not_run.is_empty() { "Everything was" } else { "Everything else was" };
        said.push(format!("{what} found in order."));
    }
    (said.join(" "), failed.is_empty() && (not_run.is_empty() || !is_ci))
}

/// The one package that is no member of the workspace.
const FUZZ: &str = "lb-ebpf/fuzz/Cargo.toml";

fn format() -> Result<Ran> {
    step::run("format", setup::cargo().args(["fmt", "--all", "--check"]))?;
    step::run("format, fuzz target", setup::cargo().args(["fmt", "--manifest-path", FUZZ, "--check"]))?;
    Ok(Ran::Whole)
}

fn clippy(label: &str) -> Result<Ran> {
    step::run(label, setup::cargo().args(["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"]))?;
    let mut command = setup::cargo();
    // Without its features: they would compile libFuzzer. Its lock file must know of what the workspace depends on.
    command.args(["clippy", "--locked", "--manifest-path", FUZZ, "--no-default-features", "--target-dir"]);
    command.arg(folders::target().join("fuzz")).args(["--", "-Dwarnings"]);
    step::run("clippy, fuzz target", &mut command)?;
    Ok(Ran::Whole)
}

/// The compiler that builds the kernel half also lints it. Where it has no clippy, its own warnings have to do.
fn kernel_half(toolchain: &Toolchain) -> Result<Ran> {
    let rustc = &toolchain.compiler.rustc.path;
    let has_clippy = rustc.parent().is_some_and(|folder| folder.join("clippy-driver").exists());
    let folder = folders::target().join("bpf-check");
    let (verb, what) = if has_clippy { ("clippy", "clippy") } else { ("build", "warnings") };
    for object in bpf::Object::ALL {
        step::run(&format!("{what}, {object}"), &mut bpf::cargo(toolchain, verb, object, &folder, &["-Dwarnings"]))?;
    }
    if has_clippy {
        return Ok(Ran::Whole);
    }
    Ok(Ran::NotWhole(format!("{} has no clippy, and only its own warnings were looked at", rustc.display())))
}

fn documentation() -> Result<Ran> {
    let mut command = setup::cargo();
    command.args(["doc", "--workspace", "--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-Dwarnings");
    step::run("documentation", &mut command)?;
    Ok(Ran::Whole)
}

fn dependencies() -> Result<Ran> {
    for (label, arguments) in [
        ("licences, bans and sources of dependencies", &["--workspace"][..]),
        ("licences, bans and sources of dependencies, fuzz target", &["--manifest-path", FUZZ]),
    ] {
        let mut command = Command::new(tools::deny()?);
        command.args(arguments).args(["--config", "deny.toml", "check", "bans", "licenses", "sources"]);
        step::run(label, command.current_dir(folders::workspace()))?;
    }
    Ok(Ran::Whole)
}

fn spelling() -> Result<Ran> {
    let Some(typos) = tools::typos() else {
        return Ok(Ran::NotWhole("typos cannot be had here without a long build".to_owned()));
    };
    step::run("spelling", Command::new(typos).current_dir(folders::workspace()))
        .with_context(|| format!("what is no mistake goes into {}", Path::new("typos.toml").display()))?;
    Ok(Ran::Whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_did_not_run_is_told_and_fails_where_all_have_to() {
        for (failed, not_run, is_ci, expected) in [
            (&[][..], &[][..], true, ("Everything was found in order.", true)),
            (&[], &["spelling"], false, ("Not run: spelling. Everything else was found in order.", true)),
            (
                &[],
                &["spelling"],
                true,
                ("Not run: spelling, and here all have to be. Everything else was found in order.", false),
            ),
            (&["format"], &[], false, ("Not in order: format.", false)),
            (&["format"], &["spelling"], false, ("Not in order: format. Not run: spelling.", false)),
        ] {
            let (verdict, is_fine) = judge(failed, not_run, is_ci);
            assert_eq!((verdict.as_str(), is_fine), expected);
        }
    }
}
