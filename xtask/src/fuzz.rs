//! `cargo xtask fuzz`: any bytes through the whole data path, by libFuzzer, built by cargo-fuzz with AddressSanitizer.
//!
//! What is found anew stays under `target/fuzz`; the corpus in the repository changes by hand only.

use std::{
    collections::VecDeque,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use xtask::{bpf, folders};

use crate::{
    setup::{self, Need, tools},
    step,
    test::for_each_line,
};

/// What is run, and for how long.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For how many seconds
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Runs what is in this file once, and tells each of its steps
    #[arg(conflicts_with = "seconds")]
    file: Option<PathBuf>,
}

const TARGET: &str = "pipeline";

/// A run takes a millisecond; one that takes so many seconds hangs.
const HANGS_AFTER: u32 = 10;

/// The largest file that is tried: what a run does is bounded anyway.
const LENGTH_MAX: u32 = 512;

/// How often is told how far it is.
const TELLS_EVERY: Duration = Duration::from_secs(10);

/// What a finding is given of the screen.
const LINES_SHOWN: usize = 60;

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ready(&[Need::Fuzz])?;
    let compiler = Compiler::probe()?;
    let sanitized = match compiler.sanitizer() {
        Some(_) => "with AddressSanitizer",
        None => "WITHOUT AddressSanitizer, which this rustc does not come with",
    };
    eprintln!("fuzz: {sanitized}");
    let program = build(&compiler)?;
    match &arguments.file {
        Some(file) => replay(&program, file),
        None => fuzz(&program, arguments.seconds, sanitized),
    }
}

/// The running compiler.
struct Compiler {
    host: String,
    libraries: PathBuf,
}

impl Compiler {
    fn probe() -> Result<Self> {
        let ask = |argument: &[&str]| -> Result<String> {
            let output = bpf::clean(Path::new("rustc")).args(argument).output().context("rustc cannot be run")?;
            ensure!(output.status.success(), "rustc {} ended with {}", argument.join(" "), output.status);
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let version = ask(&["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        Ok(Self { host: host.to_owned(), libraries: sysroot.join("lib/rustlib").join(host).join("lib") })
    }

    /// The runtime of AddressSanitizer; rustup's compilers have it, Debian's has not.
    fn sanitizer(&self) -> Option<PathBuf> {
        let files = fs::read_dir(&self.libraries).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_sanitizer =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("asan"));
        files.filter(is_sanitizer).min()
    }
}

fn build(compiler: &Compiler) -> Result<PathBuf> {
    let folder = folders::target().join("fuzz");
    let mut command = bpf::clean(&tools::cargo_fuzz()?);
    command
        .args(["fuzz", "build", TARGET, "--target", &compiler.host, "--fuzz-dir"])
        .arg(package())
        .arg("--target-dir");
    // Comparisons are not traced: most of them are those of what is promised, which teach nothing about packets.
    command.arg(&folder).arg("--no-trace-compares").current_dir(folders::workspace());
    if compiler.sanitizer().is_some() {
        // The flag that turns it on is not stable yet.
        command.args(["--sanitizer", "address"]).env("RUSTC_BOOTSTRAP", "1");
    } else {
        command.args(["--sanitizer", "none"]);
    }
    step::run("the fuzz target (about two minutes at first)", &mut command)?;
    Ok(folder.join(&compiler.host).join("release").join(TARGET))
}

fn package() -> PathBuf {
    folders::workspace().join("lb-ebpf/fuzz")
}

/// The program, with what it says on both outputs on one. Leaks are not looked for: that takes ptrace, which not every
/// container allows.
fn command(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(program);
    command.args([format!("-timeout={HANGS_AFTER}"), "-detect_leaks=0".to_owned()]);
    command.env("ASAN_OPTIONS", "detect_leaks=0:detect_odr_violation=0");
    command
}

fn replay(program: &Path, file: &Path) -> Result<ExitCode> {
    ensure!(file.is_file(), "{}: no such file", file.display());
    let status = for_each_line(command(program).arg(file).env("EVENKEEL_FUZZ_TELLS", "1"), |line| println!("{line}"))?;
    println!("{}: {}", file.display(), if status.success() { "no finding" } else { "a finding, see above" });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fuzz(program: &Path, seconds: u32, sanitized: &str) -> Result<ExitCode> {
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = folders::target().join("fuzz").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        Ok(folder)
    };
    let mut command = command(program);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={LENGTH_MAX}"));
    command.arg(format!("-artifact_prefix={}/", folder("findings")?.display()));
    // Into the first one goes what is found anew.
    command.arg(folder("corpus")?).arg(package().join("corpus").join(TARGET));
    eprintln!("fuzz: {seconds} s");
    let (begin, mut told) = (Instant::now(), Duration::ZERO);
    let (mut said, mut last, mut finding) = (VecDeque::new(), String::new(), None);
    let status = for_each_line(&mut command, |line| {
        if is_progress(line) {
            line.trim_end().clone_into(&mut last);
            if begin.elapsed() >= told + TELLS_EVERY {
                told = begin.elapsed();
                println!("  {} s  {last}", told.as_secs());
            }
            return;
        }
        finding = finding.take().or_else(|| written(line).map(str::to_owned));
        said.push_back(line.to_owned());
        if said.len() > LINES_SHOWN {
            said.pop_front();
        }
    })?;
    println!("  {} s  {last}", begin.elapsed().as_secs());
    if status.success() {
        println!("No finding in {seconds} s, {sanitized}.");
        return Ok(ExitCode::SUCCESS);
    }
    for line in said {
        println!("    {line}");
    }
    match finding {
        Some(file) => println!(
            "A finding. `cargo xtask fuzz {file}` shows it again, step by step. Once it is understood it belongs into {}.",
            package().join("corpus").join(TARGET).display()
        ),
        None => println!("The fuzz target ended with {status}, and wrote no finding."),
    }
    Ok(ExitCode::FAILURE)
}

/// Whether a line tells how far libFuzzer is.
fn is_progress(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
}

/// The file that libFuzzer has written what it found to.
fn written(line: &str) -> Option<&str> {
    line.split_once("Test unit written to ").map(|(_, file)| file.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_what_else_is_said() {
        assert!(is_progress("#1024\tpulse  cov: 1200 ft: 3400 corp: 100/20Kb lim: 512 exec/s: 512 rss: 120Mb"));
        for line in ["INFO: seed corpus: files: 39", "###### Recommended dictionary. ######", "#", ""] {
            assert!(!is_progress(line), "{line}");
        }
    }

    #[test]
    fn a_finding_is_known_by_the_file_it_was_written_to() {
        let line = "artifact_prefix='/a/'; Test unit written to /a/crash-01fd";
        assert_eq!(written(line), Some("/a/crash-01fd"));
        assert_eq!(written("Done 8679 runs in 61 second(s)"), None);
    }

    #[test]
    fn a_compiler_has_the_sanitizer_if_its_runtime_is_among_its_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler { host: "a-host".to_owned(), libraries: folder.path().to_owned() };
        assert_eq!(compiler.sanitizer(), None);
        let runtime = folder.path().join("librustc-stable_rt.asan.a");
        fs::write(&runtime, "").unwrap();
        assert_eq!(compiler.sanitizer(), Some(runtime));
    }
}
