//! The bench works: measured quickly, every row has a figure, every counter is exact, and both are written.
//! What the figures are is no matter here.

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use lb_common::addr::Family;
use serde_json::Value;
use testbed::{
    bench::{self, Options, Part, samples::Samples, stages, stand},
    harness::{on_root, run},
};

fn main() -> ExitCode {
    run(vec![on_root("a quick bench has a figure in every row and writes them down", every_row_has_a_figure)])
}

fn every_row_has_a_figure() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let options = Options {
        json: Some(folder.path().join("bench.json")),
        svg: Some(folder.path().join("bench.svg")),
        ..Options::quick()
    };
    // A packet that was not what its row says, or was not counted, is an error.
    let figures = bench::measure(&options)?;
    let is_whole = |samples: &Samples| {
        samples.all().len() == options.rounds as usize && samples.all().iter().all(|figure| *figure > 0.0)
    };

    let stages = figures.stages.iter().map(|row| (row.hook, row.name, row.family, row.clients)).collect::<Vec<_>>();
    for row in stages::ROWS {
        for family in [Family::V4, Family::V6] {
            let of_family = (row.hook, row.name, family, row.clients);
            ensure!(stages.iter().filter(|other| **other == of_family).count() == 1, "{of_family:?} in {stages:?}");
        }
    }
    ensure!(stages.len() == 2 * stages::ROWS.len());
    ensure!(figures.stages.iter().all(|row| is_whole(&row.nanoseconds)), "{:?}", figures.stages);
    ensure!(figures.verified.values().all(|taken| *taken > 0) && figures.verified.len() >= 6, "{:?}", figures.verified);

    let ways = |asked: Part| stand::WAYS.iter().filter(move |way| way.parts.contains(&asked)).count();
    ensure!(
        figures.frames.len() == 2 * ways(Part::Frames) && figures.frames.iter().all(|row| is_whole(&row.nanoseconds))
    );
    ensure!(
        figures.round_trips.len() == ways(Part::PingPong) && figures.round_trips.iter().all(|row| is_whole(&row.p50))
    );
    ensure!(figures.queries.len() == 2 * ways(Part::Queries) && figures.queries.iter().all(|row| is_whole(&row.p99)));
    ensure!(figures.faults().is_empty(), "{:?}", figures.faults());

    bench::write(&figures, &options)?;
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.path().join("bench.json"))?)?;
    let written = json["stages"].as_array().context("stages in the file")?;
    ensure!(written.len() == figures.stages.len(), "{json}");
    let svg = std::fs::read_to_string(folder.path().join("bench.svg"))?;
    ensure!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
    ensure!(stand::WAYS.iter().all(|way| svg.contains(way.name)), "{svg}");
    Ok(())
}
