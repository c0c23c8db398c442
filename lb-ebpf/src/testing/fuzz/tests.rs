//! The corpus, replayed.

use std::{collections::BTreeMap, fs, path::PathBuf};

use super::*;
use seeds::{OUT_OF_REACH, Seed};

fn corpus() -> BTreeMap<String, Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/pipeline");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |file: PathBuf| (file.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&file).unwrap());
    files.map(read).collect()
}

#[test]
fn the_corpus_breaks_no_promise_and_meets_every_reason_in_reach() {
    let met: BTreeSet<Reason> = corpus().values().flat_map(|bytes| run(bytes)).collect();
    let all: BTreeSet<Reason> = Reason::ALL.iter().copied().collect();
    let out_of_reach: BTreeSet<Reason> = OUT_OF_REACH.iter().map(|(reason, _)| *reason).collect();
    assert_eq!(met, &all - &out_of_reach);
}

#[test]
fn each_seed_is_in_the_corpus_as_it_is_made() {
    let corpus = corpus();
    for Seed { name, bytes, .. } in seeds::all() {
        assert_eq!(corpus.get(name), Some(&bytes), "{name}: run the example fuzz-seeds");
    }
}

#[test]
fn each_seed_meets_the_reason_that_it_is_named_by() {
    for seed in seeds::all() {
        if let Some(reason) = seed.meets {
            assert!(run(&seed.bytes).contains(&reason), "{}", seed.name);
        }
    }
}

#[test]
fn steps_survive_their_bytes() {
    for Seed { name, bytes, .. } in seeds::all() {
        let mut input = Input { rest: &bytes[1..] };
        let mut written = Vec::new();
        while let Some(step) = Step::read(&mut input) {
            written.extend(step.to_bytes());
        }
        assert_eq!(written, bytes[1..], "{name}");
    }
}

#[test]
fn a_run_depends_on_its_bytes_alone() {
    for Seed { name, bytes, .. } in seeds::all() {
        assert_eq!(run(&bytes), run(&bytes), "{name}");
    }
}
