//! The decision trace: what it costs when it is off, and what it says when it is on.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{SchedClassifier, Xdp},
};
use lb_userspace::{dataplane::bpf::object, trace::Filter};
use nix::libc::EMSGSIZE;
use testbed::{
    ask::Ask,
    bind::Bind,
    evenkeel::Evenkeel,
    harness::{on_root, run},
    lab::{FRONTENDS, Lab, Layout, Offloads, Reach},
};
use xtask::bpf::{self, Object};

fn main() -> ExitCode {
    run(vec![
        on_root("off, the programs are those of a build without it", off_it_costs_nothing),
        on_root("on, no program takes the verifier long", on_it_is_verified_quickly),
        on_root("a query and its answer are told at traffic control", told_at_traffic_control),
        on_root("a query and its answer are told at xdp", told_at_xdp),
        on_root("a new flow and a known one are told apart", flows_are_told_apart),
        on_root("what the filter does not name is not told", others_are_not_told),
        on_root("what is too big is told, and its sender as well", what_is_too_big_is_told),
        on_root("of a flood a part is told, and how much is not", a_flood_is_counted),
        on_root("a filter that cannot be ends the start with exit code 2", a_refused_filter),
        on_root("the next controller is without the trace of the one before", gone_with_its_controller),
    ])
}

/// The object that a controller without a filter loads is that of a build without the trace, byte for byte; that with one
/// has other programs and more of them.
fn off_it_costs_nothing() -> Result<()> {
    let toolchain = bpf::find()?;
    let without = fs::read(bpf::build(&toolchain, Object::Plain)?)?;
    let (off, on) = (object(None), object(Some(&Filter::default())));
    ensure!(off == without.as_slice(), "off, another object is loaded than one built without the trace");
    let (off, on) = (sizes(off)?, sizes(on)?);
    let without = sizes(&without)?;
    ensure!(off == without, "off: {off:?}, without: {without:?}");
    for (name, (_, bytes)) in &on {
        // The time is no packet, and what is too big has been told of before it is answered.
        let tells = !["read_jiffies", "too_big"].contains(&name.as_str());
        ensure!((*bytes > off[name].1) == tells, "{name} traces otherwise: {off:?}, {on:?}");
    }
    Ok(())
}

fn on_it_is_verified_quickly() -> Result<()> {
    let on = sizes(object(Some(&Filter::default())))?;
    for (name, (verified, _)) in &on {
        ensure!((1..=300_000).contains(verified), "{name} takes {verified} of the kernel's 1,000,000: {on:?}");
    }
    Ok(())
}

/// What the kernel makes of each program: instructions that the verifier took, bytes that are left of it.
type Sizes = BTreeMap<String, (u32, u32)>;

fn sizes(object: &[u8]) -> Result<Sizes> {
    let mut ebpf = EbpfLoader::new().btf(None).load(object)?;
    let mut sizes = Sizes::new();
    for (name, program) in ebpf.programs_mut() {
        let loaded = match <&mut Xdp>::try_from(&mut *program) {
            Ok(xdp) => xdp.load(),
            Err(_) => <&mut SchedClassifier>::try_from(&mut *program).and_then(SchedClassifier::load),
        };
        loaded.with_context(|| name.to_owned())?;
        let info = program.info()?;
        let verified = info.verified_instruction_count().context("the kernel does not tell")?;
        let translated = info.size_translated().context("the kernel does not tell")?;
        sizes.insert(name.to_owned(), (verified, translated));
    }
    Ok(sizes)
}

fn told_at_traffic_control() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start_with(&lab, &dns(&lab, "per-packet"), &["--trace", "udp"])?;
    for (server, port) in [(FRONTENDS[0], 4001), (FRONTENDS[1], 4002)] {
        let ends = ask(&lab, server, port)?;
        let query = evenkeel_says(&evenkeel, |line| line.contains(&format!("{ends} at eth3, tc query: ")))?;
        let backend = query.split_once("dns, new choice, backend ").with_context(|| query.clone())?.1;
        let (backend, way) = backend.split_once(", ").with_context(|| query.clone())?;
        ensure!(way.starts_with("by redirect-peer through v"), "{query}");
        let client = SocketAddr::new(client(&lab, server), port);
        let answer = evenkeel_says(&evenkeel, |line| line.contains(&format!("udp {backend} -> {client} at v")))?;
        let server = SocketAddr::new(server, 53);
        ensure!(answer.contains(&format!("tc backends: answer of dns, as from {server}, by redirect")), "{answer}");
        ensure!(answer.ends_with("out of eth3"), "{answer}");
    }
    Ok(())
}

/// The first packets may be left to traffic control, until the next hops are known.
fn told_at_xdp() -> Result<()> {
    let layout =
        Layout { reach: Reach::Routed, offloads: Offloads::FinishedByHosts, far_gro: true, ..Layout::default() };
    let lab = Lab::up(layout)?;
    let _servers = Bind::start_all(&lab)?;
    let configuration = format!("way = \"xdp-redirect\"\n{}", dns(&lab, "per-packet"));
    let evenkeel = Evenkeel::start_with(&lab, &configuration, &["--trace", "10.9.0.2:53"])?;
    evenkeel.wait_for_way("xdp-redirect")?;
    for port in 4000..4100 {
        ask(&lab, FRONTENDS[0], port)?;
    }
    let query = |line: &str| {
        line.contains(" -> 10.9.0.2:53 at eth3, xdp query: dns, new choice, backend ")
            && line.ends_with(", by redirect out of eth1")
    };
    let query = evenkeel_says(&evenkeel, query)?;
    let client = query.split_once("udp ").and_then(|(_, rest)| rest.split_once(" -> "));
    let client = client.with_context(|| query.clone())?.0;
    let answer = evenkeel_says(&evenkeel, |line| line.contains(&format!(" -> {client} at eth1, xdp backends: ")))?;
    ensure!(answer.contains("answer of dns, as from 10.9.0.2:53, "), "{answer}");
    Ok(())
}

fn flows_are_told_apart() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start_with(&lab, &dns(&lab, "per-flow"), &["--trace", "10.9.0.2"])?;
    let ends = ask(&lab, FRONTENDS[0], 4001)?;
    let first =
        evenkeel_says(&evenkeel, |line| line.contains(&format!("{ends} at eth3, tc begin_flow: dns, new choice")))?;
    ask(&lab, FRONTENDS[0], 4001)?;
    let second =
        evenkeel_says(&evenkeel, |line| line.contains(&format!("{ends} at eth3, tc clients: dns, known flow")))?;
    let backend = |line: &str| line.split_once("backend ").map(|(_, backend)| backend.to_owned());
    ensure!(backend(&first).is_some() && backend(&first) == backend(&second), "{first}\n{second}");
    Ok(())
}

fn others_are_not_told() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start_with(&lab, &dns(&lab, "per-packet"), &["--trace", "udp 10.9.0.3"])?;
    for server in [FRONTENDS[0], FRONTENDS[1]] {
        ask(&lab, server, 4001)?;
    }
    let ends = ask(&lab, FRONTENDS[2], 4002)?;
    evenkeel_says(&evenkeel, |line| line.contains(&ends))?;
    evenkeel_says(&evenkeel, |line| line.contains("answer of dns, as from 10.9.0.3:53"))?;
    let others: Vec<_> = told(&evenkeel)?.into_iter().filter(|line| !line.contains("10.9.0.3:53")).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

fn what_is_too_big_is_told() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let configuration = format!("way = \"redirect-neigh\"\n{}", dns(&lab, "per-flow"));
    let evenkeel = Evenkeel::start_with(&lab, &configuration, &["--trace", "udp 10.9.0.2:53"])?;
    lab.balancer().sh("ip link set br0 mtu 1400")?;
    let second = lab.client().namespace.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:4001")?;
        socket.connect((FRONTENDS[0], 53))?;
        socket.send(&[0; 1450])?;
        thread::sleep(Duration::from_millis(200));
        Ok(socket.send(&[0; 1450]))
    })?;
    let ends = format!("udp {}:4001 -> 10.9.0.2:53 at eth3, tc begin_flow: dropped, too_big: ", lab.client().v4);
    evenkeel_says(&evenkeel, |line| line.contains(&ends))?;
    let learned = second.err().and_then(|error| error.raw_os_error());
    ensure!(learned == Some(EMSGSIZE), "the sender was told {learned:?}");
    Ok(())
}

/// To a port on which no backend listens, so that each packet is one decision.
fn a_flood_is_counted() -> Result<()> {
    const FLOOD: u64 = 20_000;
    for (way, hook) in [("auto", "tc query"), ("xdp-redirect", "xdp query")] {
        let layout =
            Layout { reach: Reach::Routed, offloads: Offloads::FinishedByHosts, far_gro: true, ..Layout::default() };
        let lab = Lab::up(layout)?;
        let configuration = dns(&lab, "per-packet").replace("port = 53", "port = 5300");
        let configuration = format!("way = \"{way}\"\n{configuration}");
        let evenkeel = Evenkeel::start_with(&lab, &configuration, &["--trace", "udp 10.9.0.2:5300"])?;
        lab.client().namespace.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:4001")?;
            for _ in 0..FLOOD {
                socket.send_to(b"a flood", (FRONTENDS[0], 5300))?;
            }
            Ok(())
        })?;
        let end = Instant::now() + Duration::from_secs(10);
        let count = || -> Result<(u64, u64)> {
            let lines = told(&evenkeel)?;
            Ok((lines.iter().filter(|line| line.contains(hook)).count() as u64, missing(&evenkeel)?))
        };
        while count()?.0 + count()?.1 < FLOOD && Instant::now() < end {
            thread::sleep(Duration::from_millis(100));
        }
        let (shown, missing) = count()?;
        ensure!(shown > 0 && missing > FLOOD / 2, "{way}: {shown} shown, {missing} not");
        let told = told(&evenkeel)?.len() as u64 + missing;
        // XDP leaves the first ones to traffic control, which tells of them too.
        let most = if way == "auto" { FLOOD } else { FLOOD * 11 / 10 };
        ensure!((FLOOD..=most).contains(&told), "{way}: of {FLOOD} packets {told} decisions, {shown} shown by {hook}");
    }
    Ok(())
}

fn a_refused_filter() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let refusal = Evenkeel::start_refused(&lab, &dns(&lab, "per-flow"), &["--trace", "udp dns"])?;
    ensure!(refusal.code == Some(2), "{refusal:?}");
    ensure!(refusal.said.contains("`dns` is no address") && refusal.said.contains("write for example"), "{refusal:?}");
    ensure!(!lab.pins()?.join("evenkeel").exists(), "something was pinned");
    Ok(())
}

fn gone_with_its_controller() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let mut traced = Evenkeel::start_with(&lab, &dns(&lab, "per-packet"), &["--trace", "any"])?;
    let ends = ask(&lab, FRONTENDS[0], 4001)?;
    evenkeel_says(&traced, |line| line.contains(&ends))?;
    traced.stop()?;
    ask(&lab, FRONTENDS[0], 4002)?;
    let next = Evenkeel::start(&lab, &dns(&lab, "per-packet"))?;
    ask(&lab, FRONTENDS[0], 4003)?;
    thread::sleep(Duration::from_millis(300));
    ensure!(told(&next)?.is_empty(), "{:?}", told(&next)?);
    Ok(())
}

/// A DNS service over all backends of the lab.
fn dns(lab: &Lab, schedule: &str) -> String {
    let backends: Vec<_> = lab.backends().iter().flat_map(|host| [host.v4, host.v6]).collect();
    let backends: Vec<_> = backends.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "[[service]]\nname = \"dns\"\nselector = \"rr\"\nschedule = \"{schedule}\"\n\
         listen = [{{ interface = \"eth3\", port = 53, protocols = [\"udp\"] }}]\nbackends = [{}]\n",
        backends.join(", ")
    )
}

/// Asks one query from a port, and returns its ends as the trace tells them.
fn ask(lab: &Lab, server: IpAddr, port: u16) -> Result<String> {
    let (from, to) = (SocketAddr::new(client(lab, server), port), SocketAddr::new(server, 53));
    let answers = Ask::from_one_socket(to, 1).port(port).run(&lab.client().namespace)?;
    ensure!(answers.is_clean(), "{from} -> {to}: {answers:?}");
    Ok(format!("udp {from} -> {to}"))
}

fn client(lab: &Lab, server: IpAddr) -> IpAddr {
    if server.is_ipv4() { lab.client().v4 } else { lab.client().v6 }
}

/// The decisions that the controller has told.
fn told(evenkeel: &Evenkeel) -> Result<Vec<String>> {
    Ok(evenkeel.log()?.lines().filter(|line| line.contains(" -> ")).map(str::to_owned).collect())
}

/// How many it has told to be missing.
fn missing(evenkeel: &Evenkeel) -> Result<u64> {
    let log = evenkeel.log()?;
    let counts = log.lines().filter_map(|line| line.split_once(" decisions are not shown"));
    counts.map(|(before, _)| Ok(before.rsplit(' ').next().unwrap_or_default().parse::<u64>()?)).sum()
}

/// Waits for a line.
fn evenkeel_says(evenkeel: &Evenkeel, is_it: impl Fn(&str) -> bool) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let told = told(evenkeel)?;
        if let Some(line) = told.iter().find(|line| is_it(line)) {
            return Ok(line.clone());
        }
        ensure!(Instant::now() < end, "it does not say so: {}", evenkeel.log()?);
        thread::sleep(Duration::from_millis(50));
    }
}
