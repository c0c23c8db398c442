//! What Evenkeel is to reach, and whether it did.

use super::{
    figures::{Figures, Hook, counted},
    stand::{DEFAULT, IPTABLES, NFT, VETH_IPTABLES, VETH_NFT, XDP_REDIRECT},
};

/// One thing that it is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    what: Measure,
    limit: f64,
}

/// What is compared with the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
    /// At most so many nanoseconds above an empty program, the tables being hot, for each family.
    Stage(Hook, &'static str),
    /// At least so many times the frames a second of another way.
    Frames { way: &'static str, beside: &'static str, flows: u32 },
    /// At most so many times the other way's time within which half of the round trips are over.
    RoundTrip { way: &'static str, beside: &'static str },
    /// At least so many times the other way's queries a second.
    Queries { way: &'static str, beside: &'static str, sockets: u32 },
}

/// Every target.
pub const TARGETS: &[Target] = &[
    frames(DEFAULT, IPTABLES, 1, 2.5),
    frames(DEFAULT, IPTABLES, 4096, 2.5),
    frames(DEFAULT, NFT, 1, 2.3),
    frames(DEFAULT, NFT, 4096, 2.3),
    frames(XDP_REDIRECT, VETH_IPTABLES, 1, 3.0),
    frames(XDP_REDIRECT, VETH_IPTABLES, 4096, 3.0),
    frames(XDP_REDIRECT, VETH_NFT, 1, 2.5),
    frames(XDP_REDIRECT, VETH_NFT, 4096, 2.5),
    stage(Hook::Xdp, "flow hit, next hop kept", 130.0),
    stage(Hook::Xdp, "flow hit, left to tc", 100.0),
    stage(Hook::Xdp, "query, known pair", 130.0),
    stage(Hook::Xdp, "new flow", 450.0),
    stage(Hook::Xdp, "not ours", 55.0),
    Target { what: Measure::RoundTrip { way: DEFAULT, beside: NFT }, limit: 0.65 },
    Target { what: Measure::Queries { way: DEFAULT, beside: NFT, sockets: 1 }, limit: 1.1 },
    Target { what: Measure::Queries { way: DEFAULT, beside: NFT, sockets: 20 }, limit: 1.1 },
];

const fn frames(way: &'static str, beside: &'static str, flows: u32, limit: f64) -> Target {
    Target { what: Measure::Frames { way, beside, flows }, limit }
}

const fn stage(hook: Hook, name: &'static str, limit: f64) -> Target {
    Target { what: Measure::Stage(hook, name), limit }
}

/// Whether a target was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Met,
    /// It was not.
    Missed,
    /// What it compares was not measured.
    NotMeasured,
}

impl Verdict {
    /// In a word or two.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Target {
    /// What is to be reached, in words.
    pub fn name(&self) -> String {
        let limit = self.limit;
        match self.what {
            Measure::Stage(hook, name) => format!("{name} at {}: at most {limit} ns above empty", hook.name()),
            Measure::Frames { way, beside, flows } => {
                format!("frames, {}: {way} at least {limit} x {beside}", counted(flows, "flow"))
            }
            Measure::RoundTrip { way, beside } => format!("ping-pong p50: {way} at most {limit} x {beside}"),
            Measure::Queries { way, beside, sockets } => {
                format!("dnsperf, {}: {way} at least {limit} x {beside}", counted(sockets, "socket"))
            }
        }
    }

    /// What was measured of it; nothing by a quick run.
    pub fn reached(&self, figures: &Figures) -> Option<f64> {
        if figures.is_quick {
            return None;
        }
        match self.what {
            Measure::Stage(hook, name) => {
                let rows = figures.stages.iter().filter(|row| row.hook == hook && row.name == name && row.clients <= 1);
                rows.map(|row| figures.above_empty(row)).reduce(|a, b| Some(f64::max(a?, b?)))?
            }
            Measure::Frames { way, beside, flows } => {
                let of = |way| {
                    let row = figures.frames.iter().find(|row| row.way == way && row.flows == flows)?;
                    // What was lost was not forwarded.
                    (row.delivered == row.sent).then(|| row.nanoseconds.least())?
                };
                Some(of(beside)? / of(way)?)
            }
            Measure::RoundTrip { way, beside } => {
                let of = |way| figures.round_trips.iter().find(|row| row.way == way)?.p50.least();
                Some(of(way)? / of(beside)?)
            }
            Measure::Queries { way, beside, sockets } => {
                let of = |way| {
                    let row = figures.queries.iter().find(|row| row.way == way && row.sockets == sockets);
                    // The median, because dnsperf and BIND share the processors, and the most is luck.
                    row?.per_second.median()
                };
                Some(of(way)? / of(beside)?)
            }
        }
    }

    /// Whether it was reached.
    pub fn judge(&self, figures: &Figures) -> Verdict {
        let Some(reached) = self.reached(figures) else { return Verdict::NotMeasured };
        let is_met = match self.what {
            Measure::Stage(..) | Measure::RoundTrip { .. } => reached <= self.limit,
            Measure::Frames { .. } | Measure::Queries { .. } => reached >= self.limit,
        };
        if is_met { Verdict::Met } else { Verdict::Missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        figures::{EMPTY, Frames, Queries, RoundTrips, tests},
        samples::Samples,
    };

    fn frames_of(way: &'static str, nanoseconds: f64, delivered: u64) -> Frames {
        Frames { way, flows: 1, nanoseconds: Samples::from_iter([nanoseconds, 9000.0]), sent: 10, delivered }
    }

    fn check(target: Target, figures: &Figures, reached: Option<f64>, verdict: Verdict) {
        assert_eq!((target.reached(figures), target.judge(figures)), (reached, verdict), "{}", target.name());
    }

    #[test]
    fn frames_are_compared_by_the_best_of_their_rounds() {
        let frames_measured = vec![frames_of("ours", 800.0, 10), frames_of("theirs", 2000.0, 10)];
        let figures = Figures { frames: frames_measured, ..Figures::default() };
        check(frames("ours", "theirs", 1, 2.5), &figures, Some(2.5), Verdict::Met);
        check(frames("ours", "theirs", 1, 2.6), &figures, Some(2.5), Verdict::Missed);
        check(frames("ours", "theirs", 4096, 2.5), &figures, None, Verdict::NotMeasured);
        let quick = Figures { is_quick: true, ..figures };
        check(frames("ours", "theirs", 1, 2.5), &quick, None, Verdict::NotMeasured);
    }

    #[test]
    fn frames_that_were_lost_meet_no_target() {
        let frames_measured = vec![frames_of("ours", 1.0, 9), frames_of("theirs", 2000.0, 10)];
        let figures = Figures { frames: frames_measured, ..Figures::default() };
        check(frames("ours", "theirs", 1, 2.5), &figures, None, Verdict::NotMeasured);
    }

    #[test]
    fn a_stage_is_compared_above_its_empty_program_by_its_slower_family() {
        let mut stages = vec![tests::stage(Hook::Xdp, EMPTY, 40.0), tests::stage(Hook::Xdp, "x", 140.0)];
        let mut many = tests::stage(Hook::Xdp, "x", 900.0);
        many.clients = 65_536;
        stages.push(many);
        for (name, nanoseconds) in [(EMPTY, 45.0), ("x", 150.0)] {
            stages.push(figures_v6(tests::stage(Hook::Xdp, name, nanoseconds)));
        }
        let figures = Figures { stages, ..Figures::default() };
        check(stage(Hook::Xdp, "x", 105.0), &figures, Some(105.0), Verdict::Met);
        check(stage(Hook::Xdp, "x", 104.0), &figures, Some(105.0), Verdict::Missed);
        check(stage(Hook::Tc, "x", 105.0), &figures, None, Verdict::NotMeasured);
    }

    fn figures_v6(mut stage: crate::bench::figures::Stage) -> crate::bench::figures::Stage {
        stage.family = lb_common::addr::Family::V6;
        stage
    }

    #[test]
    fn round_trips_are_to_be_short_and_queries_many() {
        let trips = |way, p50| RoundTrips {
            way,
            p50: Samples::from_iter([p50]),
            p99: Samples::default(),
            per_second: Samples::default(),
            lost: 0,
        };
        let queries = |way, per_second: [f64; 3]| Queries {
            way,
            sockets: 20,
            per_second: per_second.into_iter().collect(),
            p50: Samples::default(),
            p99: Samples::default(),
            lost: 0,
        };
        let figures = Figures {
            round_trips: vec![trips("ours", 6.0), trips("theirs", 10.0)],
            queries: vec![queries("ours", [120.0, 1.0, 110.0]), queries("theirs", [100.0, 100.0, 400.0])],
            ..Figures::default()
        };
        let trip = |limit| Target { what: Measure::RoundTrip { way: "ours", beside: "theirs" }, limit };
        check(trip(0.65), &figures, Some(0.6), Verdict::Met);
        check(trip(0.59), &figures, Some(0.6), Verdict::Missed);
        let of = |limit| Target { what: Measure::Queries { way: "ours", beside: "theirs", sockets: 20 }, limit };
        check(of(1.1), &figures, Some(1.1), Verdict::Met);
        check(of(1.2), &figures, Some(1.1), Verdict::Missed);
    }
}
