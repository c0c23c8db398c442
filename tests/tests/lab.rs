//! The testbed itself: labs come up and go, what it counts agrees, and the reference behaves as it is simulated.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use testbed::{
    ask::{Ask, Ports},
    bind::{Bind, SIZES, WHO},
    curl, dig,
    dnsperf::Dnsperf,
    engine::Engine,
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Lab, Layout, Offloads, Reach},
    nginx::{Nginx, large},
    process,
    reference::{Reference, Rules},
    responder::Responder,
    statistic::{self, Chain, Nth},
};

/// Set for the copy of this program that brings a lab up and waits to be interrupted.
const WAITS: &str = "TESTBED_WAITS_WITH_A_LAB";

fn main() -> ExitCode {
    if env::var_os(WAITS).is_some() {
        let lab = Lab::up(Layout::default()).expect("the parent is root");
        println!("{}", lab.prefix().name());
        loop {
            thread::park();
        }
    }
    run_side_by_side(vec![
        on_root("every layout reaches its backends over both families", every_layout_reaches_its_backends),
        on_root("a lab leaves nothing", a_lab_leaves_nothing),
        on_root("an interrupted process leaves nothing of its lab", an_interrupted_process_leaves_nothing),
        on_root("the next lab removes what a killed process left", the_next_lab_removes_orphans),
        on_root("two labs at once do not see each other", two_labs_do_not_see_each_other),
        on_root("a restarted backend is reached through its new port", a_restarted_backend_is_reached),
        on_root("bind counts what the clients count", bind_counts_what_the_clients_count),
        on_root("answers have their exact sizes", answers_have_their_exact_sizes),
        on_root("the engine's rules keep outsiders from its containers", the_engines_rules_bite),
        on_root("iptables nth equals the simulation", iptables_nth_equals_the_simulation),
        on_root("nft numgen is exact and iptables random is complete", numgen_and_random),
        on_root("two cpus ask at once", two_cpus_ask_at_once),
        on_root("a responder answers as late as it is told", a_responder_answers_late),
        on_root("nginx gives and takes 20 MB byte for byte", nginx_gives_and_takes),
    ])
}

fn every_layout_reaches_its_backends() -> Result<()> {
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        for (mtu, offloads, clients) in
            [(1500, Offloads::Untouched, 1), (9000, Offloads::Off, 1), (1500, Offloads::FinishedByBalancer, 3)]
        {
            let lab = Lab::up(Layout { reach, mtu, offloads, clients, backends: 3, far_gro: false })?;
            for client in lab.clients() {
                for address in FRONTENDS.into_iter().chain(lab.backends().iter().flat_map(|host| [host.v4, host.v6])) {
                    client.namespace.sh(&format!("ping -q -c 1 -W 2 {address}"))?;
                }
            }
            lab.down()?;
        }
    }
    Ok(())
}

fn a_lab_leaves_nothing() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let prefix = lab.prefix().clone();
    let pins = lab.pins()?;
    let bind = Bind::start(&lab, "b1", &lab.backends()[0])?;
    ensure!(prefix.namespaces()?.len() == 6, "a client, a balancer and four backends, not {:?}", prefix.namespaces()?);
    ensure!(fs::read_to_string("/proc/mounts")?.contains(&*pins.to_string_lossy()), "no BPF file system");
    lab.down()?;
    ensure!(prefix.namespaces()?.is_empty(), "{:?} stay", prefix.namespaces()?);
    ensure!(!prefix.directory().exists(), "{} stays", prefix.directory().display());
    ensure!(!fs::read_to_string("/proc/mounts")?.contains(&*pins.to_string_lossy()), "{} stays", pins.display());
    ensure!(bind.stop().is_err(), "a server outlived its lab");
    Ok(())
}

fn an_interrupted_process_leaves_nothing() -> Result<()> {
    let (mut child, prefix) = child_with_a_lab()?;
    process::run("kill", &["-TERM", &child.id().to_string()])?;
    let status = child.wait()?;
    ensure!(status.code() == Some(143), "ended by {status}");
    ensure!(namespaces_of(&prefix)? == 0, "namespaces of {prefix} stay");
    Ok(())
}

fn the_next_lab_removes_orphans() -> Result<()> {
    let (mut child, prefix) = child_with_a_lab()?;
    child.kill()?;
    child.wait()?;
    ensure!(namespaces_of(&prefix)? == 6, "who removed those of {prefix}?");
    Lab::up(Layout { backends: 1, ..Layout::default() })?.down()?;
    ensure!(namespaces_of(&prefix)? == 0, "namespaces of {prefix} stay");
    Ok(())
}

/// A copy of this program that has a lab up, and the lab's prefix.
fn child_with_a_lab() -> Result<(Child, String)> {
    let mut child =
        Command::new(env::current_exe()?).env(WAITS, "1").stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe was asked for")).read_line(&mut line)?;
    let prefix = line.trim().to_owned();
    ensure!(namespaces_of(&prefix)? == 6, "the child's lab is not up: {line}");
    Ok((child, prefix))
}

fn namespaces_of(prefix: &str) -> Result<usize> {
    Ok(process::run("ip", &["netns", "list"])?.matches(&format!("{prefix}-")).count())
}

fn two_labs_do_not_see_each_other() -> Result<()> {
    let layout = Layout { backends: 1, ..Layout::default() };
    let labs = [Lab::up(layout)?, Lab::up(layout)?];
    let start = |(lab, who): (&Lab, &str)| Bind::start(lab, who, &lab.backends()[0]);
    let _servers = labs.iter().zip(["left", "right"]).map(start).collect::<Result<Vec<_>>>()?;
    for (lab, who) in labs.iter().zip(["left", "right"]) {
        let server = SocketAddr::new(lab.backends()[0].v4, 53);
        let answers = Ask::from_one_socket(server, 100).run(&lab.client().namespace)?;
        ensure!(answers.counts().get(who) == Some(&100), "{who}: {:?}", answers.counts());
    }
    Ok(())
}

fn a_restarted_backend_is_reached() -> Result<()> {
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        let mut lab = Lab::up(Layout { reach, ..Layout::default() })?;
        let before = lab.port(1).to_owned();
        lab.restart_backend(1)?;
        ensure!(reach == Reach::Routed || lab.port(1) != before, "the port is still {before}");
        for address in [lab.backends()[1].v4, lab.backends()[1].v6] {
            lab.client().namespace.sh(&format!("ping -q -c 1 -W 2 {address}"))?;
        }
        lab.down()?;
    }
    Ok(())
}

fn bind_counts_what_the_clients_count() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let bind = Bind::start(&lab, "b1", &lab.backends()[0])?;
    let (client, host) = (&lab.client().namespace, &lab.backends()[0]);
    let (v4, v6) = (SocketAddr::new(host.v4, 53), SocketAddr::new(host.v6, 53));
    let before = bind.arrivals()?;
    let mut ports = Ports::default();
    let one = Ask::from_one_socket(v4, 2000).run(client)?;
    let many = Ask::from_each_port(v6, ports.take(3000)).run(client)?;
    ensure!(one.is_clean() && many.is_clean(), "{} and {} unanswered", one.unanswered(), many.unanswered());
    ensure!(one.of_backends(1) == [2000] && many.of_backends(1) == [3000]);
    let load = Dnsperf::to(v4).run(&lab, client)?;
    ensure!((load.sent, load.completed, load.lost) == (12_000, 12_000, 0), "{load:?}");
    ensure!(dig::udp(client, v6, WHO)?.texts == ["b1"]);
    ensure!(dig::tcp(client, v4, WHO)?.texts == ["b1"]);
    ensure!(dig::tcp(client, v6, WHO)?.over_tcp);
    let after = bind.arrivals()?;
    ensure!(after.udp4 - before.udp4 == 14_000, "udp4: {before:?} {after:?}");
    ensure!(after.udp6 - before.udp6 == 3001, "udp6: {before:?} {after:?}");
    ensure!((after.tcp4 - before.tcp4, after.tcp6 - before.tcp6) == (1, 1), "tcp: {before:?} {after:?}");
    bind.stop()
}

fn answers_have_their_exact_sizes() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let _bind = Bind::start(&lab, "b1", &lab.backends()[0])?;
    for address in [lab.backends()[0].v4, lab.backends()[0].v6] {
        for size in SIZES {
            let answer = dig::udp(&lab.client().namespace, (address, 53).into(), &format!("s{size}.example.test"))?;
            ensure!((answer.size, answer.over_tcp) == (size, false), "{answer:?}");
        }
    }
    Ok(())
}

fn the_engines_rules_bite() -> Result<()> {
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        let lab = Lab::up(Layout { reach, ..Layout::default() })?;
        let (client, backend) = (lab.client(), &lab.backends()[0]);
        let from_outside = |address| client.namespace.sh(&format!("ping -q -c 1 -W 1 {address}")).is_ok();
        let from_inside = |address| backend.namespace.sh(&format!("ping -q -c 1 -W 1 {address}")).is_ok();
        let engine = Engine::start(&lab)?;
        ensure!(!from_outside(backend.v4) && !from_outside(backend.v6), "{reach:?}: a container is reached");
        ensure!(from_inside(client.v4) && from_inside(client.v6), "{reach:?}: a container cannot get out");
        engine.stop()?;
        ensure!(from_outside(backend.v4) && from_outside(backend.v6), "{reach:?}: the rules stay");
        lab.down()?;
    }
    Ok(())
}

fn iptables_nth_equals_the_simulation() -> Result<()> {
    let lab = Lab::up(Layout { backends: 6, ..Layout::default() })?;
    let _servers = Bind::start_all(&lab)?;
    // What no rule takes is answered by the balancer itself.
    let own = testbed::lab::Host { namespace: lab.balancer().clone(), v4: FRONTENDS[0], v6: FRONTENDS[1] };
    let _fallback = Bind::start(&lab, "none", &own)?;
    let mut ports = Ports::default();
    let of_six: Vec<_> = (0..6).map(|backend| Nth { every: 10, packet: 9 - backend as u32, backend }).collect();
    let lists = [statistic::cascade(6), statistic::cascade(4), statistic::copied(4), statistic::numbered(4), of_six];
    for (rules, address) in lists.iter().flat_map(|rules| [(rules, FRONTENDS[0]), (rules, FRONTENDS[1])]) {
        let reference = Reference::start(&lab, &Rules::Nth(rules.clone()), 53)?;
        let answers = Ask::from_each_port((address, 53).into(), ports.take(600)).run(&lab.client().namespace)?;
        ensure!(answers.is_clean(), "{} unanswered", answers.unanswered());
        let name = |backend: Option<usize>| backend.map_or_else(|| "none".to_owned(), |n| format!("b{}", n + 1));
        let expected: Vec<_> = Chain::new(rules).take(600).map(|backend| Some(name(backend))).collect();
        ensure!(answers.by_query == expected, "{rules:?} at {address}: {:?}", answers.counts());
        reference.stop()?;
    }
    Ok(())
}

fn numgen_and_random() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let client = &lab.client().namespace;
    let mut ports = Ports::default();
    for address in [FRONTENDS[0], FRONTENDS[1]] {
        let server = SocketAddr::new(address, 53);
        let numgen = Reference::start(&lab, &Rules::NftNumgen, 53)?;
        let answers = Ask::from_each_port(server, ports.take(1200)).run(client)?;
        ensure!(answers.is_clean() && answers.of_backends(4) == [300; 4], "numgen: {:?}", answers.counts());
        numgen.stop()?;
        let random = Reference::start(&lab, &Rules::Random, 53)?;
        let answers = Ask::from_each_port(server, ports.take(1200)).run(client)?;
        let counts = answers.of_backends(4);
        // Each is 300 with a standard deviation of 15.
        ensure!(answers.is_clean() && counts.iter().all(|count| (200..400).contains(count)), "random: {counts:?}");
        let pinned = Ask::from_one_socket(server, 1200).run(client)?;
        ensure!(pinned.is_clean() && pinned.counts().len() == 1, "one socket: {:?}", pinned.counts());
        random.stop()?;
    }
    Ok(())
}

fn two_cpus_ask_at_once() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let bind = Bind::start(&lab, "b1", &lab.backends()[0])?;
    let server = SocketAddr::new(lab.backends()[0].v6, 53);
    let before = bind.arrivals()?;
    let answers = Ask::from_each_port(server, Ports::default().take(12_000)).cpus(2).run(&lab.client().namespace)?;
    ensure!(answers.is_clean(), "{} unanswered", answers.unanswered());
    ensure!(bind.arrivals()?.udp6 - before.udp6 == 12_000);
    Ok(())
}

fn a_responder_answers_late() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let (client, host, delay) = (&lab.client().namespace, &lab.backends()[0], Duration::from_millis(700));
    let responder = Responder::start(host, "late", 53, delay)?;
    for (address, from) in [(host.v4, lab.client().v4), (host.v6, lab.client().v6)] {
        let start = Instant::now();
        let answers = Ask::from_one_socket((address, 53).into(), 10).port(2000).run(client)?;
        ensure!(answers.counts().get("late") == Some(&10) && answers.is_clean(), "{answers:?}");
        ensure!(start.elapsed() >= delay, "after {:?}", start.elapsed());
        let arrivals = responder.arrivals();
        let of_these: Vec<_> = arrivals.iter().filter(|arrival| arrival.from == (from, 2000).into()).collect();
        ensure!(of_these.len() == 10 && of_these.iter().all(|arrival| arrival.at >= start), "{arrivals:?}");
    }
    Ok(())
}

fn nginx_gives_and_takes() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let nginx = Nginx::start(&lab, "b1", &lab.backends()[0])?;
    let (client, expected) = (&lab.client().namespace, large());
    let file = lab.directory("nginx")?.join("large");
    for (name, address) in [("v4", lab.backends()[0].v4), ("v6", lab.backends()[0].v6)] {
        let server = SocketAddr::new(address, 80);
        ensure!(curl::get(client, &curl::url(server, "/large"))? == expected, "{name}: other bytes came down");
        curl::put(client, &file, &curl::url(server, &format!("/up/{name}")))?;
        ensure!(nginx.uploaded(name)?.is_some_and(|bytes| bytes == expected), "{name}: other bytes went up");
        let bodies = curl::short_connections_at_once(client, server, "/who", 100, 4)?;
        ensure!(bodies.get("b1") == Some(&100), "{bodies:?}");
    }
    nginx.stop()
}
