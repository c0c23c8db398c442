//! The road from a client to four real servers and back, in every layout of a lab, while the controller reloads,
//! dies, comes back and goes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use anyhow::{Result, ensure};
use testbed::{
    ask::{Answers, Ask, Ports},
    bind::{Bind, WHO},
    dig,
    engine::Engine,
    evenkeel::Evenkeel,
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Lab, Layout, Reach},
};

fn main() -> ExitCode {
    run_side_by_side(vec![
        on_root("queries are spread evenly in every layout beside an engine's rules", every_layout_is_even),
        on_root("an address that is only routed to the balancer is answered from in every layout", routed_is_answered),
        on_root("a reload takes a backend away and brings it back", a_reload_takes_effect),
        on_root("the data path outlives its controller", the_data_path_outlives_its_controller),
        on_root("a configuration with a fault ends the start with exit code 2", a_refused_configuration),
        on_root("after detach nothing is balanced and nothing pinned", detach_leaves_nothing),
    ])
}

fn every_layout_is_even() -> Result<()> {
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        let lab = Lab::up(Layout { reach, ..Layout::default() })?;
        let servers = Bind::start_all(&lab)?;
        let _engine = Engine::start(&lab)?;
        let mut evenkeel = Evenkeel::start(&lab, &dns(&lab, 4, "per-flow"))?;
        let before = arrived(&servers)?;
        let mut ports = Ports::default();
        for address in FRONTENDS {
            let answers = ask(&lab, address, &mut ports, 1200)?;
            ensure!(answers.of_backends(4) == [300; 4], "{reach:?}, {address}, per flow: {:?}", answers.counts());
        }
        evenkeel.apply(&dns(&lab, 4, "per-packet"))?;
        for address in FRONTENDS {
            let server = SocketAddr::new(address, 53);
            let port = ports.take(1).start;
            let answers = Ask::from_one_socket(server, 1200).port(port).run(&lab.client().namespace)?;
            let wrong = answers.wrong_source;
            ensure!(answers.is_clean(), "{reach:?}, {server}: {} unanswered, {wrong} wrong", answers.unanswered());
            ensure!(answers.of_backends(4) == [300; 4], "{reach:?}, {address}, per packet: {:?}", answers.counts());
        }
        let arrivals: Vec<_> = arrived(&servers)?.iter().zip(before).map(|(after, before)| after - before).collect();
        ensure!(arrivals == [2400; 4], "{reach:?}: the servers count {arrivals:?}");
    }
    Ok(())
}

/// The balancer's as a router: on none of its interfaces, so nobody but Evenkeel answers there.
fn routed_is_answered() -> Result<()> {
    let routed: [IpAddr; 2] = ["203.0.113.9".parse()?, "2001:db8:9::9".parse()?];
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        let lab = Lab::up(Layout { reach, ..Layout::default() })?;
        let _servers = Bind::start_all(&lab)?;
        let client = &lab.client().namespace;
        let listen = routed.map(|address| {
            client.sh(&format!("ip route add {address} via {}", FRONTENDS[usize::from(address.is_ipv6())]))?;
            Ok(format!("{{ address = \"{address}\", port = 53, protocols = [\"udp\", \"tcp\"] }}"))
        });
        let listen = listen.into_iter().collect::<Result<Vec<_>>>()?.join(", ");
        let configuration = |schedule| format!("interfaces = [\"eth3\"]\n{}", service(&lab, &listen, 4, schedule));
        let mut evenkeel = Evenkeel::start(&lab, &configuration("per-flow"))?;
        let mut ports = Ports::default();
        for schedule in ["per-flow", "per-packet"] {
            evenkeel.apply(&configuration(schedule))?;
            for address in routed {
                let server = SocketAddr::new(address, 53);
                let answers = match schedule {
                    "per-flow" => ask(&lab, address, &mut ports, 400)?,
                    _ => Ask::from_one_socket(server, 400).port(ports.take(1).start).run(client)?,
                };
                let (unanswered, wrong) = (answers.unanswered(), answers.wrong_source);
                ensure!(answers.is_clean(), "{reach:?}, {schedule}, {server}: {unanswered} unanswered, {wrong} wrong");
                let counts = answers.of_backends(4);
                ensure!(counts == [100; 4], "{reach:?}, {schedule}, {server}: {counts:?}");
                let mut asked = BTreeMap::<String, usize>::new();
                for _ in 0..8 {
                    let answer = dig::tcp(client, server, WHO)?;
                    ensure!(answer.over_tcp && answer.status == "NOERROR", "{reach:?}, {server}: {answer:?}");
                    *asked.entry(answer.texts.concat()).or_default() += 1;
                }
                let even = (1..=4).map(|number| (format!("b{number}"), 2)).collect();
                ensure!(asked == even, "{reach:?}, {schedule}, {server} over TCP: {asked:?}");
            }
        }
    }
    Ok(())
}

fn a_reload_takes_effect() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &dns(&lab, 4, "per-flow"))?;
    let mut ports = Ports::default();
    for (backends, expected) in [(3, [400, 400, 400, 0]), (4, [300; 4]), (1, [1200, 0, 0, 0])] {
        evenkeel.apply(&dns(&lab, backends, "per-flow"))?;
        let answers = ask(&lab, FRONTENDS[0], &mut ports, 1200)?;
        ensure!(answers.of_backends(4) == expected, "{backends} backends: {:?}", answers.counts());
    }
    Ok(())
}

fn the_data_path_outlives_its_controller() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &dns(&lab, 4, "per-flow"))?;
    let mut ports = Ports::default();
    let mut check = |when: &str| {
        let answers = ask(&lab, FRONTENDS[1], &mut ports, 1200)?;
        ensure!(answers.of_backends(4) == [300; 4], "{when}: {:?}", answers.counts());
        Ok(())
    };
    check("started")?;
    evenkeel.kill();
    check("killed")?;
    evenkeel.restart()?;
    check("restarted")?;
    evenkeel.stop()?;
    check("stopped")?;
    evenkeel.restart()?;
    ensure!(evenkeel.status()?.is_object(), "{}", evenkeel.status()?);
    ensure!(evenkeel.ls(&[])?.to_string().contains("\"dns\""), "{}", evenkeel.ls(&[])?);
    check("started again")
}

fn a_refused_configuration() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let refusal = Evenkeel::start_refused(&lab, "[[service]]\nname = \"dns\"\nselektor = \"rr\"\n", &[])?;
    ensure!(refusal.code == Some(2) && refusal.said.contains("selektor"), "{refusal:?}");
    Ok(())
}

fn detach_leaves_nothing() -> Result<()> {
    let lab = Lab::up(Layout::default())?;
    let _servers = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &dns(&lab, 4, "per-flow"))?;
    evenkeel.stop()?;
    evenkeel.detach()?;
    let answers = Ask::from_one_socket((FRONTENDS[0], 53).into(), 10).run(&lab.client().namespace)?;
    ensure!(answers.answered() == 0, "still answered: {:?}", answers.counts());
    let pins = lab.pins()?.join("evenkeel");
    ensure!(!pins.exists(), "{} is still there", pins.display());
    Ok(())
}

/// A DNS service over the lab's first backends of both families.
fn dns(lab: &Lab, backends: usize, schedule: &str) -> String {
    service(lab, "{ interface = \"eth3\", port = 53, protocols = [\"udp\", \"tcp\"] }", backends, schedule)
}

fn service(lab: &Lab, listen: &str, backends: usize, schedule: &str) -> String {
    let mut text = format!(
        "[[service]]\nname = \"dns\"\nselector = \"rr\"\nschedule = \"{schedule}\"\nlisten = [{listen}]\nbackends = ["
    );
    for host in &lab.backends()[..backends] {
        write!(text, "\"{}\", \"{}\", ", host.v4, host.v6).expect("a string takes all");
    }
    text + "]\n"
}

/// Asks once from each of the next ports, and expects every answer.
fn ask(lab: &Lab, address: IpAddr, ports: &mut Ports, count: usize) -> Result<Answers> {
    let server = SocketAddr::new(address, 53);
    let answers = Ask::from_each_port(server, ports.take(count)).run(&lab.client().namespace)?;
    let Answers { wrong_source, repeated, .. } = answers;
    let unanswered = answers.unanswered();
    ensure!(answers.is_clean(), "{server}: {unanswered} unanswered, {wrong_source} wrong, {repeated} repeated");
    Ok(answers)
}

fn arrived(servers: &[Bind]) -> Result<Vec<u64>> {
    servers.iter().map(|server| Ok(server.arrivals()?.total())).collect()
}
