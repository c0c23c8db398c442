//! What test binaries say at their end, added up, and what it means for the exit code.

use std::{fmt, ops::AddAssign};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Why a run whose tests ended is no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A test failed, or a test binary did not build or did not end well.
    Failed,
    /// A test was skipped where all have to run.
    Skipped,
    /// No test ran.
    Empty,
}

/// Judges a run. All have to run where root is there or a continuous integration asks.
pub(crate) fn judge(counts: Counts, has_root: bool, is_ci: bool) -> Result<(), Refusal> {
    if counts.failed > 0 {
        Err(Refusal::Failed)
    } else if counts.skipped > 0 && (has_root || is_ci) {
        Err(Refusal::Skipped)
    } else if counts.passed == 0 {
        Err(Refusal::Empty)
    } else {
        Ok(())
    }
}

/// Reads the last line of a test binary, as libtest and libtest-mimic write it.
pub(crate) fn result(line: &str) -> Option<Counts> {
    let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let mut read = Counts::default();
    for part in counts.split("; ") {
        match part.split_once(' ') {
            Some((number, "passed")) => read.passed = number.parse().ok()?,
            Some((number, "failed")) => read.failed = number.parse().ok()?,
            Some((number, "ignored")) => read.skipped = number.parse().ok()?,
            // "0 measured", "3 filtered out", "finished in 0.01s".
            Some(_) | None => {}
        }
    }
    Some(read)
}

/// Reads the name of a test that did not pass, with what became of it.
pub(crate) fn not_passed(line: &str) -> Option<String> {
    let (name, outcome) = line.trim().strip_prefix("test ")?.split_once(" ... ")?;
    let did_not = outcome.starts_with("FAILED") || outcome.starts_with("ignored");
    did_not.then(|| format!("{}: {outcome}", name.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Counts = Counts { passed: 0, failed: 0, skipped: 0 };

    #[test]
    fn the_line_of_libtest_is_read() {
        let line = "test result: ok. 15 passed; 0 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.96s";
        assert_eq!(result(line), Some(Counts { passed: 15, failed: 0, skipped: 2 }));
        let line = "test result: FAILED. 1 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s";
        assert_eq!(result(line), Some(Counts { passed: 1, failed: 4, skipped: 0 }));
    }

    #[test]
    fn other_lines_are_no_result() {
        for line in ["", "running 3 tests", "test result", "test a ... ok", "its test result: ok. 1 passed"] {
            assert_eq!(result(line), None, "{line}");
        }
    }

    #[test]
    fn counts_are_printed_as_the_last_line_has_them() {
        let mut counts = Counts { passed: 3, failed: 1, skipped: 0 };
        counts += Counts { passed: 1, failed: 0, skipped: 2 };
        assert_eq!(counts.to_string(), "4 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_run_in_which_nothing_ran_is_no_success() {
        assert_eq!(judge(NONE, false, false), Err(Refusal::Empty));
        assert_eq!(judge(Counts { skipped: 1, ..NONE }, false, false), Err(Refusal::Empty));
    }

    #[test]
    fn a_failure_is_no_success() {
        assert_eq!(judge(Counts { passed: 5, failed: 1, skipped: 1 }, true, true), Err(Refusal::Failed));
    }

    #[test]
    fn a_skipped_test_is_no_success_where_all_have_to_run() {
        let counts = Counts { passed: 5, failed: 0, skipped: 1 };
        assert_eq!(judge(counts, false, false), Ok(()));
        assert_eq!(judge(counts, true, false), Err(Refusal::Skipped));
        assert_eq!(judge(counts, false, true), Err(Refusal::Skipped));
    }

    #[test]
    fn a_run_in_which_all_passed_is_a_success() {
        assert_eq!(judge(Counts { passed: 1, ..NONE }, true, true), Ok(()));
    }

    #[test]
    fn tests_that_did_not_pass_are_known_by_name() {
        assert_eq!(not_passed("test a::b ... FAILED").as_deref(), Some("a::b: FAILED"));
        assert_eq!(not_passed("test [ring] a   ... ignored").as_deref(), Some("[ring] a: ignored"));
        assert_eq!(not_passed("test c ... ignored, needs root").as_deref(), Some("c: ignored, needs root"));
        assert_eq!(not_passed("test d ... ok"), None);
    }
}
