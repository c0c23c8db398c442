//! The figures for programs to read.

use lb_common::addr::Family;
use serde_json::{Value, json};

use super::{figures::Figures, samples::Samples, targets::TARGETS};

/// All figures, every round of each row, and the verdicts.
pub(super) fn value(figures: &Figures) -> Value {
    let machine = &figures.machine;
    let stages = figures.stages.iter().map(|row| {
        json!({
            "hook": row.hook.name(),
            "name": row.name,
            "family": match row.family { Family::V4 => 4, Family::V6 => 6 },
            "clients": row.clients,
            "nanoseconds": samples(&row.nanoseconds),
            "above_empty": figures.above_empty(row),
            "median_above_empty": figures.median_above_empty(row),
            "in_look_ups": figures.in_look_ups(row),
        })
    });
    let frames = figures.frames.iter().map(|row| {
        json!({
            "way": row.way,
            "flows": row.flows,
            "nanoseconds": samples(&row.nanoseconds),
            "per_second": row.nanoseconds.least().map(|least| 1e9 / least),
            "sent": row.sent,
            "delivered": row.delivered,
        })
    });
    let round_trips = figures.round_trips.iter().map(|row| {
        json!({
            "way": row.way,
            "p50_microseconds": samples(&row.p50),
            "p99_microseconds": samples(&row.p99),
            "per_second": samples(&row.per_second),
            "lost": row.lost,
        })
    });
    let queries = figures.queries.iter().map(|row| {
        json!({
            "way": row.way,
            "sockets": row.sockets,
            "per_second": samples(&row.per_second),
            "p50_microseconds": samples(&row.p50),
            "p99_microseconds": samples(&row.p99),
            "lost": row.lost,
        })
    });
    let targets = TARGETS.iter().map(|target| {
        json!({
            "target": target.name(),
            "reached": target.reached(figures),
            "verdict": target.judge(figures).name(),
        })
    });
    json!({
        "machine": {
            "kernel": machine.kernel,
            "cpu": machine.cpu,
            "cpus": machine.cpus,
            "mitigations": machine.mitigations,
        },
        "rounds": figures.rounds,
        "is_quick": figures.is_quick,
        "verified_instructions": figures.verified,
        "stages": stages.collect::<Vec<_>>(),
        "frames": frames.collect::<Vec<_>>(),
        "round_trips": round_trips.collect::<Vec<_>>(),
        "queries": queries.collect::<Vec<_>>(),
        "targets": targets.collect::<Vec<_>>(),
        "faults": figures.faults(),
    })
}

fn samples(samples: &Samples) -> Value {
    json!({
        "least": samples.least(),
        "median": samples.median(),
        "most": samples.most(),
        "all": samples.all(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{EMPTY, Frames, Hook, tests::stage};

    #[test]
    fn figures_and_verdicts_are_written() {
        let stages = vec![stage(Hook::Tc, EMPTY, 40.0), stage(Hook::Tc, "flow hit", 160.0)];
        let nanoseconds = Samples::from_iter([800.0, 1000.0]);
        let frames = vec![Frames { way: "w", flows: 1, nanoseconds, sent: 8, delivered: 7 }];
        let value = value(&Figures { stages, frames, rounds: 2, ..Figures::default() });
        assert_eq!(value["stages"][1]["above_empty"], 120.0);
        assert_eq!(
            value["frames"][0]["nanoseconds"],
            json!({
                "least": 800.0, "median": 900.0, "most": 1000.0, "all": [800.0, 1000.0],
            })
        );
        assert_eq!(value["frames"][0]["per_second"], 1_250_000.0);
        assert_eq!(value["targets"].as_array().unwrap().len(), TARGETS.len());
        assert_eq!(value["targets"][0]["verdict"], "not measured");
        assert_eq!(value["faults"], json!(["frames, w, 1 flow: 7 of 8 came"]));
    }
}
