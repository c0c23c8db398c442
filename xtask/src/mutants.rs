//! `cargo xtask mutants`: breaks the code on purpose, one small patch at a time, and asks that a named test notices.
//!
//! A patch lies in `tests/mutants/NAME.patch`. Its first line says in words what it breaks, the second who has to
//! notice: `Caught by: PACKAGE TARGET TEST`, where the target is `lib` or a test file's name, and the test's name is
//! whole. All this happens in a copy of the working tree, so that an interrupted run leaves the tree as it was.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Instant, SystemTime},
};

use anyhow::{Context, Result, bail, ensure};
use xtask::{bpf, folders};

use crate::{
    machine,
    setup::{self, Need},
    step,
    test::{for_each_line, results},
};

/// Which of them are tried.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A part of the patch's name, or the package whose tests catch it; all without it
    name: Option<String>,
}

/// A patch, and the test that has to notice it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mutant {
    name: String,
    patch: PathBuf,
    /// What it breaks, in words.
    breaks: String,
    test: Test,
    /// The files it changes, from the workspace's root.
    files: Vec<PathBuf>,
}

/// A test by its whole name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    package: String,
    target: String,
    name: String,
}

impl Test {
    /// Whether one build makes both.
    fn is_built_with(&self, other: &Test) -> bool {
        (&self.package, &self.target) == (&other.package, &other.target)
    }
}

/// What came of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Caught,
    Survived,
    NoSuchTest,
    DoesNotApply,
    DoesNotBuild,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Caught => "caught",
            Outcome::Survived => "SURVIVED",
            Outcome::NoSuchTest => "NO SUCH TEST, or it was skipped",
            Outcome::DoesNotApply => "DOES NOT APPLY",
            Outcome::DoesNotBuild => "DOES NOT BUILD",
        })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let asked = |mutant: &Mutant| {
        let is_named = |name: &String| mutant.name.contains(name) || mutant.test.package == *name;
        arguments.name.as_ref().is_none_or(is_named)
    };
    let all = mutants()?;
    let mutants: Vec<&Mutant> = all.iter().filter(|mutant| asked(mutant)).collect();
    ensure!(!mutants.is_empty(), "no patch in {} has that name", folder().display());
    setup::ready(&[Need::Bpf])?;
    if machine::is_root() {
        setup::ready(&[Need::Lab])?;
    }
    let begin = Instant::now();
    let copy = Copy::make(&folders::target().join("mutants"))?;
    copy.renew(&all)?;
    // All of them before the first mutant, so that each of these costs one build and not two.
    for of_target in mutants.chunk_by(|a, b| a.test.is_built_with(&b.test)) {
        let Test { package, target, .. } = &of_target[0].test;
        println!("without any mutant  {package} {target}");
        copy.try_without(of_target)?;
    }
    let mut caught = 0;
    for (number, mutant) in mutants.iter().enumerate() {
        let since = Instant::now();
        let outcome = copy.try_out(mutant)?;
        let seconds = since.elapsed().as_secs();
        println!("{:>3} of {}  {}: {outcome} ({seconds} s)", number + 1, mutants.len(), mutant.name);
        if outcome == Outcome::Caught {
            caught += 1;
        } else {
            println!("           {}", mutant.breaks);
            if outcome == Outcome::DoesNotBuild {
                println!("{}", fs::read_to_string(&copy.said)?);
            }
            println!("           not caught by {} {} {}", mutant.test.package, mutant.test.target, mutant.test.name);
        }
    }
    let seconds = begin.elapsed().as_secs();
    println!("{caught} caught, {} not, in {} min {} s", mutants.len() - caught, seconds / 60, seconds % 60);
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
        let (breaks, test) = head(&text)
            .with_context(|| format!("{name}.patch does not say what it breaks and which test catches it"))?;
        mutants.push(Mutant { name, patch, breaks, test, files: changed(&text) });
    }
    // By what has to be built: little of it changes from one mutant to the next then.
    let order = |mutant: &Mutant| (mutant.test.package.clone(), mutant.test.target.clone(), mutant.name.clone());
    mutants.sort_by_key(order);
    Ok(mutants)
}

fn head(patch: &str) -> Option<(String, Test)> {
    let mut lines = patch.lines();
    let breaks = lines.next().filter(|line| !line.is_empty() && !line.starts_with("--- "))?.to_owned();
    let mut words = lines.next()?.strip_prefix("Caught by: ")?.splitn(3, ' ').map(str::to_owned);
    Some((breaks, Test { package: words.next()?, target: words.next()?, name: words.next()? }))
}

fn changed(patch: &str) -> Vec<PathBuf> {
    patch.lines().filter_map(|line| line.strip_prefix("+++ b/")).map(PathBuf::from).collect()
}

/// A copy of the working tree, to be broken.
struct Copy {
    source: PathBuf,
    build: PathBuf,
    said: PathBuf,
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
        Ok(Copy { source, build: folder.join("build"), said: folder.join("said.txt"), linker: bpf::find()?.linker })
    }

    /// Makes the files that mutants change new: the build folder may hold what an earlier run built of a mutant, which
    /// is younger than the file that was copied with its time.
    fn renew(&self, mutants: &[Mutant]) -> Result<()> {
        for file in mutants.iter().flat_map(|mutant| &mutant.files) {
            let path = self.source.join(file);
            fs::File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .with_context(|| format!("{} cannot be made new", path.display()))?;
        }
        Ok(())
    }

    /// Tries the tests of these mutants, all of one target, on the code as it is.
    fn try_without(&self, mutants: &[&Mutant]) -> Result<()> {
        let mut tests: Vec<&Test> = mutants.iter().map(|mutant| &mutant.test).collect();
        tests.sort_unstable();
        tests.dedup();
        // The harness of the others takes one name only.
        let at_once = if tests[0].target == "lib" { tests.len() } else { 1 };
        for tests in tests.chunks(at_once) {
            let Test { package, target, .. } = tests[0];
            let names = tests.iter().map(|test| test.name.as_str()).collect::<Vec<_>>().join(", ");
            match self.run(tests)? {
                Outcome::Survived => {}
                Outcome::Caught => bail!("{package} {target}: without a mutant fails one of {names}"),
                Outcome::NoSuchTest => bail!("{package} {target} lacks or skips one of {names}"),
                Outcome::DoesNotApply | Outcome::DoesNotBuild => {
                    bail!("{package} {target} does not build: see {}", self.said.display())
                }
            }
        }
        Ok(())
    }

    /// Tries the test on the mutant.
    fn try_out(&self, mutant: &Mutant) -> Result<Outcome> {
        if self.apply(&mutant.patch, Some("--check")).is_err() {
            return Ok(Outcome::DoesNotApply);
        }
        self.apply(&mutant.patch, None)?;
        let outcome = self.run(&[&mutant.test]);
        self.apply(&mutant.patch, Some("--reverse"))?;
        outcome
    }

    fn apply(&self, patch: &Path, how: Option<&str>) -> Result<()> {
        let mut command = Command::new("git");
        // What stands around the change may have been edited since.
        command.args(["apply", "--recount", "-C1"]).args(how).arg(patch).current_dir(&self.source);
        // The copy lies in the build folder, which the repository around it ignores: git would skip every file.
        command.env("GIT_CEILING_DIRECTORIES", self.build.parent().unwrap_or(&self.build));
        let output = command.output().context("git cannot be run")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} does not apply: {}", patch.display(), text.trim());
        Ok(())
    }

    /// Runs tests of one target.
    fn run(&self, tests: &[&Test]) -> Result<Outcome> {
        let Test { package, target, .. } = tests[0];
        if package == TESTBED && !self.cargo(&["build", "--package", "lb-userspace"], &mut Seen::default())? {
            return Ok(Outcome::DoesNotBuild);
        }
        let of_target = if target == "lib" { vec!["--lib"] } else { vec!["--test", target] };
        let names = tests.iter().map(|test| test.name.as_str());
        let arguments =
            ["test", "--package", package].into_iter().chain(of_target).chain(["--", "--exact"]).chain(names);
        let mut seen = Seen::default();
        let succeeded = self.cargo(&arguments.collect::<Vec<_>>(), &mut seen)?;
        Ok(seen.outcome(succeeded, tests.len()))
    }

    fn cargo(&self, arguments: &[&str], seen: &mut Seen) -> Result<bool> {
        let mut command = setup::cargo();
        command.args(arguments).current_dir(&self.source);
        // What the compiler said is worth reading only when a mutant does not build.
        let said = fs::File::create(&self.said).with_context(|| format!("{} cannot be made", self.said.display()))?;
        command.stderr(said).env("CARGO_TARGET_DIR", &self.build).env(bpf::LINKER_VARIABLE, &self.linker);
        command.env("EVENKEEL_BIN", self.build.join("debug/evenkeel"));
        Ok(for_each_line(&mut command, |line| seen.line(line))?.success())
    }
}

/// The package whose tests run the controller's binary, which cargo does not build for them.
const TESTBED: &str = "testbed";

/// Copies what git knows of, as far as it is there, and what it would be asked to add; times stay, so that little is
/// built again.
const COPY: &str = r#"
git ls-files --cached --others --exclude-standard -z |
    xargs -0 sh -c 'for file; do if [ -e "$file" ]; then cp -p --parents "$file" "$0"; fi; done' "$1"
"#;

/// What a test binary that runs the tests asked for has said so far.
#[derive(Debug, Default)]
struct Seen {
    began: bool,
    counts: Option<results::Counts>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        self.began |= line.starts_with("running ") && line.trim() != "running 0 tests";
        if let Some(counts) = results::result(line) {
            *self.counts.get_or_insert_default() += counts;
        }
    }

    fn outcome(&self, succeeded: bool, asked: usize) -> Outcome {
        match self.counts {
            Some(counts) if counts.failed > 0 => Outcome::Caught,
            Some(counts) if counts.passed == asked as u64 && succeeded => Outcome::Survived,
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
        assert_eq!(seen.outcome(succeeded, 1), expected, "{lines:?}");
    }

    #[test]
    fn a_patch_says_what_it_breaks_and_names_its_test_even_with_spaces() {
        let patch = "Ports are lost.\nCaught by: testbed cases tcp over v6 is translated\n--- a/x\n+++ b/x\n";
        let test = Test { package: "testbed".into(), target: "cases".into(), name: "tcp over v6 is translated".into() };
        assert_eq!(head(patch), Some(("Ports are lost.".to_owned(), test)));
        assert_eq!(changed(patch), [PathBuf::from("x")]);
    }

    #[test]
    fn a_patch_without_words_or_a_test_is_refused() {
        for patch in ["", "--- a/x\n", "x\n--- a/x\n", "x\nCaught by: testbed cases\n", "\nCaught by: a b c\n"] {
            assert_eq!(head(patch), None, "{patch:?}");
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
    fn of_several_tests_all_have_to_pass() {
        let mut seen = Seen::default();
        seen.line("running 2 tests");
        seen.line("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.1s");
        assert_eq!((seen.outcome(true, 2), seen.outcome(true, 3)), (Outcome::Survived, Outcome::NoSuchTest));
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
