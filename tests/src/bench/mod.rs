//! The bench: Evenkeel's programs by themselves, and its ways beside nft, iptables and plain routing, in one run.
//!
//! What belongs together is measured in turns: each round measures every row once, so that what else the machine does
//! meets all of them alike. How each part is measured is told where it is.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use self::{figures::Figures, machine::Facts, progress::Progress, stand::Stand};
use crate::{dnsperf::End, paint::Paint};

pub mod stages;
pub mod stream;

pub mod stand;
mod frames;
mod ping_pong;
mod queries;

mod programs;

pub mod figures;
pub mod machine;
pub mod samples;
pub mod targets;

mod json;
mod progress;
mod svg;
mod table;

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Programs by themselves.
    Stages,
    /// Frames one way.
    Frames,
    /// One query at a time.
    PingPong,
    /// dnsperf against four BINDs.
    Queries,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 4] = [Self::Stages, Self::Frames, Self::PingPong, Self::Queries];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stages => "stages",
            Self::Frames => "frames",
            Self::PingPong => "ping-pong",
            Self::Queries => "queries",
        }
    }
}

/// How much is measured of what, and where it is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is measured.
    pub parts: Vec<Part>,
    /// How often each row is.
    pub rounds: u32,
    /// Packets in each round of a program.
    pub runs: u32,
    /// Frames in each round of a way.
    pub frames: u32,
    /// Round trips in each.
    pub round_trips: usize,
    /// When each dnsperf ends.
    pub queries: End,
    /// Whether so little is measured that no figure means anything.
    pub is_quick: bool,
    /// Where the figures are written, if anywhere.
    pub json: Option<PathBuf>,
    /// Where the chart is written, if anywhere.
    pub svg: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            parts: Part::ALL.to_vec(),
            rounds: 11,
            runs: 200_000,
            frames: 400_000,
            round_trips: 20_000,
            queries: End::Seconds(2),
            is_quick: false,
            json: None,
            svg: None,
        }
    }
}

impl Options {
    /// As little as shows that the bench works.
    pub fn quick() -> Self {
        Self {
            rounds: 2,
            runs: 2000,
            frames: 4000,
            round_trips: 200,
            queries: End::Queries(1000),
            is_quick: true,
            ..Self::default()
        }
    }
}

/// Measures, prints and writes; says whether all that was sent arrived. A target that is missed is told, and no fault.
///
/// # Errors
/// As [`measure`] and [`write()`].
pub fn run(options: &Options) -> Result<bool> {
    let figures = measure(options)?;
    let mut stdout = io::stdout();
    let paint = Paint::of(&stdout);
    write!(stdout, "{}", table::text(&figures, paint))?;
    write(&figures, options)?;
    for path in [&options.json, &options.svg].into_iter().flatten() {
        writeln!(stdout, "{}", paint.dim(&path.display().to_string()))?;
    }
    Ok(figures.faults().is_empty())
}

/// Measures what the options ask for.
///
/// # Errors
/// The machine cannot run it, or packets did not come to what their row says.
pub fn measure(options: &Options) -> Result<Figures> {
    let progress = Progress::begin();
    let has = |part| options.parts.contains(&part);
    let mut figures =
        Figures { machine: Facts::read(), rounds: options.rounds, is_quick: options.is_quick, ..Figures::default() };
    if has(Part::Stages) {
        (figures.stages, figures.verified) = stages::measure(options, &progress)?;
    }
    if options.parts.iter().any(|part| *part != Part::Stages) {
        progress.say("setting up a lab for each way");
    }
    let stands = Stand::set_all(&options.parts)?;
    if has(Part::Frames) {
        figures.frames = frames::measure(&stands, options, &progress)?;
    }
    if has(Part::PingPong) {
        figures.round_trips = ping_pong::measure(&stands, options, &progress)?;
    }
    if has(Part::Queries) {
        figures.queries = queries::measure(&stands, options, &progress)?;
    }
    progress.say("taking the labs away");
    drop(stands);
    progress.end();
    Ok(figures)
}

/// Writes the figures and the chart where the options say.
///
/// # Errors
/// A file cannot be written.
pub fn write(figures: &Figures, options: &Options) -> Result<()> {
    if let Some(path) = &options.json {
        write_to(path, &format!("{:#}\n", json::value(figures)))?;
    }
    if let Some(path) = &options.svg {
        write_to(path, &svg::chart(figures))?;
    }
    Ok(())
}

fn write_to(path: &Path, text: &str) -> Result<()> {
    let name = || format!("{} cannot be written", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(name)?;
    }
    fs::write(path, text).with_context(name)
}
