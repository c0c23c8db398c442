//! One query at a time: a client of ours sends the next when the last was answered. In the container a program at the
//! device answers, so that no process is woken up there, whatever the way.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    Options, Part,
    figures::RoundTrips,
    programs::Programs,
    progress::Progress,
    samples::{Samples, percentile},
    stand::Stand,
};
use crate::ask::{allowed_cpus, pin};

/// Round trips before those that count.
const WARM: usize = 200;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

/// Measures each way in turns.
///
/// # Errors
/// A program is refused, or a namespace is gone. Queries without an answer are no error, but told.
pub(super) fn measure(stands: &[Stand], options: &Options, progress: &Progress) -> Result<Vec<RoundTrips>> {
    let stands: Vec<_> = stands.iter().filter(|stand| stand.way.parts.contains(&Part::PingPong)).collect();
    // Held until all are measured.
    let _answers = stands.iter().map(|stand| answer(stand)).collect::<Result<Vec<_>>>()?;
    let mut rows: Vec<_> = stands.iter().map(|stand| row(stand.way.name)).collect();
    for round in 1..=options.rounds {
        progress.say(&format!("ping-pong, round {round} of {}", options.rounds));
        for (stand, row) in stands.iter().zip(&mut rows) {
            let work = || trips(stand.server(), options.round_trips);
            stand.lab.client().namespace.enter(work).with_context(|| row.way.to_owned())?.add_to(row);
        }
    }
    Ok(rows)
}

fn row(way: &'static str) -> RoundTrips {
    let none = Samples::default;
    RoundTrips { way, p50: none(), p99: none(), per_second: none(), lost: 0 }
}

fn answer(stand: &Stand) -> Result<Programs> {
    let mut programs = Programs::load(&["tc_answer"], &[], stand.gateway)?;
    for (namespace, device) in stand.containers() {
        programs.attach("tc_answer", namespace, device)?;
    }
    Ok(programs)
}

/// What one round came to, in microseconds.
struct Trips {
    sorted: Vec<f64>,
    lost: u64,
}

impl Trips {
    fn add_to(&self, row: &mut RoundTrips) {
        row.lost += self.lost;
        let total: f64 = self.sorted.iter().sum();
        // A round without any answer is lost queries, and no figure.
        if let (Some(p50), Some(p99)) = (percentile(&self.sorted, 0.5), percentile(&self.sorted, 0.99)) {
            row.p50.add(p50);
            row.p99.add(p99);
            row.per_second.add(1e6 * self.sorted.len() as f64 / total);
        }
    }
}

fn trips(server: SocketAddr, count: usize) -> Result<Trips> {
    pin(*allowed_cpus()?.last().context("a CPU to run on")?)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut trips = Trips { sorted: Vec::with_capacity(count), lost: 0 };
    let mut buffer = [0; 64];
    for number in 0..WARM + count {
        // By its number an answer that comes too late is told from the next one.
        let query = [&number.to_be_bytes()[..], &[0; 24]].concat();
        let start = Instant::now();
        socket.send(&query)?;
        let is_answered = loop {
            match socket.recv(&mut buffer) {
                Ok(length) if buffer[..length] == query => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        match (is_answered, number < WARM) {
            (true, true) => {}
            (true, false) => trips.sorted.push(start.elapsed().as_nanos() as f64 / 1000.0),
            (false, _) => trips.lost += 1,
        }
        // Nothing comes: waiting for thousands more would tell nothing new.
        if trips.lost > 20 {
            break;
        }
    }
    trips.sorted.sort_by(f64::total_cmp);
    Ok(trips)
}
