//! What was measured, as values: what the parts of the bench fill and the report shows.

use std::collections::BTreeMap;

use lb_common::addr::Family;

use super::{machine::Facts, samples::Samples};

/// All that one bench came to.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What it was measured on.
    pub machine: Facts,
    /// How often each row was measured.
    pub rounds: u32,
    /// Whether little of each was measured, so that no figure means anything.
    pub is_quick: bool,
    /// What the verifier took for each program, where the kernel tells.
    pub verified: BTreeMap<String, u32>,
    /// Programs by themselves.
    pub stages: Vec<Stage>,
    /// Frames one way.
    pub frames: Vec<Frames>,
    /// One query at a time.
    pub round_trips: Vec<RoundTrips>,
    /// Queries of dnsperf.
    pub queries: Vec<Queries>,
}

/// The hook a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Traffic control.
    Tc,
    /// The driver.
    Xdp,
}

impl Hook {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

/// What a program took for one packet.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it was measured at.
    pub hook: Hook,
    /// What the packet was to the program.
    pub name: &'static str,
    /// Its family.
    pub family: Family,
    /// From how many clients packets came, in no order; zero where each came from another one.
    pub clients: u32,
    /// Nanoseconds a packet, with the front and the kernel's loop around it.
    pub nanoseconds: Samples,
}

impl Stage {
    /// The name, with the clients where they are many.
    pub fn title(&self) -> String {
        match self.clients {
            0 | 1 => self.name.to_owned(),
            many => format!("{}, {many} clients", self.name),
        }
    }

    /// Whether both are of one hook and family, so that one can be told in terms of the other.
    pub fn is_beside(&self, other: &Self) -> bool {
        self.hook == other.hook && self.family == other.family
    }
}

/// Frames that went one way, from the client's device into the containers.
#[derive(Clone, Debug)]
pub struct Frames {
    /// By which way.
    pub way: &'static str,
    /// In how many flows.
    pub flows: u32,
    /// Nanoseconds a frame, the generator and the sink with it.
    pub nanoseconds: Samples,
    /// Frames sent.
    pub sent: u64,
    /// Frames that came.
    pub delivered: u64,
}

/// One query at a time, each sent when the last was answered.
#[derive(Clone, Debug)]
pub struct RoundTrips {
    /// By which way.
    pub way: &'static str,
    /// Microseconds within which half of them came back.
    pub p50: Samples,
    /// Microseconds within which 99 of a hundred came back.
    pub p99: Samples,
    /// How many there were a second.
    pub per_second: Samples,
    /// Queries without an answer.
    pub lost: u64,
}

/// Queries of dnsperf that four BINDs answered.
#[derive(Clone, Debug)]
pub struct Queries {
    /// By which way.
    pub way: &'static str,
    /// From how many sockets.
    pub sockets: u32,
    /// As many a second as came back.
    pub per_second: Samples,
    /// Microseconds within which half came back, at a rate that all ways can take.
    pub p50: Samples,
    /// Microseconds within which 99 of a hundred came back, at that rate.
    pub p99: Samples,
    /// Queries without an answer.
    pub lost: u64,
}

impl Figures {
    /// What a row took above an empty program behind the same front, by the least of its rounds.
    pub fn above_empty(&self, stage: &Stage) -> Option<f64> {
        let empty = self.reference(stage, EMPTY)?;
        Some(stage.nanoseconds.least()? - empty.nanoseconds.least()?)
    }

    /// The same by the medians.
    pub fn median_above_empty(&self, stage: &Stage) -> Option<f64> {
        let empty = self.reference(stage, EMPTY)?;
        Some(stage.nanoseconds.median()? - empty.nanoseconds.median()?)
    }

    /// How many times a row took what one look-up in a hash takes, both above an empty program.
    pub fn in_look_ups(&self, stage: &Stage) -> Option<f64> {
        let look_up = self.above_empty(self.reference(stage, LOOK_UP)?)?;
        let own = self.above_empty(stage)?;
        (look_up > 0.0).then_some(own / look_up)
    }

    fn reference(&self, stage: &Stage, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|other| other.name == name && other.is_beside(stage))
    }

    /// What is not as it has to be for the figures to mean anything.
    pub fn faults(&self) -> Vec<String> {
        let lost_frames = self.frames.iter().filter(|row| row.delivered != row.sent).map(|row| {
            format!("frames, {}, {}: {} of {} came", row.way, counted(row.flows, "flow"), row.delivered, row.sent)
        });
        let lost_trips = self.round_trips.iter().filter(|row| row.lost > 0);
        let lost_trips = lost_trips.map(|row| format!("ping-pong, {}: {} without an answer", row.way, row.lost));
        let lost_queries = self.queries.iter().filter(|row| row.lost > 0);
        let lost_queries = lost_queries.map(|row| {
            format!("dnsperf, {}, {}: {} without an answer", row.way, counted(row.sockets, "socket"), row.lost)
        });
        lost_frames.chain(lost_trips).chain(lost_queries).collect()
    }
}

/// So many of something.
pub fn counted(count: impl Into<u64>, what: &str) -> String {
    match count.into() {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

/// The program that does nothing.
pub const EMPTY: &str = "reference: empty";
/// The program that reads the headers.
pub const PARSE: &str = "reference: parse";
/// The program that looks up a destination in a hash.
pub const LOOK_UP: &str = "reference: one hash look-up";

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row that took this in its only round.
    pub(crate) fn stage(hook: Hook, name: &'static str, nanoseconds: f64) -> Stage {
        let nanoseconds = Samples::from_iter([nanoseconds]);
        Stage { hook, name, family: Family::V4, clients: 1, nanoseconds }
    }

    #[test]
    fn a_row_is_told_above_the_empty_program_of_its_own_hook() {
        let stages = vec![
            stage(Hook::Tc, EMPTY, 50.0),
            stage(Hook::Xdp, EMPTY, 40.0),
            stage(Hook::Xdp, LOOK_UP, 65.0),
            stage(Hook::Xdp, "flow hit", 140.0),
        ];
        let figures = Figures { stages, ..Figures::default() };
        assert_eq!(figures.above_empty(&figures.stages[3]), Some(100.0));
        assert_eq!(figures.in_look_ups(&figures.stages[3]), Some(4.0));
        assert_eq!(figures.in_look_ups(&figures.stages[0]), None, "nothing was looked up at this hook");
    }

    #[test]
    fn what_did_not_arrive_is_a_fault() {
        let row = |delivered| Frames { way: "w", flows: 1, nanoseconds: Samples::default(), sent: 10, delivered };
        let figures = Figures { frames: vec![row(10), row(9)], ..Figures::default() };
        assert_eq!(figures.faults(), ["frames, w, 1 flow: 9 of 10 came"]);
    }
}
