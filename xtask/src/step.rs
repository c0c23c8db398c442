//! Runs a command and tells of it: what it is while it runs, how long it took, and its output only when it fails.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use xtask::folders;

/// What a command that failed is given of the screen.
const LINES_SHOWN: usize = 60;

/// How often a running command is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Runs a command in silence, under a label.
///
/// # Errors
///
/// When it cannot be run or fails; the end of its output is printed then.
pub(crate) fn run(label: &str, command: &mut Command) -> Result<()> {
    bounded(label, command, Duration::MAX)
}

/// Runs a command as [`run`] does, for at most a time.
///
/// # Errors
///
/// As [`run`], and when the time is over.
pub(crate) fn bounded(label: &str, command: &mut Command, at_most: Duration) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut output = unnamed_file()?;
    let begin = Instant::now();
    let mut line = Line::begin(label);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?)
        .spawn()
        .with_context(|| format!("{program} cannot be run"))?;
    let status = wait(&mut child, begin, at_most, &mut line)?;
    let outcome = match status {
        Some(status) if status.success() => return line.end("ok", begin),
        Some(status) => format!("{program} ended with {status}"),
        None => format!("{program} was ended after {} s", at_most.as_secs()),
    };
    line.end("FAILED", begin)?;
    output.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    output.read_to_end(&mut text)?;
    eprintln!("{}", tail(&String::from_utf8_lossy(&text)));
    bail!("{label}: {outcome}")
}

fn wait(child: &mut Child, begin: Instant, at_most: Duration, line: &mut Line) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() > at_most {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        line.tick(begin);
        thread::sleep(LOOK);
    }
}

/// A file without a name, so that nothing is left of it.
fn unnamed_file() -> Result<File> {
    let folder = folders::target();
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let path = folder.join(format!("xtask-step-{}", std::process::id()));
    let file = File::options().read(true).append(true).create_new(true).open(&path);
    let file = file.with_context(|| format!("{} cannot be made", path.display()))?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let shown = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    shown.iter().map(|line| format!("    {line}\n")).collect()
}

/// The line of the screen that tells of a running command.
struct Line {
    label: String,
    rewrites: bool,
    shown: u64,
}

impl Line {
    fn begin(label: &str) -> Self {
        let rewrites = io::stderr().is_terminal();
        if rewrites {
            eprint!("  {label} …");
        } else {
            eprintln!("  {label} …");
        }
        Line { label: label.to_owned(), rewrites, shown: 0 }
    }

    fn tick(&mut self, begin: Instant) {
        let seconds = begin.elapsed().as_secs();
        // Where no line can be rewritten, a sign of life every half minute.
        let due = if self.rewrites { seconds > self.shown } else { seconds >= self.shown + 30 };
        if due && self.rewrites {
            eprint!("\r  {} … {seconds} s ", self.label);
        } else if due {
            eprintln!("  {} … {seconds} s", self.label);
        }
        if due {
            self.shown = seconds;
        }
    }

    fn end(&self, outcome: &str, begin: Instant) -> Result<()> {
        let start = if self.rewrites { "\r" } else { "" };
        writeln!(io::stderr(), "{start}  {}: {outcome}, {:.1} s", self.label, begin.elapsed().as_secs_f32())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_is_named_with_its_exit() {
        let error = run("the label", Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "the label: sh ended with exit status: 3");
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let begin = Instant::now();
        let error = bounded("the label", Command::new("sleep").arg("60"), Duration::from_millis(200)).unwrap_err();
        assert!(error.to_string().starts_with("the label: sleep was ended"), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn of_a_long_output_the_end_is_shown() {
        let text: String = (0..100).map(|number| format!("line {number}\n")).collect();
        let shown = tail(&text);
        assert_eq!(shown.lines().count(), LINES_SHOWN);
        assert!(shown.ends_with("    line 99\n"));
    }
}
