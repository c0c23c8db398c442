//! Which test binaries make up which ring, and which of them were asked for.

/// The rings, in the order they run: what is quick and broad first.
pub(crate) const NAMES: [&str; 3] = ["unit", "cases", "scenarios"];

/// A part of the tests that runs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    pub(crate) name: &'static str,
    /// The arguments of each `cargo test` that it takes.
    pub(crate) runs: Vec<Vec<String>>,
    /// Whether its tests need root.
    pub(crate) needs_root: bool,
}

/// The files of the second ring; the others of the testbed are the third.
const CASES: [&str; 2] = ["cases", "agreement"];

/// Returns the rings for what was asked: all, a ring, one file of the testbed's, or the tests whose name contains a word.
///
/// `files` are the names of the testbed's test files.
pub(crate) fn asked(asked: Option<&str>, files: &[String]) -> (Vec<Ring>, Option<String>) {
    let all = all(files);
    let Some(asked) = asked else { return (all, None) };
    if NAMES.contains(&asked) {
        return (all.into_iter().filter(|ring| ring.name == asked).collect(), None);
    }
    if files.iter().any(|file| file == asked) {
        let name = if CASES.contains(&asked) { "cases" } else { "scenarios" };
        return (vec![of_files(name, &[asked.to_owned()])], None);
    }
    (all, Some(asked.to_owned()))
}

fn all(files: &[String]) -> Vec<Ring> {
    let (cases, scenarios): (Vec<String>, Vec<String>) =
        files.iter().cloned().partition(|file| CASES.contains(&file.as_str()));
    let rings = [unit(), of_files("cases", &cases), of_files("scenarios", &scenarios)];
    rings.into_iter().filter(|ring| !ring.runs.is_empty()).collect()
}

fn unit() -> Ring {
    let packages = ["lb-common", "lb-ebpf", "lb-userspace", "xtask"];
    let packages = packages.iter().flat_map(|package| ["--package".to_owned(), (*package).to_owned()]).collect();
    let testbed = ["--package", "testbed", "--lib", "--bins"].map(str::to_owned).to_vec();
    Ring { name: "unit", runs: vec![packages, testbed], needs_root: false }
}

fn of_files(name: &'static str, files: &[String]) -> Ring {
    let mut run = vec!["--package".to_owned(), "testbed".to_owned()];
    run.extend(files.iter().flat_map(|file| ["--test".to_owned(), file.clone()]));
    let runs = if files.is_empty() { Vec::new() } else { vec![run] };
    Ring { name, runs, needs_root: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: Option<&str>, expected: &[(&str, &str)], expected_filter: Option<&str>) {
        let files = ["agreement", "cases", "evenness", "reload"].map(str::to_owned);
        let (rings, filter) = asked(what, &files);
        let flat: Vec<(&str, String)> =
            rings.iter().flat_map(|ring| ring.runs.iter().map(|run| (ring.name, run.join(" ")))).collect();
        let flat: Vec<(&str, &str)> = flat.iter().map(|(name, run)| (*name, run.as_str())).collect();
        assert_eq!(flat, expected);
        assert_eq!(filter.as_deref(), expected_filter);
    }

    const UNIT: [(&str, &str); 2] = [
        ("unit", "--package lb-common --package lb-ebpf --package lb-userspace --package xtask"),
        ("unit", "--package testbed --lib --bins"),
    ];
    const KERNEL: (&str, &str) = ("cases", "--package testbed --test agreement --test cases");
    const LIVE: (&str, &str) = ("scenarios", "--package testbed --test evenness --test reload");

    #[test]
    fn all_rings_run_when_nothing_is_asked_for() {
        check(None, &[UNIT[0], UNIT[1], KERNEL, LIVE], None);
    }

    #[test]
    fn a_ring_is_asked_for_by_its_name() {
        check(Some("unit"), &UNIT, None);
        check(Some("scenarios"), &[LIVE], None);
    }

    #[test]
    fn the_name_of_a_file_of_a_ring_of_the_same_name_means_the_ring() {
        check(Some("cases"), &[KERNEL], None);
    }

    #[test]
    fn a_file_is_asked_for_by_its_name() {
        check(Some("reload"), &[("scenarios", "--package testbed --test reload")], None);
        check(Some("agreement"), &[("cases", "--package testbed --test agreement")], None);
    }

    #[test]
    fn any_other_word_filters_the_tests_of_all_rings() {
        check(Some("tcp over v6"), &[UNIT[0], UNIT[1], KERNEL, LIVE], Some("tcp over v6"));
    }

    #[test]
    fn a_ring_without_files_does_not_run() {
        assert_eq!(asked(Some("cases"), &[]).0, []);
        assert_eq!(asked(None, &[]).0, [unit()]);
    }
}
