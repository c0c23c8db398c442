//! Every road there is: TCP and UDP over both families go by each hook and each way in each network, with checksums and
//! segments finished by the senders and left to devices; or the road is refused, or not taken, for a reason that is said.
//! Whatever was sent on it has arrived or is counted.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testbed::{
    ask::{Ask, Ports},
    bind::{Bind, SIZES, WHO},
    curl,
    datagram::{exchange, query, send_with_hops},
    engine::Engine,
    evenkeel::{ByXdp, Evenkeel},
    harness::{Needs, on_root, run_side_by_side, trial},
    lab::{FRONTENDS, Host, Lab, Layout, Offloads},
    losses::{Handed, handed, losses},
    namespace::Namespace,
    nginx::{Nginx, large},
    road::{End, PLACES, Place, Road, Trip},
    trace::{Trace, programs},
};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for place in &PLACES {
        let name = format!("{}: every road carries all or is refused", place.name);
        trials.push(trial(&name, Needs::Root, move || every_road(place)));
    }
    for place in PLACES.iter().filter(|place| place.far_gro && !place.is_bridge_filtered) {
        let name =
            format!("{}: among an engine's rules the default way carries all, and detach leaves them", place.name);
        trials.push(trial(&name, Needs::Root, move || among_an_engines_rules(place)));
    }
    trials.push(on_root("what the kernel does not send for xdp is heard and counted", what_is_not_sent_is_counted));
    run_side_by_side(trials)
}

/// Frontends of one family each.
const FAMILIES: [IpAddr; 2] = [FRONTENDS[0], FRONTENDS[1]];
/// The ports of the services that choose per flow and per packet.
const UDP: [u16; 2] = [53, 5300];
const BACKENDS: usize = 2;
/// How many queries are asked of each frontend and port.
const QUERIES: usize = 40;
/// How many more have no hop left when they come to the balancer.
const SPENT: usize = 5;

fn every_road(place: &Place) -> Result<()> {
    let mut stage = Stage::set(place)?;
    place.settle(&stage.lab)?;
    let mut faults = Vec::new();
    for offloads in [Offloads::Untouched, Offloads::Off] {
        stage.lab.set_offloads(offloads)?;
        for road in place.roads.iter().filter(|road| matches!(road.end, End::Goes(..))) {
            if let Err(fault) = stage.go(road, offloads) {
                faults.push(format!("{}, offloads {offloads:?}: {fault:#}", road.name()));
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    stage.leave()
}

fn among_an_engines_rules(place: &Place) -> Result<()> {
    let mut stage = Stage::set(place)?;
    let _engine = Engine::start(&stage.lab)?;
    let before = rules(&stage.lab)?;
    ensure!(
        before.iter().any(|rule| rule.starts_with(":FORWARD DROP")),
        "an engine forwards by its rules only: {before:?}"
    );
    let default = place.roads.iter().find(|road| (road.hook, road.way) == ("auto", "auto")).context("no default")?;
    stage.go(default, Offloads::Untouched)?;
    ensure!(rules(&stage.lab)? == before, "the rules are others while it runs: {:?}", rules(&stage.lab)?);

    // They would drop what comes to them: it is the way that does not.
    let stack = place.roads.iter().find(|road| (road.hook, road.way) == ("tc", "stack")).context("no stack")?;
    stage.evenkeel.apply(&configuration(&stage.lab, stack))?;
    stack.wait_for(&stage.evenkeel)?;
    for frontend in FAMILIES {
        let ask = Ask::from_each_port((frontend, 53).into(), stage.ports.take(4)).patience(Duration::from_millis(300));
        let answered = ask.run(&stage.lab.client().namespace)?.answered();
        ensure!(answered == 0, "{frontend}: {answered} answers came through the stack and the rules");
    }
    stage.evenkeel.stop()?;
    stage.evenkeel.detach()?;
    ensure!(rules(&stage.lab)? == before, "the rules are others after detach: {:?}", rules(&stage.lab)?);
    Ok(())
}

/// Rules and policies of the balancer's packet filters, without what they have counted.
fn rules(lab: &Lab) -> Result<Vec<String>> {
    let saved = lab.balancer().sh("iptables-save")? + &lab.balancer().sh("ip6tables-save")?;
    let rules = saved.lines().filter(|line| !line.starts_with('#'));
    Ok(rules.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect())
}

/// Without a controller nobody hears that a device takes no packets from XDP any more, and XDP goes on sending.
fn what_is_not_sent_is_counted() -> Result<()> {
    let mut lab = Lab::up(Layout { backends: BACKENDS, ..Trip::XDP.layout() })?;
    let binds = Bind::start_all(&lab)?;
    let mut evenkeel = Evenkeel::start(&lab, &configuration(&lab, &Trip::XDP.road))?;
    Trip::XDP.road.wait_for(&evenkeel)?;
    let trace = Trace::start(&lab)?;
    let client = lab.client().namespace.clone();
    let ask = |count| Ask::from_one_socket((FRONTENDS[0], UDP[0]).into(), count).port(20_000).run(&client);
    ensure!(ask(QUERIES)?.is_clean(), "nobody answers");
    evenkeel.kill();
    let ours = programs(&lab)?;
    ensure!(trace.heard_of(&ours)?.is_empty(), "something was lost before");
    let (early, before) = (evenkeel.by_xdp()?, handed(&lab)?);
    lab.set_far_gro(false)?;
    let lost = ask(QUERIES)?.unanswered();
    let (early, done) = (evenkeel.by_xdp()?.since(early), handed(&lab)?.since(before));
    let heard = trace.heard_of(&ours)?.iter().filter(|line| line.contains("xdp_redirect_err")).count();
    ensure!(lost > QUERIES / 2, "{lost} were lost: XDP did not send them");
    ensure!(heard == lost && done.lost == lost as u64, "{lost} were lost, {heard} heard of, {done:?}");
    ensure!(early.sent >= lost as u64, "{early:?}");
    lab.set_far_gro(true)?;
    ensure!(ask(QUERIES)?.is_clean(), "it takes packets from XDP again, but nobody answers");
    binds.into_iter().try_for_each(Bind::stop)?;
    lab.down()
}

/// A lab with real servers for UDP and TCP, and Evenkeel before them.
struct Stage {
    evenkeel: Evenkeel,
    binds: Vec<Bind>,
    servers: Vec<Nginx>,
    trace: Trace,
    ports: Ports,
    large: Vec<u8>,
    /// What the servers answer without a balancer between, by the answer's size and the family.
    direct: BTreeMap<(usize, IpAddr), Vec<u8>>,
    lab: Lab,
}

impl Stage {
    /// Sets it up on the first road that is taken, after those that are not have been refused.
    fn set(place: &Place) -> Result<Self> {
        let lab = Lab::up(Layout { backends: BACKENDS, ..place.layout() })?;
        let (binds, servers) = (Bind::start_all(&lab)?, Nginx::start_all(&lab)?);
        for road in place.roads {
            let End::Refused(why) = road.end else { continue };
            let refusal = Evenkeel::start_refused(&lab, &configuration(&lab, road), &[])
                .with_context(|| format!("{} is not offered here", road.name()))?;
            ensure!(refusal.code == Some(2) && refusal.said.contains(why), "{}: {refusal:?}", road.name());
        }
        let mut goes = place.roads.iter().filter(|road| matches!(road.end, End::Goes(..)));
        let first = goes.next().context("no road leads through it")?;
        let evenkeel = Evenkeel::start(&lab, &configuration(&lab, first))?;
        let trace = Trace::start(&lab)?;
        let mut direct = BTreeMap::new();
        for (size, family) in SIZES.into_iter().flat_map(|size| FAMILIES.map(|family| (size, family))) {
            let server = &lab.backends()[0];
            let answer = exchange(&server.namespace, (of_family(server, family), 53).into(), &sized(size))?;
            direct.insert((size, family), answer.bytes);
        }
        Ok(Self { evenkeel, binds, servers, trace, ports: Ports::default(), large: large(), direct, lab })
    }

    fn go(&mut self, road: &Road, offloads: Offloads) -> Result<()> {
        self.evenkeel.apply(&configuration(&self.lab, road))?;
        road.wait_for(&self.evenkeel)?;
        let (early, before) = (self.evenkeel.by_xdp()?, handed(&self.lab)?);
        let wrong = self.checksum_errors()?;
        self.all_are_counted(road)?;
        self.large_ones_arrive()?;
        self.transfers_arrive()?;
        let wrong = self.checksum_errors()? - wrong;
        ensure!(wrong == 0, "{wrong} packets came with a wrong checksum");
        let (early, done) = (self.evenkeel.by_xdp()?.since(early), handed(&self.lab)?.since(before));
        self.xdp_did_its_part(road, offloads, early, done)
    }

    /// Asks, with hops enough and without, until everyone has counted as much as was sent.
    fn all_are_counted(&mut self, road: &Road) -> Result<()> {
        let before = self.count()?;
        for (frontend, port) in FAMILIES.into_iter().flat_map(|frontend| UDP.map(|port| (frontend, port))) {
            let server = SocketAddr::new(frontend, port);
            let ask = match port {
                53 => Ask::from_each_port(server, self.ports.take(QUERIES)),
                _ => Ask::from_one_socket(server, QUERIES).port(self.ports.take(1).start),
            };
            let answers = ask.run(&self.lab.client().namespace)?;
            if !answers.is_clean() {
                let (unanswered, wrong, lost) = (answers.unanswered(), answers.wrong_source, losses(&self.lab)?);
                bail!("{server}: {unanswered} unanswered, {wrong} from a wrong source, lost in the lab: {lost:?}");
            }
            ensure!(answers.of_backends(BACKENDS) == [QUERIES / 2; BACKENDS], "{server}: {:?}", answers.counts());
        }
        let all = (FAMILIES.len() * UDP.len() * QUERIES) as u64;
        let counted = self.count()?.since(&before);
        let expected =
            Count { tickets: all, choices: all, sent: all, sent_back: all, arrived: all, ..Count::default() };
        ensure!(counted == expected, "of {all} queries: {counted:?}");

        let before = self.count()?;
        for frontend in FAMILIES {
            send_with_hops(&self.lab.client().namespace, (frontend, 53).into(), &query(1, WHO, 0), SPENT, 1)?;
        }
        // One that is answered shows that those before it have been seen.
        for frontend in FAMILIES {
            let server = SocketAddr::new(frontend, 53);
            let answers = Ask::from_each_port(server, self.ports.take(1)).run(&self.lab.client().namespace)?;
            ensure!(answers.is_clean(), "{server} does not answer any more");
        }
        let (answered, spent) = (FAMILIES.len() as u64, (FAMILIES.len() * SPENT) as u64);
        let counted = self.count()?.since(&before);
        // The stack gets what it will not forward, and counts it itself.
        let by_stack = if matches!(road.end, End::Goes("stack", _)) { spent } else { 0 };
        let is_counted = (counted.arrived, counted.sent, counted.sent_back)
            == (answered, answered + by_stack, answered)
            && (counted.by_stack, counted.hop_limit) == (by_stack, spent - by_stack);
        ensure!(is_counted, "of {answered} queries and {spent} without a hop left: {counted:?}");
        Ok(())
    }

    /// Answers of all sizes, and a query in pieces, by either schedule.
    fn large_ones_arrive(&self) -> Result<()> {
        let client = &self.lab.client().namespace;
        for (frontend, port) in FAMILIES.into_iter().flat_map(|frontend| UDP.map(|port| (frontend, port))) {
            let server = SocketAddr::new(frontend, port);
            for size in SIZES {
                let answer = exchange(client, server, &sized(size))?;
                ensure!(answer.source == server, "{server} was asked, {} answered", answer.source);
                ensure!(answer.bytes.len() == size, "{server}: {} bytes of {size}", answer.bytes.len());
                ensure!(answer.bytes == self.direct[&(size, frontend)], "{server}: {size} other bytes");
            }
            let answer = exchange(client, server, &query(3, "s4096.example.test", 3000))?;
            ensure!((answer.source, answer.bytes.len()) == (server, 4096), "{server}: a query in pieces");
        }
        Ok(())
    }

    /// 20 MB down and up over both families, all at once; each connection is one choice.
    fn transfers_arrive(&self) -> Result<()> {
        let before = self.choices("web")?;
        thread::scope(|scope| {
            let start = |frontend: IpAddr| {
                [scope.spawn(move || self.download(frontend)), scope.spawn(move || self.upload(frontend))]
            };
            let running = FAMILIES.map(start);
            running.into_iter().flatten().try_for_each(|transfer| transfer.join().expect("no client panics"))
        })?;
        let after = self.choices("web")?;
        let made: BTreeMap<_, _> = after.iter().map(|(backend, now)| (backend, now - before[backend])).collect();
        ensure!(made.len() == 2 * BACKENDS && made.values().all(|made| *made == 1), "the transfers went to {made:?}");
        Ok(())
    }

    fn download(&self, frontend: IpAddr) -> Result<()> {
        let body = curl::get(&self.lab.client().namespace, &curl::url((frontend, 80).into(), "/large"))?;
        ensure!(body == self.large, "{frontend}: other bytes came down");
        Ok(())
    }

    fn upload(&self, frontend: IpAddr) -> Result<()> {
        let (file, name) = (self.lab.directory("nginx")?.join("large"), u8::from(frontend.is_ipv6()).to_string());
        curl::put(&self.lab.client().namespace, &file, &curl::url((frontend, 80).into(), &format!("/up/{name}")))?;
        let uploads = self.servers.iter().map(|nginx| nginx.take_upload(&name)).collect::<Result<Vec<_>>>()?;
        let uploads: Vec<_> = uploads.into_iter().flatten().collect();
        ensure!(uploads.len() == 1, "{frontend}: {} servers have the upload", uploads.len());
        ensure!(uploads[0] == self.large, "{frontend}: other bytes went up");
        Ok(())
    }

    /// XDP has sent what it can, left the rest, and nothing was lost behind its back.
    fn xdp_did_its_part(&self, road: &Road, offloads: Offloads, by_xdp: ByXdp, done: Handed) -> Result<()> {
        road.xdp_did_its_part(offloads == Offloads::Off, by_xdp)?;
        let heard = self.trace.heard_of(&programs(&self.lab)?)?;
        ensure!(heard.is_empty(), "the kernel did not send for XDP: {}", heard.join("\n"));
        ensure!(done.lost == 0, "packets were lost about XDP: {done:?}");
        // XDP in the stack sends as the stack does, whose losses the answers and transfers would have shown.
        if road.hook != "xdp-generic" {
            ensure!(done.sent + done.refused == by_xdp.sent, "XDP sent {}, devices took: {done:?}", by_xdp.sent);
        }
        Ok(())
    }

    fn count(&self) -> Result<Count> {
        let mut count = Count::default();
        for service in services(&self.evenkeel)?.iter().filter(|service| service["name"] != "web") {
            let number = |value: &Value| value.as_u64().with_context(|| format!("no number in {service}"));
            count.tickets += number(&service["tickets"])?;
            for backend in service["backends"].as_array().context("a listing of backends")? {
                count.choices += number(&backend["choices"])?;
                count.sent += number(&backend["packets_in"])?;
                count.sent_back += number(&backend["packets_out"])?;
            }
        }
        for reason in self.evenkeel.status()?["not_balanced"].as_array().context("a status")? {
            let packets = reason["packets"].as_u64().context("a number of packets")?;
            match reason["reason"].as_str() {
                Some("hop_limit") => count.hop_limit += packets,
                // What is no part of a flow is the stack's: the last segments of a connection that both ends have forgotten.
                Some("no_flow") => {}
                Some(_) | None => count.otherwise += packets,
            }
        }
        count.by_stack = self.lab.balancer().header_errors()?;
        count.arrived = self.binds.iter().map(|bind| Ok(bind.arrivals()?.total())).sum::<Result<u64>>()?;
        Ok(count)
    }

    /// How often each backend of a service has been chosen, by family.
    fn choices(&self, name: &str) -> Result<BTreeMap<String, u64>> {
        let mut choices = BTreeMap::new();
        for service in services(&self.evenkeel)?.iter().filter(|service| service["name"] == name) {
            for backend in service["backends"].as_array().context("a listing of backends")? {
                let chosen = backend["choices"].as_u64().context("a number of choices")?;
                choices.insert(backend["address"].to_string(), chosen);
            }
        }
        Ok(choices)
    }

    fn checksum_errors(&self) -> Result<u64> {
        let hosts = self.lab.backends().iter().chain([self.lab.client()]).map(|host| &host.namespace);
        hosts.map(Namespace::checksum_errors).sum()
    }

    fn leave(mut self) -> Result<()> {
        self.evenkeel.stop()?;
        self.evenkeel.detach()?;
        self.binds.into_iter().try_for_each(Bind::stop)?;
        self.servers.into_iter().try_for_each(Nginx::stop)?;
        self.lab.down()
    }
}

/// What everyone has counted of the UDP services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Count {
    tickets: u64,
    choices: u64,
    /// Packets to backends and back, as Evenkeel counts them.
    sent: u64,
    sent_back: u64,
    /// Queries, as the servers count them.
    arrived: u64,
    /// Packets that Evenkeel dropped because they had no hop left, and those that the stack did.
    hop_limit: u64,
    by_stack: u64,
    /// Packets that were not balanced for any other reason.
    otherwise: u64,
}

impl Count {
    fn since(&self, before: &Self) -> Self {
        Self {
            tickets: self.tickets - before.tickets,
            choices: self.choices - before.choices,
            sent: self.sent - before.sent,
            sent_back: self.sent_back - before.sent_back,
            arrived: self.arrived - before.arrived,
            hop_limit: self.hop_limit - before.hop_limit,
            by_stack: self.by_stack - before.by_stack,
            otherwise: self.otherwise - before.otherwise,
        }
    }
}

fn services(evenkeel: &Evenkeel) -> Result<Vec<Value>> {
    let listing = evenkeel.ls(&["--stats"])?;
    listing["services"].as_array().cloned().with_context(|| format!("no listing of services: {listing}"))
}

fn of_family(host: &Host, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { host.v4 } else { host.v6 }
}

/// A query whose answer has so many bytes.
fn sized(size: usize) -> Vec<u8> {
    query(2, &format!("s{size}.example.test"), 0)
}

fn configuration(lab: &Lab, road: &Road) -> String {
    let service = |name: &str, port: u16, protocol: &str, more: &str| {
        let addresses = lab.backends().iter().flat_map(|host| [host.v4, host.v6]);
        let backends = addresses.map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "[[service]]\nname = \"{name}\"\nselector = \"rr\"\n{more}backends = [{backends}]\n\
             listen = [{{ interface = \"eth3\", port = {port}, protocols = [\"{protocol}\"] }}]\n"
        )
    };
    road.settings()
        + &service("flows", UDP[0], "udp", "")
        + &service("packets", UDP[1], "udp", "schedule = \"per-packet\"\n")
        + &service("web", 80, "tcp", "")
}
