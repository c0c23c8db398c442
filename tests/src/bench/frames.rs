//! Frames one way: a generator in the client's namespace, by `BPF_PROG_TEST_RUN` with live frames, and in the containers
//! a sink that counts and drops. All of one frame happens on one CPU, so that its whole cost shows.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    Options, Part, figures::Frames, programs::Programs, progress::Progress, samples::Samples, stand::Stand,
    stream::Stream,
};
use crate::{
    ask::{allowed_cpus, pin},
    packet::eth,
};

/// In how many flows.
const FLOWS: [u32; 2] = [1, 4096];

/// Makes a frame of 64 bytes.
const PAYLOAD: [u8; 22] = [0; 22];

/// Measures each way in turns.
///
/// # Errors
/// A program is refused, or a namespace is gone. Frames that are lost are no error, but told.
pub(super) fn measure(stands: &[Stand], options: &Options, progress: &Progress) -> Result<Vec<Frames>> {
    let stands = stands.iter().filter(|stand| stand.way.parts.contains(&Part::Frames));
    let mut roads = stands.map(Road::build).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for road in &roads {
        rows.extend(FLOWS.map(|flows| {
            let way = road.stand.way.name;
            Frames { way, flows, nanoseconds: Samples::default(), sent: 0, delivered: 0 }
        }));
    }
    for round in 1..=options.rounds {
        progress.say(&format!("frames one way, round {round} of {}", options.rounds));
        for (road, rows) in roads.iter_mut().zip(rows.chunks_mut(FLOWS.len())) {
            for row in rows {
                road.drive(row, options.frames).with_context(|| row.way.to_owned())?;
            }
        }
    }
    Ok(rows)
}

/// A way with a generator at one end and sinks at the other.
struct Road<'s> {
    stand: &'s Stand,
    generator: Programs,
    sinks: Programs,
}

impl<'s> Road<'s> {
    fn build(stand: &'s Stand) -> Result<Self> {
        let (sink, places) = stand.sinks();
        let mut sinks = Programs::load(&[sink], &[], stand.gateway)?;
        for (namespace, device) in places {
            sinks.attach(sink, namespace, device)?;
        }
        Ok(Self { stand, generator: Programs::load(&["xdp_generate"], &[], stand.gateway)?, sinks })
    }

    /// One round of one row. What flows have to be made for is not timed.
    fn drive(&mut self, row: &mut Frames, frames: u32) -> Result<()> {
        let client = self.stand.lab.client();
        let (from, to) = (client.v4.to_string(), self.stand.server());
        let query = eth().link(self.stand.client_side, CLIENT).between(&from, &to.ip().to_string());
        let query = query.udp(0, to.port()).without_checksum().payload(&PAYLOAD);
        let stream = Stream::by_port(&query, row.flows);
        let generator = &mut self.generator;
        let before = self.sinks.taken()?;
        // Meets all but a few of the flows.
        let warm = row.flows * 8;
        let nanoseconds = client.namespace.enter(|| {
            pin(*allowed_cpus()?.last().context("a CPU to run on")?)?;
            generator.generate(&stream, warm, "eth0")?;
            generator.generate(&stream, frames, "eth0")
        })?;
        let sent = u64::from(warm) + u64::from(frames);
        row.nanoseconds.add(nanoseconds);
        row.sent += sent;
        row.delivered += self.delivered(before, sent)?;
        Ok(())
    }

    /// Frames that have come since; the last ones may be on their way for a moment.
    fn delivered(&self, before: u64, sent: u64) -> Result<u64> {
        let mut delivered = 0;
        for _ in 0..100 {
            delivered = self.sinks.taken()? - before;
            if delivered >= sent {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(delivered)
    }
}

/// A sender's address; nobody answers it.
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];
