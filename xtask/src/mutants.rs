//! `cargo xtask mutants`: breaks the code on purpose, one small patch at a time, and asks that a named test notices.
//!
//! A patch lies in `tests/mutants/NAME.patch`. Its first line says who has to notice:
//! `Caught by: PACKAGE TARGET TEST`, where the target is `lib` or a test file's name, and the test's name is whole.
//! All this happens in a copy of the working tree, so that an interrupted run leaves the tree as it was.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{
    bpf::{self, linker},
    folders,
};

use crate::{
    machine,
    setup::{self, Need},
    step,
    test::{for_each_line, results},
};

/// Which of them are tried.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A part of the patch's name; all without it
    name: Option<String>,
}

/// A patch, and the test that has to notice it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mutant {
    name: String,
    patch: PathBuf,
    test: Test,
}

/// A test by its whole name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Test {
    package: String,
    target: String,
    name: String,
}

/// What came of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Caught,
    Survived,
    NoSuchTest,
    DoesNotBuild,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Caught => "caught",
            Outcome::Survived => "SURVIVED",
            Outcome::NoSuchTest => "NO SUCH TEST, or it was skipped",
            Outcome::DoesNotBuild => "DOES NOT BUILD",
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let asked = |mutant: &Mutant| arguments.name.as_ref().is_none_or(|name| mutant.name.contains(name));
    let mutants: Vec<Mutant> = mutants()?.into_iter().filter(asked).collect();
    ensure!(!mutants.is_empty(), "no patch in {} has that name", folder().display());
    setup::ready(&[Need::Bpf])?;
    if machine::is_root() {
        setup::ready(&[Need::Lab])?;
    }
    let copy = Copy::make(&folders::target().join("mutants"))?;
    // All of them before the first mutant, so that each of these costs one build and not two.
    for mutant in &mutants {
        copy.try_without(mutant)?;
    }
    let mut caught = 0;
    for (number, mutant) in mutants.iter().enumerate() {
        let outcome = copy.try_out(mutant)?;
        println!("{:>3} of {}  {}: {outcome}", number + 1, mutants.len(), mutant.name);
        if outcome == Outcome::Caught {
            caught += 1;
        } else {
            println!("           by {} {} {}", mutant.test.package, mutant.test.target, mutant.test.name);
        }
    }
    println!("{caught} caught, {} not", mutants.len() - caught);
    Ok(if caught == mutants.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn folder() -> PathBuf {
    folders::workspace().join("tests/mutants")
}

fn mutants() -> Result<Vec<Mutant>> {
    let folder = folder();
    let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut mutants = Vec::new();
    for entry in entries {
        let patch = entry?.path();
        if patch.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let text = fs::read_to_string(&patch).with_context(|| format!("{} cannot be read", patch.display()))?;
        let name = patch.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let test = caught_by(&text).with_context(|| format!("{name}.patch does not say which test catches it"))?;
        mutants.push(Mutant { name, patch, test });
    }
    mutants.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mutants)
}

fn caught_by(patch: &str) -> Option<Test> {
    let mut words = patch.lines().next()?.strip_prefix("Caught by: ")?.splitn(3, ' ').map(str::to_owned);
    Some(Test { package: words.next()?, target: words.next()?, name: words.next()? })
}

/// A copy of the working tree, to be broken.
struct Copy {
    source: PathBuf,
    build: PathBuf,
    linker: PathBuf,
}

impl Copy {
    fn make(folder: &Path) -> Result<Copy> {
        let source = folder.join("source");
        if source.exists() {
            fs::remove_dir_all(&source).with_context(|| format!("{} cannot be removed", source.display()))?;
        }
        fs::create_dir_all(&source).with_context(|| format!("{} cannot be made", source.display()))?;
        let mut command = Command::new("sh");
        command.args(["-ec", COPY, "copy"]).arg(&source).current_dir(folders::workspace());
        step::run("a copy of the working tree", &mut command)?;
        Ok(Copy { source, build: folder.join("build"), linker: bpf::find()?.linker })
    }

    /// Tries the test on the code as it is.
    fn try_without(&self, mutant: &Mutant) -> Result<()> {
        let Test { package, target, name } = &mutant.test;
        match self.run(&mutant.test)? {
            Outcome::Survived => Ok(()),
            Outcome::Caught => bail!("{name}, which is to catch {}, fails without it", mutant.name),
            Outcome::NoSuchTest => bail!("{package} {target} has no test {name}, or skips it"),
            Outcome::DoesNotBuild => bail!("{package} {target} does not build"),
        }
    }

    /// Tries the test on the mutant.
    fn try_out(&self, mutant: &Mutant) -> Result<Outcome> {
        self.apply(&mutant.patch, None)?;
        let outcome = self.run(&mutant.test);
        self.apply(&mutant.patch, Some("--reverse"))?;
        outcome
    }

    fn apply(&self, patch: &Path, how: Option<&str>) -> Result<()> {
        let mut command = Command::new("git");
        command.arg("apply").args(how).arg(patch).current_dir(&self.source);
        // The copy lies in the build folder, which the repository around it ignores: git would skip every file.
        command.env("GIT_CEILING_DIRECTORIES", self.build.parent().unwrap_or(&self.build));
        let output = command.output().context("git cannot be run")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} does not apply: {}", patch.display(), text.trim());
        Ok(())
    }

    fn run(&self, test: &Test) -> Result<Outcome> {
        let mut command = setup::cargo();
        command.args(["test", "--package", &test.package]);
        if test.target == "lib" {
            command.arg("--lib");
        } else {
            command.args(["--test", &test.target]);
        }
        command.args(["--", "--exact", &test.name]).current_dir(&self.source).stderr(Stdio::null());
        command.env("CARGO_TARGET_DIR", &self.build).env(linker::EXPLICIT, &self.linker);
        let mut seen = Seen::default();
        let status = for_each_line(&mut command, |line| seen.line(line))?;
        Ok(seen.outcome(status.success()))
    }
}

/// Copies what git knows of and what it would be asked to add; times stay, so that little is built again.
const COPY: &str = r#"
git ls-files --cached --others --exclude-standard -z | xargs -0 sh -c 'cp -p --parents "$@" "$0"' "$1"
"#;

/// What a test binary that runs one test has said so far.
#[derive(Debug, Default)]
struct Seen {
    began: bool,
    counts: Option<results::Counts>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        self.began |= line.trim() == "running 1 test";
        if let Some(counts) = results::result(line) {
            *self.counts.get_or_insert_default() += counts;
        }
    }

    fn outcome(&self, succeeded: bool) -> Outcome {
        match self.counts {
            Some(counts) if counts.failed > 0 => Outcome::Caught,
            Some(counts) if counts.passed > 0 && succeeded => Outcome::Survived,
            // It began and died before it could say so: a panic while panicking, or a signal.
            None if self.began => Outcome::Caught,
            Some(_) => Outcome::NoSuchTest,
            None => Outcome::DoesNotBuild,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &[&str], succeeded: bool, expected: Outcome) {
        let mut seen = Seen::default();
        lines.iter().for_each(|line| seen.line(line));
        assert_eq!(seen.outcome(succeeded), expected, "{lines:?}");
    }

    #[test]
    fn a_patch_names_its_test_even_with_spaces() {
        let patch = "Caught by: testbed cases tcp over v6 is translated\n--- a/x\n+++ b/x\n";
        let expected =
            Test { package: "testbed".into(), target: "cases".into(), name: "tcp over v6 is translated".into() };
        assert_eq!(caught_by(patch), Some(expected));
    }

    #[test]
    fn a_patch_without_a_test_is_refused() {
        for patch in ["", "--- a/x\n", "Caught by: testbed cases\n", "x\nCaught by: a b c\n"] {
            assert_eq!(caught_by(patch), None, "{patch:?}");
        }
    }

    #[test]
    fn a_mutant_is_caught_by_a_failed_test_or_by_one_that_died() {
        let failed = "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.1s";
        check(&["running 1 test", failed], false, Outcome::Caught);
        check(&["running 1 test"], false, Outcome::Caught);
    }

    #[test]
    fn a_mutant_that_no_test_noticed_survived() {
        let passed = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.1s";
        check(&["running 1 test", passed], true, Outcome::Survived);
    }

    #[test]
    fn a_test_that_did_not_run_catches_nothing() {
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 10 filtered out; finished in 0.1s";
        let skipped = "test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured; 9 filtered out; finished in 0.1s";
        check(&["running 0 tests", none], true, Outcome::NoSuchTest);
        check(&["running 1 test", skipped], true, Outcome::NoSuchTest);
        check(&[], false, Outcome::DoesNotBuild);
    }
}
