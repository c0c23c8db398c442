//! Containers restart under load: same addresses, another veth, another MAC. The restarted one is found again, and
//! whoever is served by the others notices nothing.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::{
    ask::{Ask, Ports},
    bind::Bind,
    curl::Download,
    evenkeel::Evenkeel,
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Lab, Layout, Reach},
    namespace::Namespace,
    nginx::{LARGE, Nginx, large},
    process::wait_until,
    road::Trip,
};

fn main() -> ExitCode {
    run_side_by_side(vec![
        on_root("a container behind a bridge restarts under load and is found at its new port", || {
            restarts_under_load(Layout::default(), "redirect-peer")
        }),
        on_root("a container behind a bridge restarts under load and is found at its new mac", || {
            restarts_under_load(Layout::default(), "redirect-neigh")
        }),
        on_root("a container on a plain veth restarts under load and is found at its new one", || {
            restarts_under_load(Layout { reach: Reach::Veths, ..Layout::default() }, "redirect-peer")
        }),
        on_root("a container on a plain veth restarts under load and is found by xdp", || {
            restarts_under_load(Trip::XDP_TO_VETHS.layout(), "xdp-redirect")
        }),
    ])
}

const BACKENDS: usize = 3;
/// The backend that restarts, counted from 0.
const RESTARTED: usize = 2;

fn restarts_under_load(layout: Layout, way: &str) -> Result<()> {
    let mut lab = Lab::up(Layout { backends: BACKENDS, ..layout })?;
    let mut binds = Bind::start_all(&lab)?;
    let nginx = Nginx::start(&lab, "b1", &lab.backends()[0])?;
    let mut evenkeel = Evenkeel::start_with(&lab, &configuration(&lab), &["--way", way])?;
    evenkeel.wait_for_way(way)?;
    let client = lab.client().namespace.clone();
    let file = lab.directory("download")?.join("large");
    let download = Download::start(&client, (FRONTENDS[0], 80).into(), LARGE / 6, file.clone())?;

    // A port asked from is a new flow, and so a ticket: the second client begins where the first will not come.
    let mut upper = Ports::default();
    upper.take(32_000);
    let crowd = [Asker::new(&client, FRONTENDS[0]), Asker::new(&client, FRONTENDS[1])];
    thread::scope(|scope| -> Result<()> {
        let [v4, v6] = &crowd;
        let threads = [scope.spawn(|| v4.ask(Ports::default())), scope.spawn(|| v6.ask(upper))];
        let outcome = (|| {
            wait_for_rounds(&crowd, 5)?;
            for tally in take_tallies(&crowd) {
                tally.nobody_else_noticed()?;
                ensure!(tally.unanswered == 0, "before the restart: {tally:?}");
            }
            restart(&mut lab, &mut binds)?;
            if way != "redirect-neigh" {
                wait_for_port(&evenkeel, lab.port(RESTARTED), way)?;
            }
            wait_for_answers(&crowd)?;
            ensure!(fs::metadata(&file)?.len() < LARGE as u64, "the download was over before the restart was");
            wait_for_rounds(&crowd, 10)
        })();
        crowd.iter().for_each(Asker::stop);
        for thread in threads {
            thread.join().expect("no client panics")?;
        }
        outcome
    })?;
    for tally in take_tallies(&crowd) {
        tally.nobody_else_noticed()?;
        ensure!(tally.unanswered == 0, "after the restart: {tally:?}");
    }
    ensure!(download.finish()? == large(), "other bytes came down");
    evenkeel.stop()?;
    nginx.stop()?;
    binds.into_iter().try_for_each(Bind::stop)?;
    lab.down()
}

fn restart(lab: &mut Lab, binds: &mut Vec<Bind>) -> Result<()> {
    binds.remove(RESTARTED).stop()?;
    lab.restart_backend(RESTARTED)?;
    binds.push(Bind::start(lab, "b3", &lab.backends()[RESTARTED])?);
    Ok(())
}

/// `status` shows the new port for both families.
fn wait_for_port(evenkeel: &Evenkeel, port: &str, way: &str) -> Result<()> {
    wait_until(&format!("status shows {port}"), Duration::from_secs(5), || {
        let status = evenkeel.status()?;
        let ways = status["ways"].as_array().context("a status")?;
        let leads_there = |one: &&Value| one["interface"] == port && one["way"] == way;
        Ok(ways.iter().filter(leads_there).count() == 2)
    })
}

/// A client that asks one frontend without end, every query from a port of its own.
struct Asker {
    client: Namespace,
    server: SocketAddr,
    tally: Mutex<Tally>,
}

/// What a client got since it was last asked.
#[derive(Clone, Debug, Default)]
struct Tally {
    is_over: bool,
    rounds: usize,
    asked: usize,
    unanswered: usize,
    by_backend: [usize; BACKENDS],
    odd: usize,
}

impl Asker {
    fn new(client: &Namespace, frontend: IpAddr) -> Self {
        Self { client: client.clone(), server: (frontend, 53).into(), tally: Mutex::default() }
    }

    fn ask(&self, mut ports: Ports) -> Result<()> {
        while !self.tally().is_over {
            let ask = Ask::from_each_port(self.server, ports.take(30)).window(8).patience(Duration::from_secs(1));
            let answers = ask.run(&self.client)?;
            let mut tally = self.tally();
            tally.rounds += 1;
            tally.asked += answers.by_query.len();
            tally.unanswered += answers.unanswered();
            tally.odd += answers.wrong_source + answers.repeated + answers.malformed;
            for (sum, count) in tally.by_backend.iter_mut().zip(answers.of_backends(BACKENDS)) {
                *sum += count;
            }
            drop(tally);
            // Room for the servers on the same CPUs, and ports for as long as it takes.
            thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.tally().is_over = true;
    }
}

impl Tally {
    /// Of three backends in turn each gets a third: who asked the other two has been answered, each time, by them.
    fn nobody_else_noticed(&self) -> Result<()> {
        let Self { asked, unanswered, by_backend: [b1, b2, b3], odd, .. } = *self;
        let third = asked / BACKENDS;
        let is_even = [b1, b2, b3 + unanswered].iter().all(|count| count.abs_diff(third) <= 1);
        ensure!(is_even && odd == 0, "{self:?}");
        Ok(())
    }
}

/// Waits until both clients get answers to all they ask, the restarted container's included; meanwhile, and before,
/// nobody else has noticed anything.
fn wait_for_answers(crowd: &[Asker; 2]) -> Result<()> {
    let mut is_served = [false; 2];
    wait_until("the restarted container answers", Duration::from_secs(10), || {
        for (tally, is_served) in take_tallies(crowd).iter().zip(&mut is_served) {
            tally.nobody_else_noticed()?;
            *is_served = if tally.rounds == 0 { *is_served } else { tally.unanswered == 0 };
        }
        Ok(is_served == [true; 2])
    })
}

/// Takes the tallies, which begin anew.
fn take_tallies(crowd: &[Asker; 2]) -> Vec<Tally> {
    crowd.iter().map(|asker| std::mem::take(&mut *asker.tally())).collect()
}

/// Waits until each client has asked so many times more.
fn wait_for_rounds(crowd: &[Asker; 2], rounds: usize) -> Result<()> {
    for asker in crowd {
        let end = asker.tally().rounds + rounds;
        wait_until("the clients ask", Duration::from_secs(30), || Ok(asker.tally().rounds >= end))?;
    }
    Ok(())
}

fn configuration(lab: &Lab) -> String {
    let service = |name: &str, port: u16, protocol: &str, backends: usize| {
        let addresses = lab.backends()[..backends].iter().flat_map(|host| [host.v4, host.v6]);
        let backends = addresses.map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "[[service]]\nname = \"{name}\"\nselector = \"rr\"\nbackends = [{backends}]\n\
             listen = [{{ interface = \"eth3\", port = {port}, protocols = [\"{protocol}\"] }}]\n"
        )
    };
    service("dns", 53, "udp", BACKENDS) + &service("web", 80, "tcp", 1)
}
