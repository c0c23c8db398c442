//! Reloads while clients ask: nothing is lost, nothing comes from a stranger, and a removed backend is left alone.

use std::{
    collections::BTreeSet,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use testbed::{
    bind::{self, Bind},
    capture::{self, Capture},
    crowd::{self, Crowd},
    curl::Download,
    evenkeel::Evenkeel,
    harness::{Needs, run_side_by_side, trial},
    lab::Lab,
    nginx::{self, Nginx},
    process::wait_until,
    road::Trip,
};

fn main() -> ExitCode {
    let further = [Trip::XDP, Trip::XDP_GENERIC, Trip::STACK].map(|trip| {
        let name = trip.title("ten reloads under load lose nothing and leave removed backends alone");
        trial(&name, Needs::Root, move || reloads_under_load(trip, 10, 7))
    });
    let all = trial("fifty reloads under load lose nothing and leave removed backends alone", Needs::Root, || {
        reloads_under_load(Trip::DEFAULT, 50, 30)
    });
    run_side_by_side([all].into_iter().chain(further).collect())
}

/// Each change is left in force for as long as this at least, so that clients meet it.
const IN_FORCE: Duration = Duration::from_millis(50);
/// What sits in queues may still arrive after a change is reported applied.
const QUEUES: Duration = Duration::from_millis(20);

/// Reloads so many times while load lasts for so many seconds.
fn reloads_under_load(trip: Trip, reloads: usize, load: u64) -> Result<()> {
    let lab = Lab::up(trip.layout())?;
    let configuration = |weights: &[(usize, u32)]| trip.road.settings() + &crowd::configuration(&lab, weights);
    let _servers = (Bind::start_all(&lab)?, Nginx::start_all(&lab)?);
    let mut weights: Vec<(usize, u32)> = (0..4).map(|backend| (backend, 1)).collect();
    let mut evenkeel = Evenkeel::start(&lab, &configuration(&weights))?;
    trip.road.wait_for(&evenkeel)?;
    let before = evenkeel.by_xdp()?;
    let filter = bind::PORTS.map(|port| format!("udp dst port {port}")).join(" or ");
    let captures = lab.backends().iter().map(|host| Capture::start(&lab, &host.namespace, "eth0", &filter));
    let captures = captures.collect::<Result<Vec<_>>>()?;
    let mut downloads = start_downloads(&lab, load)?;

    let begin = Instant::now();
    let mut crowd = Crowd::start(&lab, load)?;
    let mut removals = Removals::default();
    for number in 0..reloads {
        // Spread over the load, with some of it before and after.
        let due = begin + Duration::from_millis(1000 + number as u64 * (load * 1000 - 3000) / reloads as u64);
        thread::sleep(due.saturating_duration_since(Instant::now()).max(IN_FORCE));
        weights = next_weights(number);
        let configuration = configuration(&weights);
        removals.end();
        match number * 50 / reloads {
            15 => {
                refuse(&mut evenkeel, &configuration)?;
                evenkeel.apply(&configuration)?;
            }
            30 => read_unasked(&evenkeel, &configuration, &weights)?,
            _ => evenkeel.apply(&configuration)?,
        }
        removals.begin(&weights);
    }
    ensure!(crowd.is_asking()?, "a client has ended before the last reload, {:?} after its start", begin.elapsed());
    downloads.iter_mut().try_for_each(Download::still_runs).context("before the last reload")?;
    let tallies = crowd.finish()?;
    removals.end();
    for (download, number) in downloads.into_iter().zip(1..) {
        let body = download.finish()?;
        ensure!(body == nginx::large(), "download {number}: {} bytes, or wrong ones", body.len());
    }
    let seen = captures.into_iter().map(Capture::finish).collect::<Result<Vec<_>>>()?;
    removals.check(&seen, reloads)?;
    trip.was_taken_since(before, &evenkeel)?;
    crowd::check(&tallies, &lab)
}

/// One download from each backend over each family, slow enough to last as long as the load.
fn start_downloads(lab: &Lab, load: u64) -> Result<Vec<Download>> {
    let directory = lab.directory("downloads")?;
    let rate = nginx::LARGE / (load as usize + 5);
    let mut downloads = Vec::new();
    for (frontend, family) in crowd::WEB.into_iter().zip(["-4", "-6"]) {
        for number in 0..lab.backends().len() {
            let file = directory.join(format!("large{family}-{number}"));
            downloads.push(Download::start(&lab.client().namespace, frontend, rate, file.clone())?);
            wait_until("the download has begun", Duration::from_secs(5), || Ok(file.exists()))?;
        }
        for host in lab.backends() {
            let connections = host.namespace.sh(&format!("ss -Htn {family} state established sport = :80"))?;
            ensure!(connections.lines().count() == 1, "the downloads are spread: {connections}");
        }
    }
    Ok(downloads)
}

/// Backends and weights after reload `number`; each adds, removes or reweighs some of those before.
fn next_weights(number: usize) -> Vec<(usize, u32)> {
    // One is removed for one step, then two are, then all are there again with other weights.
    let removed: &[usize] = match number % 7 {
        0 => &[3],
        1 => &[0],
        2 => &[0, 2],
        3 => &[1, 2],
        4 => &[],
        5 => &[number / 7 % 4],
        _ => &[],
    };
    let weight = |backend: usize| 1 + u32::try_from((number + backend * 3) % 4).expect("less than 4");
    (0..4).filter(|backend| !removed.contains(backend)).map(|backend| (backend, weight(backend))).collect()
}

/// A file with a fault changes nothing, and `status` tells it.
fn refuse(evenkeel: &mut Evenkeel, configuration: &str) -> Result<()> {
    let before = evenkeel.ls(&[])?["services"].clone();
    let told = evenkeel.reload(&configuration.replace("\"wrr\"", "\"wwrr\""))?;
    ensure!(told.as_deref() == Some("configuration refused; what was running goes on"), "{told:?}");
    let refusal = evenkeel.status()?["last_refusal"]["messages"].to_string();
    ensure!(refusal.contains("did you mean `wrr`?"), "{refusal}");
    let addresses = |services: &serde_json::Value| {
        let services = services.as_array().cloned().unwrap_or_default();
        services.iter().map(|service| service["backends"].as_array().map_or(0, Vec::len)).collect::<Vec<_>>()
    };
    let after = evenkeel.ls(&[])?["services"].clone();
    ensure!(addresses(&before) == addresses(&after) && !addresses(&after).is_empty(), "{before} became {after}");
    Ok(())
}

/// A changed file is read without a signal.
fn read_unasked(evenkeel: &Evenkeel, configuration: &str, weights: &[(usize, u32)]) -> Result<()> {
    let in_use = || -> Result<usize> {
        let listing = evenkeel.ls(&[])?;
        let backends = listing["services"][0]["backends"].as_array().cloned().unwrap_or_default();
        Ok(backends.iter().filter(|backend| backend["share"].as_f64() > Some(0.0)).count())
    };
    ensure!(in_use()? != weights.len(), "the change is one that shows");
    evenkeel.write(configuration)?;
    wait_until("the changed file is applied", Duration::from_secs(3), || Ok(in_use()? == weights.len()))
}

/// When each backend was removed, and until when.
#[derive(Debug, Default)]
struct Removals {
    begun: Option<(Duration, Vec<usize>)>,
    ended: Vec<(Duration, Duration, Vec<usize>)>,
}

impl Removals {
    /// A change was reported applied just now.
    fn begin(&mut self, weights: &[(usize, u32)]) {
        let there: BTreeSet<usize> = weights.iter().map(|(backend, _)| *backend).collect();
        self.begun = Some((capture::now(), (0..4).filter(|backend| !there.contains(backend)).collect()));
    }

    /// The next one is about to be asked for.
    fn end(&mut self) {
        if let Some((begin, removed)) = self.begun.take() {
            self.ended.push((begin, capture::now(), removed));
        }
    }

    /// Says that no packet came to a removed backend, while others got some.
    fn check(&self, seen: &[Vec<Duration>], reloads: usize) -> Result<()> {
        let mut checked = 0;
        for (begin, end, removed) in &self.ended {
            let arrivals = |backend: usize| {
                seen[backend]
                    .iter()
                    .filter(|time| **time > *begin + QUEUES && **time < *end)
                    .copied()
                    .collect::<Vec<_>>()
            };
            for backend in removed {
                let late = arrivals(*backend);
                if let Some(last) = late.last() {
                    let (count, after) = (late.len(), *last - *begin);
                    bail!("b{} was removed, and got {count} packets, the last {after:?} after", backend + 1);
                }
            }
            let others: usize =
                (0..seen.len()).filter(|backend| !removed.contains(backend)).map(|b| arrivals(b).len()).sum();
            // On a busy machine nobody may have asked in one of them.
            checked += if others > 0 { removed.len() } else { 0 };
        }
        ensure!(checked >= reloads / 2, "only {checked} removals were looked at");
        Ok(())
    }
}
