//! The controller in a lab: it finds the way to each backend, follows what changes, refuses what cannot be, and leaves
//! nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::{
    dataplane::host,
    network::{
        View, XdpFeatures,
        netlink::{Changes, Network},
        way::{self, Chosen},
    },
    settings::WaySetting,
};
use serde_json::Value;
use testbed::{
    ask::{Ask, Ports},
    bind::Bind,
    evenkeel::{Evenkeel, find_program},
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Lab, Layout, Reach},
};

fn main() -> ExitCode {
    run_side_by_side(vec![
        on_root("the way to a backend is seen in the network", the_way_is_seen),
        on_root("what a device says of XDP is seen, and heard when it changes", xdp_features_are_seen_and_heard),
        on_root("every way answers over both families and says why", every_way_answers),
        on_root("a restarted container is followed", a_restarted_container_is_followed),
        on_root("a frontend address added later is balanced", an_address_added_later_is_balanced),
        on_root("a refused reload is shown and changes nothing", a_refused_reload_is_shown),
        on_root("a configuration that cannot be is refused at the start", refused_at_the_start),
        on_root("a refused file is tried again when links change", a_refused_file_is_tried_again),
        on_root("a backend added by a reload is asked for like those of the start", an_added_backend_is_asked_for),
        on_root("hooks taken away are put back, programs of others are shown", hooks_are_looked_after),
        on_root("a fault of the system is told once", a_fault_is_told_once),
        on_root("a changed file is read without being told", a_changed_file_is_read),
        on_root("a stopped controller leaves the data path, detach leaves nothing", stopped_and_detached),
        on_root("a second controller is refused", a_second_controller_is_refused),
        on_root("detach without pins leaves a running controller's state", detach_leaves_a_running_controllers_state),
    ])
}

fn the_way_is_seen() -> Result<()> {
    for (reach, expected) in [
        (Reach::Bridge, ["redirect-peer: port v1 of bridge br0", "redirect-peer: port v2 of bridge br0"]),
        (Reach::Veths, ["redirect-peer: the other end of v1", "redirect-peer: the other end of v2"]),
        (Reach::Routed, ["redirect-neigh: the other end of eth1 is itself a port of a bridge"; 2]),
    ] {
        let lab = Lab::up(Layout { reach, backends: 2, ..Layout::default() })?;
        for (backend, expected) in lab.backends().iter().zip(expected) {
            for address in [backend.v4, backend.v6] {
                let seen = lab.balancer().enter(|| see(address))?;
                let described = format!("{}: {}", seen.way.name(), seen.why);
                ensure!(described == expected, "{reach:?} {address}: {described}");
            }
        }
        let own = lab.balancer().enter(|| see(FRONTENDS[0]))?;
        ensure!(own.why == "it is an address of this host", "{}", own.why);
    }
    Ok(())
}

fn xdp_features_are_seen_and_heard() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let peer = &lab.backends()[0].namespace;
    lab.balancer().enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let network = Network::open()?;
            let mut changes = Changes::open()?;
            let mut view = settled(&network, &mut changes).await?;
            if !host::is_at_least(&host::probe()?.release, (6, 3)) {
                ensure!(view.links.values().all(|link| link.xdp.is_none()), "this kernel cannot know: {view:?}");
                return Ok(());
            }
            let of_bridge = features(&view, "br0").context("br0 tells")?;
            ensure!(!of_bridge.takes_programs() && !of_bridge.takes_redirected(), "br0: {of_bridge:?}");
            for (gro, is_target) in [("on", true), ("off", false)] {
                let before = features(&view, "v1");
                peer.sh(&format!("ethtool -K eth0 gro {gro}"))?;
                tokio::time::timeout(Duration::from_secs(3), changes.next(&view))
                    .await
                    .with_context(|| format!("not told that the other end of v1 has gro {gro}"))??;
                view = network.view(&BTreeSet::new())?;
                let [v1, v2] = ["v1", "v2"].map(|name| features(&view, name));
                let (v1, v2) = (v1.context("v1 tells")?, v2.context("v2 tells")?);
                ensure!(before != Some(v1), "gro {gro}: as before, {v1:?}");
                ensure!(v1.takes_programs() && v2.takes_programs(), "gro {gro}: {v1:?}, {v2:?}");
                ensure!(v1.takes_redirected() == is_target, "gro {gro}: {v1:?}");
                ensure!(v1.takes_redirected_fragments() == is_target, "gro {gro}: {v1:?}");
                ensure!(!v2.takes_redirected(), "gro {gro}: nothing was done to the other end of v2, {v2:?}");
            }
            Ok(())
        })
    })
}

fn features(view: &View, name: &str) -> Option<XdpFeatures> {
    view.links.values().find(|link| link.name == name)?.xdp
}

/// A view of a network in which nothing happens any more.
async fn settled(network: &Network, changes: &mut Changes) -> Result<View> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let view = network.view(&BTreeSet::new())?;
        match tokio::time::timeout(Duration::from_millis(500), changes.next(&view)).await {
            Err(_nothing_happened) => return Ok(view),
            Ok(told) => told?,
        }
        ensure!(Instant::now() < end, "something happens all the time");
    }
}

/// The way to a backend, its neighbour having been asked for.
fn see(backend: IpAddr) -> Result<Chosen> {
    let network = Network::open()?;
    let backends = BTreeSet::from([backend]);
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let view = network.view(&backends)?;
        let questions = view.questions(&backends, &view);
        if questions.is_empty() || Instant::now() > end {
            return Ok(way::choose(&view, backend, WaySetting::Auto, None)?);
        }
        for question in questions {
            network.resolve(&question)?;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn every_way_answers() -> Result<()> {
    for (reach, asked_for, way) in [
        (Reach::Bridge, "auto", "redirect-peer"),
        (Reach::Bridge, "redirect-neigh", "redirect-neigh"),
        (Reach::Bridge, "stack", "stack"),
        (Reach::Veths, "auto", "redirect-peer"),
        (Reach::Routed, "auto", "redirect-neigh"),
        (Reach::Routed, "stack", "stack"),
    ] {
        let lab = Lab::up(Layout { reach, backends: 2, ..Layout::default() })?;
        let _binds = Bind::start_all(&lab)?;
        let evenkeel = Evenkeel::start_with(&lab, &both_families(&lab), &["--way", asked_for])?;
        within(Duration::from_secs(5), || ways(&evenkeel), |ways| ways.values().all(|found| found == way))
            .with_context(|| format!("{reach:?} {asked_for}"))?;
        for frontend in FRONTENDS {
            all_answered(&lab, frontend, 100).with_context(|| format!("{reach:?} {asked_for} {frontend}"))?;
        }
    }
    Ok(())
}

fn a_restarted_container_is_followed() -> Result<()> {
    let mut lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let (b1, b2) = (Bind::start(&lab, "b1", &lab.backends()[0])?, Bind::start(&lab, "b2", &lab.backends()[1])?);
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    all_answered(&lab, FRONTENDS[0], 100)?;
    b2.stop()?;
    lab.restart_backend(1)?;
    let _b2 = Bind::start(&lab, "b2", &lab.backends()[1])?;
    let port = lab.port(1).to_owned();
    let leads_there = |status: &Value| {
        let through = |way: &&Value| way["interface"] == port.as_str() && way["way"] == "redirect-peer";
        status["ways"].as_array().is_some_and(|ways| ways.iter().filter(through).count() == 2)
    };
    within(Duration::from_secs(5), || evenkeel.status(), leads_there)?;
    for frontend in FRONTENDS {
        all_answered(&lab, frontend, 100)?;
    }
    b1.stop()
}

fn an_address_added_later_is_balanced() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    let late: IpAddr = "10.9.0.4".parse()?;
    lab.balancer().sh("ip addr add 10.9.0.4/24 dev eth3 label eth3:2")?;
    let names_it = |listing: &Value| listing.to_string().contains("10.9.0.4:53/udp");
    within(Duration::from_secs(2), || evenkeel.ls(&[]), names_it)?;
    all_answered(&lab, late, 100)?;
    lab.balancer().sh("ip addr del 10.9.0.4/24 dev eth3")?;
    within(Duration::from_secs(2), || evenkeel.ls(&[]), |listing| !names_it(listing))?;
    Ok(())
}

fn a_refused_reload_is_shown() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let good = both_families(&lab);
    let mut evenkeel = Evenkeel::start(&lab, &good)?;
    let before = evenkeel.ls(&[])?;
    let told = evenkeel.reload(&good.replace("\"rr\"", "\"rrr\"").replace("53", "0"))?;
    ensure!(told.as_deref() == Some("configuration refused; what was running goes on"), "{told:?}");
    let messages = evenkeel.status()?["last_refusal"]["messages"].clone();
    ensure!(messages.as_array().is_some_and(|messages| messages.len() == 2), "every fault is shown: {messages}");
    ensure!(messages.to_string().contains("did you mean `rr`?"), "{messages}");
    ensure!(evenkeel.ls(&[])? == before, "nothing has changed");

    let told = evenkeel.reload(&good.replace("10.9.0.4", ""))?;
    ensure!(told.as_deref() == Some("configuration applied"), "{told:?}");
    ensure!(evenkeel.status()?["last_refusal"].is_null(), "a good one came after it");
    let told = evenkeel.reload(&format!("{good}\n[limits]\nflows = 1000\n"))?;
    ensure!(told.as_deref() == Some("configuration refused; what was running goes on"), "{told:?}");
    let status = evenkeel.status()?["last_refusal"].to_string();
    ensure!(status.contains("evenkeel.toml:8:9: [limits] are not those in force"), "{status}");
    all_answered(&lab, FRONTENDS[0], 100)
}

fn refused_at_the_start() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, reach: Reach::Routed, ..Layout::default() })?;
    let good = both_families(&lab);
    let [first, ..] = lab.backends() else { unreachable!("the lab has two") };
    let elsewhere = r#"address = "203.0.113.9", port = 53, protocols = ["udp"] }, { address = "fd00:99::9""#;
    let nowhere = good.replace("interface = \"eth3\"", elsewhere);
    for (configuration, options, expected) in [
        (
            &good,
            &["--way", "redirect-peer"][..],
            format!(
                ":5:13: service dns: backend {}: way redirect-peer cannot be: the other end of eth1 is itself a port of a bridge; use \
                 `way = \"auto\"`",
                first.v4
            ),
        ),
        (
            &nowhere,
            &[],
            ":3:11: service dns: no interface that clients could come in by has the address 203.0.113.9; name those \
             they come in by: interfaces = [\"…\"]"
                .to_owned(),
        ),
        (&good.replace("eth3", "eth33"), &[], "did you mean `eth3`?".to_owned()),
        (
            &good.replace("eth3", "lo"),
            &[],
            ":3:11: service dns: clients cannot be balanced at lo: it is the loopback; name those they come in by: \
             interfaces = [\"…\"]"
                .to_owned(),
        ),
    ] {
        let refusal = Evenkeel::start_refused(&lab, configuration, options)?;
        ensure!(refusal.code == Some(2), "{refusal:?}");
        ensure!(refusal.said.contains(&expected), "{}\nnot: {expected}", refusal.said);
    }
    Ok(())
}

fn a_refused_file_is_tried_again() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let good = both_families(&lab);
    let mut evenkeel = Evenkeel::start(&lab, &good)?;
    let told = evenkeel.reload(&format!("interfaces = [\"eth3\", \"late0\"]\n{good}"))?;
    ensure!(told.as_deref() == Some("configuration refused; what was running goes on"), "{told:?}");
    let refusal = evenkeel.status()?["last_refusal"].clone();
    ensure!(refusal.to_string().contains("this host has no interface `late0`"), "{refusal}");
    lab.balancer().sh("ip link add late0 type veth peer name late1")?;
    let is_in_force = |status: &Value| {
        let is_late = |hook: &Value| hook["interface"] == "late0" && hook["ingress"] == "clients";
        status["last_refusal"].is_null() && status["hooks"].as_array().is_some_and(|hooks| hooks.iter().any(is_late))
    };
    within(Duration::from_secs(5), || evenkeel.status(), is_in_force)?;
    lab.balancer().sh("ip link del late0")?;
    let is_told = |status: &Value| status["warnings"].to_string().contains("there is no interface late0, by which");
    within(Duration::from_secs(5), || evenkeel.status(), is_told)?;
    // What was there a moment ago is known to a reload, whether or not anyone has told of it.
    lab.balancer().sh("ip link add late2 type veth peer name late3")?;
    evenkeel.apply(&format!("interfaces = [\"eth3\", \"late2\"]\n{good}"))?;
    all_answered(&lab, FRONTENDS[0], 100)
}

fn an_added_backend_is_asked_for() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let with = |backends: &[IpAddr]| {
        let backends = backends.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "way = \"redirect-peer\"\n[[service]]\nname = \"dns\"\nbackends = [{backends}]\n\
             listen = [{{ interface = \"eth3\", port = 53, protocols = [\"udp\"] }}]\n"
        )
    };
    let [first, second] = lab.backends() else { unreachable!("the lab has two") };
    let mut evenkeel = Evenkeel::start(&lab, &with(&[first.v4]))?;
    lab.balancer().sh(&format!("ip neigh flush to {} dev br0", second.v4))?;
    evenkeel.apply(&with(&[first.v4, second.v4]))?;
    ensure!(ways(&evenkeel)?.values().all(|way| way == "redirect-peer"), "{:?}", ways(&evenkeel)?);
    all_answered(&lab, FRONTENDS[0], 100)
}

fn hooks_are_looked_after() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    let balancer = lab.balancer();
    let eth3 = |status: &Value| status["hooks"].as_array()?.iter().find(|hook| hook["interface"] == "eth3").cloned();
    let hook = eth3(&evenkeel.status()?).context("eth3 has a hook")?;
    ensure!(hook["why"] == "", "{hook}");

    if hook["mode"] == "tcx" {
        balancer.sh("tc qdisc add dev eth3 clsact")?;
    }
    // The classic program "return -1": go on as if there were none.
    let theirs = ["filter", "add", "dev", "eth3", "ingress", "prio", "77", "bpf", "da", "bytecode"];
    balancer.run("tc", &[&theirs[..], &["1,6 0 0 4294967295"]].concat())?;
    let is_shown = |status: &Value| eth3(status).is_some_and(|hook| hook["why"].to_string().contains("program bpf on"));
    within(Duration::from_secs(10), || evenkeel.status(), is_shown)?;
    balancer.sh("tc filter del dev eth3 ingress prio 77")?;
    within(Duration::from_secs(10), || evenkeel.status(), |status| !is_shown(status))?;

    if hook["mode"] == "tcx" {
        // Nothing else holds the link.
        fs::remove_file(lab.pins()?.join(format!("evenkeel/links/{}-ingress", hook["ifindex"])))?;
    } else {
        balancer.sh("tc filter del dev eth3 ingress prio 1")?;
    }
    let said = "someone else took our program off the interface; it is put back";
    within(Duration::from_secs(10), || evenkeel.log(), |log| log.contains(said))?;
    all_answered(&lab, FRONTENDS[0], 100)?;
    let log = evenkeel.log()?;
    ensure!(log.matches(said).count() == 1, "once, and for one interface: {log}");
    Ok(())
}

fn a_fault_is_told_once() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let directory = lab.directory("odd")?;
    let (file, state) = (directory.join("evenkeel.toml"), directory.join("state"));
    fs::write(&file, both_families(&lab))?;
    fs::write(&state, "a file")?;
    let mut command = lab.balancer().command(&find_program()?.to_string_lossy());
    command.arg("run").arg("--config").arg(&file).arg("--state").arg(&state);
    let ended = command.arg("--pins").arg(lab.pins()?.join("odd")).output()?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    ensure!(ended.status.code() == Some(1), "{ended:?}");
    ensure!(said == format!("evenkeel: {}: File exists (os error 17)\n", state.display()), "{said}");
    Ok(())
}

fn a_changed_file_is_read() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    evenkeel.write(&both_families(&lab).replace("\"dns\"", "\"names\""))?;
    let is_renamed = |listing: &Value| listing["services"][0]["name"] == "names";
    within(Duration::from_secs(2), || evenkeel.ls(&[]), is_renamed)?;
    Ok(())
}

fn stopped_and_detached() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let _binds = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    evenkeel.stop()?;
    all_answered(&lab, FRONTENDS[0], 100)?;
    ensure!(evenkeel.status()?["is_running"] == false);
    evenkeel.restart()?;
    all_answered(&lab, FRONTENDS[0], 100)?;
    let opening = evenkeel.status()?["opening"].clone();
    ensure!(opening == "adopted from an earlier controller", "{opening}");

    let refused = evenkeel.ask(&["detach"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let (pid, [_, _, _, state]) = (evenkeel.pid().context("it runs")?, evenkeel.folders());
    ensure!(refused.status.code() == Some(1), "it runs: {refused:?}");
    let expected = format!(
        "evenkeel: a controller (process {pid}) is running and uses {state}; stop it first, with `systemctl stop \
         evenkeel`, or with `kill {pid}` where systemd did not start it\n"
    );
    ensure!(said == expected, "{said}\nnot: {expected}");
    all_answered(&lab, FRONTENDS[0], 100)?;
    evenkeel.stop()?;
    evenkeel.detach()?;
    let [_, pins, _, state] = evenkeel.folders();
    for folder in [pins, state] {
        ensure!(fs::metadata(&folder).is_err(), "{folder} is still there");
    }
    let programs = lab.balancer().run("tc", &["filter", "show", "dev", "eth3", "ingress"])?;
    ensure!(programs.trim().is_empty(), "{programs}");
    let gone = evenkeel.ask(&["ls"])?;
    ensure!(gone.status.code() == Some(1) && String::from_utf8_lossy(&gone.stderr).contains("nothing is pinned in"));
    Ok(())
}

fn a_second_controller_is_refused() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    let configuration = evenkeel.configuration();
    let second = evenkeel.ask(&["run", "--config", &configuration.to_string_lossy()])?;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(second.status.code() == Some(1), "{said}");
    let pid = evenkeel.pid().context("it runs")?;
    ensure!(said.contains(&format!("another controller (process {pid}) uses")), "{said}");
    Ok(())
}

fn detach_leaves_a_running_controllers_state() -> Result<()> {
    let lab = Lab::up(Layout { backends: 2, ..Layout::default() })?;
    let evenkeel = Evenkeel::start(&lab, &both_families(&lab))?;
    let [_, _, _, state] = evenkeel.folders();
    let before = evenkeel.status()?["services"].clone();
    let mut command = lab.balancer().command(&find_program()?.to_string_lossy());
    command.args(["detach", "--state", &state, "--pins"]).arg(lab.pins()?.join("nowhere"));
    let refused = command.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let pid = evenkeel.pid().context("it runs")?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        said.starts_with(&format!("evenkeel: a controller (process {pid}) is running and uses {state};")),
        "{said}"
    );
    let status = evenkeel.status()?;
    ensure!(status["services"] == before && status["is_running"] == true, "its state is as it was: {status}");
    Ok(())
}

/// A service on all addresses of the client side, with every backend over both families.
fn both_families(lab: &Lab) -> String {
    let addresses = lab.backends().iter().flat_map(|backend| [backend.v4, backend.v6]);
    let backends = addresses.map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "[[service]]\nname = \"dns\"\nlisten = [{{ interface = \"eth3\", port = 53, protocols = [\"udp\"] }}]\n\
         selector = \"rr\"\nbackends = [{backends}]\n"
    )
}

/// Asks a frontend from as many ports: every query is answered by it, and evenly.
fn all_answered(lab: &Lab, frontend: IpAddr, queries: usize) -> Result<()> {
    let ports = Ports::default().take(queries);
    let answers = Ask::from_each_port(SocketAddr::new(frontend, 53), ports).run(&lab.client().namespace)?;
    ensure!(answers.is_clean(), "{} unanswered, {} of strangers", answers.unanswered(), answers.wrong_source);
    Ok(())
}

fn ways(evenkeel: &Evenkeel) -> Result<BTreeMap<String, String>> {
    let status = evenkeel.status()?;
    let ways = status["ways"].as_array().context("a status with ways")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(ways.iter().map(|way| (text(&way["address"]), text(&way["way"]))).collect())
}

/// Asks until the answer is right.
fn within<T: std::fmt::Debug>(
    time: Duration,
    mut ask: impl FnMut() -> Result<T>,
    is_right: impl Fn(&T) -> bool,
) -> Result<T> {
    let end = Instant::now() + time;
    loop {
        let answer = ask()?;
        if is_right(&answer) {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "not within {time:?}: {answer:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
