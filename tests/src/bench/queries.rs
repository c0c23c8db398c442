//! dnsperf against four BINDs: as many queries a second as come back, and how long each takes at a rate that every way
//! can bear. dnsperf and the servers share the processors with the way that is measured.

use anyhow::{Context as _, Result};

use super::{
    Options, Part,
    figures::Queries,
    progress::Progress,
    samples::{Samples, percentile},
    stand::Stand,
};
use crate::dnsperf::{Dnsperf, End};

/// From how many sockets.
const SOCKETS: [u32; 2] = [1, 20];

/// Queries a second at which the time of each is taken. dnsperf writes a line for each, which it must have time for.
const RATE: usize = 10_000;

/// More passes make the bench long rather than sure.
const MOST_PASSES: u32 = 5;

/// Measures each way in turns.
///
/// # Errors
/// dnsperf does not run. Queries without an answer are no error, but told.
pub(super) fn measure(stands: &[Stand], options: &Options, progress: &Progress) -> Result<Vec<Queries>> {
    let stands: Vec<_> = stands.iter().filter(|stand| stand.way.parts.contains(&Part::Queries)).collect();
    let mut rows: Vec<_> =
        stands.iter().flat_map(|stand| SOCKETS.map(|sockets| row(stand.way.name, sockets))).collect();
    let passes = options.rounds.min(MOST_PASSES);
    for pass in 1..=passes {
        progress.say(&format!("dnsperf, pass {pass} of {passes}"));
        for (stand, rows) in stands.iter().zip(rows.chunks_mut(SOCKETS.len())) {
            for row in rows {
                ask(stand, row, options.queries).with_context(|| row.way.to_owned())?;
            }
        }
    }
    Ok(rows)
}

fn row(way: &'static str, sockets: u32) -> Queries {
    let none = Samples::default;
    Queries { way, sockets, per_second: none(), p50: none(), p99: none(), lost: 0 }
}

fn ask(stand: &Stand, row: &mut Queries, end: End) -> Result<()> {
    let client = &stand.lab.client().namespace;
    let all = Dnsperf { clients: row.sockets as usize, end, ..Dnsperf::to(stand.server()) };
    let report = all.run(&stand.lab, client)?;
    row.per_second.add(report.per_second);
    let paced = Dnsperf { rate: Some(RATE), tells_each: true, ..all };
    let (paced, mut seconds) = paced.start(&stand.lab, client)?.finish_with_each()?;
    row.lost += (report.lost + paced.lost) as u64;
    seconds.sort_by(f64::total_cmp);
    let of = |share| percentile(&seconds, share).context("dnsperf tells of no query");
    row.p50.add(1e6 * of(0.5)?);
    row.p99.add(1e6 * of(0.99)?);
    Ok(())
}
