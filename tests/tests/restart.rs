//! The controller dies, comes back, goes, is refused: packets flow on the last good state all the while.

use std::{
    collections::BTreeMap, fs, net::SocketAddr, ops::Range, os::unix::fs::PermissionsExt as _, process::ExitCode,
    thread, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::limits::LAYOUT_VERSION;
use lb_userspace::dataplane::{attach::Point, sys};
use serde_json::Value;
use testbed::{
    ask::{Answers, Ask},
    bind::Bind,
    crowd::{self, Crowd, FLOWS, PACKETS, UDP},
    curl::Download,
    engine::Engine,
    evenkeel::{Evenkeel, find_program},
    harness::{Needs, on_root, run, trial},
    lab::{CLIENT_SIDE, Lab, Layout},
    nginx::{self, Nginx},
    process::output,
    road::Trip,
};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for trip in [Trip::DEFAULT, Trip::XDP, Trip::XDP_GENERIC, Trip::STACK] {
        let name = trip.title("a controller killed under load loses nothing, nor does the next one");
        trials.push(trial(&name, Needs::Root, move || killed_under_load(trip)));
    }
    for trip in [Trip::DEFAULT].into_iter().chain(Trip::FURTHER) {
        let name = trip.title("cursors, counters and flows outlive the controller");
        trials.push(trial(&name, Needs::Root, move || everything_outlives_the_controller(trip)));
    }
    trials.extend([
        on_root("another map layout is refused while traffic flows on", another_layout_is_refused),
        on_root("detach takes away what is ours and nothing else", detach_takes_away_what_is_ours),
        on_root("whoever is not root is told so in one sentence", not_root),
        on_root("the program of someone else is shown while traffic flows", someone_elses_program),
    ]);
    run(trials)
}

/// How many seconds the load lasts at least: for two kills and two starts, or for one of each, and some more.
const LOAD: u64 = 16;
const SHORTER_LOAD: u64 = 12;

fn killed_under_load(trip: Trip) -> Result<()> {
    let (load, kills) = if trip == Trip::DEFAULT { (LOAD, 2) } else { (SHORTER_LOAD, 1) };
    let lab = Lab::up(trip.layout())?;
    let _servers = (Bind::start_all(&lab)?, Nginx::start_all(&lab)?);
    let mut evenkeel = Evenkeel::start(&lab, &(trip.road.settings() + &configuration(&lab)))?;
    trip.road.wait_for(&evenkeel)?;
    let before = evenkeel.by_xdp()?;
    let directory = lab.directory("downloads")?;
    let start = |frontend: SocketAddr| {
        let (rate, file) = (nginx::LARGE / (load as usize + 2), directory.join(format!("large-{}", frontend.ip())));
        Download::start(&lab.client().namespace, frontend, rate, file)
    };
    let mut downloads = crowd::WEB.into_iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut crowd = Crowd::start(&lab, load)?;
    for _ in 0..kills {
        // Load while it runs, and while none does.
        thread::sleep(Duration::from_millis(1500));
        evenkeel.kill();
        ensure!(evenkeel.status()?["is_running"] == false);
        thread::sleep(Duration::from_millis(1500));
        evenkeel.restart()?;
        let opening = evenkeel.status()?["opening"].clone();
        ensure!(opening == "adopted from an earlier controller", "{opening}");
    }
    ensure!(crowd.is_asking()?, "a client has ended before the last start");
    downloads.iter_mut().try_for_each(Download::still_runs).context("before the last start")?;
    crowd::check(&crowd.finish()?, &lab)?;
    for download in downloads {
        ensure!(download.finish()? == nginx::large(), "the download has other bytes");
    }
    trip.was_taken_since(before, &evenkeel)
}

fn everything_outlives_the_controller(trip: Trip) -> Result<()> {
    let lab = Lab::up(trip.layout())?;
    let _servers = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &(trip.road.settings() + &configuration(&lab)))?;
    trip.road.wait_for(&evenkeel)?;
    let client = &lab.client().namespace;
    let ports = 20_000..20_100;
    let all = |asks: [Ask; 2]| asks.iter().map(|ask| ask.run(client)).collect::<Result<Vec<Answers>>>();
    let new_choices = |ports: Range<u16>| all(FLOWS.map(|frontend| Ask::from_each_port(frontend, ports.clone())));
    // Not a multiple of the backends: a cursor that began anew would show.
    let packets = || all(PACKETS.map(|frontend| Ask::from_one_socket(frontend, 33)));
    let both = |ports| -> Result<_> { Ok([new_choices(ports)?, packets()?]) };
    let first = both(ports.clone())?;
    let before = counted(&evenkeel)?;
    evenkeel.kill();
    let orphaned = both(20_100..20_133)?;
    let kept = new_choices(ports.clone())?;
    evenkeel.restart()?;
    let after = counted(&evenkeel)?;
    let adopted = both(20_133..20_166)?;
    let kept_again = new_choices(ports)?;

    for ((first, kept), kept_again) in first[0].iter().zip(&kept).zip(&kept_again) {
        ensure!(kept.by_query == first.by_query, "flows have other backends without a controller");
        ensure!(kept_again.by_query == first.by_query, "flows have other backends after its restart");
    }
    let mut shares = [[0; 4]; UDP.len()];
    for part in [&first, &orphaned, &adopted] {
        for (answers, share) in part.iter().flatten().zip(&mut shares) {
            ensure!(answers.is_clean(), "{} unanswered, {} of strangers", answers.unanswered(), answers.wrong_source);
            for (sum, count) in share.iter_mut().zip(answers.of_backends(4)) {
                *sum += count;
            }
        }
    }
    for share in shares {
        let (most, least) = (share.iter().max().context("four")?, share.iter().min().context("four")?);
        ensure!(most - least <= 1, "the cursor goes on: {shares:?}");
    }
    for (name, count) in &before {
        ensure!(after.get(name) >= Some(count), "{name} was {count}, and is {:?}", after.get(name));
    }
    // 100 flows and 33 packets before, 33 of each without a controller.
    for (frontend, expected) in UDP.into_iter().zip([100 + 33, 100 + 33, 33 + 33, 33 + 33]) {
        let tickets = after.get(&format!("{frontend}/udp tickets")).copied();
        ensure!(tickets == Some(expected), "{frontend}: {tickets:?} tickets: {after:?}");
    }
    Ok(())
}

/// Everything that is counted, by the frontends of services and the addresses of backends.
fn counted(evenkeel: &Evenkeel) -> Result<BTreeMap<String, u64>> {
    let listing = evenkeel.ls(&["--stats"])?;
    let mut counted = BTreeMap::new();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for service in list(&listing["services"]) {
        let name = service["frontends"][0].as_str().context("a frontend")?;
        counted.insert(format!("{name} tickets"), service["tickets"].as_u64().context("tickets")?);
        for backend in list(&service["backends"]) {
            for what in ["choices", "packets_in", "bytes_in", "packets_out", "bytes_out"] {
                let address = backend["address"].as_str().context("an address")?;
                counted.insert(format!("{name} {address} {what}"), backend[what].as_u64().context("a number")?);
            }
        }
    }
    Ok(counted)
}

fn another_layout_is_refused() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _servers = Bind::start_all(&lab)?;
    let good = configuration(&lab);
    let mut evenkeel = Evenkeel::start(&lab, &good)?;
    evenkeel.stop()?;
    all_answered(&lab)?;

    let refusal = Evenkeel::start_refused(&lab, &format!("{good}[limits]\nflows = 3_000_000\n"), &[])?;
    let sentence = "start with the old [limits], or remove the pins with `evenkeel detach` and start again (flows are \
                    lost)";
    ensure!(refusal.code == Some(1), "{refusal:?}");
    let said = errors(&refusal.said);
    ensure!(said.len() == 1 && said[0].starts_with("evenkeel: pinned map FLOWS has max_entries"), "{said:?}");
    ensure!(said[0].ends_with(sentence), "{said:?}");
    all_answered(&lab)?;

    let settings = sys::Map::open(&lab.pins()?.join("evenkeel/SETTINGS"))?;
    let key = 0_u32.to_ne_bytes();
    let mut ours = vec![0; settings.value_bytes()];
    ensure!(settings.lookup(&key, &mut ours)?);
    let mut theirs = ours.clone();
    theirs[..8].copy_from_slice(&99_u64.to_ne_bytes());
    settings.update(&key, &theirs)?;
    let refusal = Evenkeel::start_refused(&lab, &good, &[])?;
    let said = errors(&refusal.said);
    ensure!(refusal.code == Some(1) && said.len() == 1, "{refusal:?}");
    let expected = format!("holds map layout 99, this version reads layout {LAYOUT_VERSION}; go back to");
    ensure!(said[0].contains(&expected), "{said:?}");
    all_answered(&lab)?;

    settings.update(&key, &ours)?;
    let evenkeel = Evenkeel::start(&lab, &good)?;
    let opening = evenkeel.status()?["opening"].clone();
    ensure!(opening == "adopted from an earlier controller", "{opening}");
    all_answered(&lab)
}

/// What a refused controller said, without the lines of its log.
fn errors(said: &str) -> Vec<&str> {
    said.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect()
}

fn detach_takes_away_what_is_ours() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let _engine = Engine::start(&lab)?;
    let of_host = || -> Result<String> {
        let commands = ["iptables-save", "ip6tables-save", "nft list ruleset", "ip rule", "ip route", "sysctl -a"];
        let listed = commands.iter().map(|command| lab.balancer().sh(command)).collect::<Result<Vec<_>>>()?;
        let all = listed.join("\n");
        Ok(all.lines().filter(|line| is_setting(line)).map(|line| format!("{line}\n")).collect())
    };
    let before = of_host()?;
    let mut evenkeel = Evenkeel::start(&lab, &configuration(&lab))?;
    all_answered(&lab)?;
    ensure!(programs(&lab)?.values().any(|count| *count > 0), "there is something to detach");
    evenkeel.stop()?;
    all_answered(&lab)?;
    let said = evenkeel.detach()?;
    ensure!(said.starts_with("removed ") && said.trim_end().ends_with("and the maps with all flows"), "{said}");
    ensure!(programs(&lab)?.values().all(|count| *count == 0), "{:?}", programs(&lab)?);
    ensure!(!lab.pins()?.join("evenkeel").exists(), "the pins are gone");
    let qdiscs = lab.balancer().sh("tc qdisc show")?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    let after = of_host()?;
    ensure!(before == after, "rules or settings are not as they were:\n{before}\n{after}");
    ensure!(evenkeel.detach()? == "nothing was there\n", "a second time there is nothing to do");
    // What the engine drops is dropped again: nothing of ours lets it pass.
    for frontend in FLOWS {
        let unbalanced = Ask::from_one_socket(frontend, 4).patience(Duration::from_millis(300));
        ensure!(unbalanced.run(&lab.client().namespace)?.answered() == 0, "{frontend} answers");
    }
    Ok(())
}

/// Whether a line of a listing is someone's setting, and no count or time.
fn is_setting(line: &str) -> bool {
    let counts = ["# ", ":", "net.netfilter.nf_conntrack_count", "fs.", "kernel.", "vm.", "dev.", "random", "user."];
    !counts.iter().any(|start| line.starts_with(start)) && !line.contains("counter packets")
}

/// How many programs each device of the balancer has at its hooks.
fn programs(lab: &Lab) -> Result<BTreeMap<String, usize>> {
    let devices = [CLIENT_SIDE.to_owned()].into_iter().chain(lab.backend_side());
    devices
        .map(|device| {
            let ifindex = lab.balancer().sh(&format!("ip -o link show {device}"))?;
            let ifindex: u32 = ifindex.split(':').next().context("a number")?.parse()?;
            let count = lab.balancer().enter(|| {
                let directions = [Point::Ingress, Point::Egress].into_iter();
                let counts = directions.map(|direction| Ok(sys::tcx_programs(ifindex, direction)?.len()));
                Ok(counts.collect::<Result<Vec<_>>>()?.iter().sum::<usize>())
            })?;
            let filters = lab.balancer().sh(&format!("tc filter show dev {device} ingress"))?;
            Ok((device, count + filters.matches("evenkeel").count()))
        })
        .collect()
}

fn not_root() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _servers = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start(&lab, &configuration(&lab))?;
    // A copy in the open: the build's folder may be closed to others, as the lab's is.
    let directory = lab.directory("open")?;
    fs::set_permissions(directory.parent().context("the lab's")?, fs::Permissions::from_mode(0o711))?;
    let program = directory.join("evenkeel");
    fs::copy(find_program()?, &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let configuration = evenkeel.configuration();
    let configuration = configuration.to_string_lossy();
    let folders = evenkeel.folders();
    for arguments in [&["run", "--config", &configuration][..], &["ls"], &["status"], &["detach"]] {
        let mut command = lab.balancer().command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(arguments).args(&folders);
        let ended = command.output()?;
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        ensure!(ended.status.code() == Some(1), "{arguments:?}: {ended:?}");
        let expected = "evenkeel: programs can be loaded into the kernel by root only; run this with sudo, or with the \
                        capabilities bpf, perfmon and net_admin\n";
        ensure!(said == expected, "{arguments:?}: {said}");
    }
    // Whether a file is right can be asked by anyone.
    let mut command = lab.balancer().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).args(["check", &configuration]);
    output(&mut command)?;
    all_answered(&lab)
}

fn someone_elses_program() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _servers = Bind::start_all(&lab)?;
    let balancer = lab.balancer();
    balancer.sh("tc qdisc add dev eth3 clsact")?;
    // The classic program "return -1": go on as if there were none.
    let theirs = ["filter", "add", "dev", CLIENT_SIDE, "ingress", "prio", "77", "bpf", "da", "bytecode"];
    balancer.run("tc", &[&theirs[..], &["1,6 0 0 4294967295"]].concat())?;
    let mut evenkeel = Evenkeel::start(&lab, &configuration(&lab))?;
    let hooks = evenkeel.status()?["hooks"].clone();
    let shown = "clsact program bpf on eth3";
    ensure!(hooks.to_string().contains(shown), "{hooks}");
    let said = String::from_utf8(evenkeel.ask(&["status"])?.stdout)?;
    ensure!(said.contains(shown), "{said}");
    all_answered(&lab)?;
    evenkeel.stop()?;
    evenkeel.detach()?;
    let filters = balancer.sh("tc filter show dev eth3 ingress")?;
    ensure!(filters.contains("pref 77 bpf"), "theirs is still there: {filters}");
    Ok(())
}

/// The three services, every backend with the same weight.
fn configuration(lab: &Lab) -> String {
    let weights: Vec<(usize, u32)> = (0..lab.backends().len()).map(|backend| (backend, 1)).collect();
    crowd::configuration(lab, &weights)
}

/// Both UDP services answer, over both families.
fn all_answered(lab: &Lab) -> Result<()> {
    for frontend in UDP {
        let answers = Ask::from_one_socket(frontend, 50).run(&lab.client().namespace)?;
        ensure!(
            answers.is_clean(),
            "{frontend}: {} unanswered, {} of strangers",
            answers.unanswered(),
            answers.wrong_source
        );
    }
    Ok(())
}
