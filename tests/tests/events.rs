//! Interfaces come, go, are renamed, change and are switched off under 2000 queries a second, and XDP is attached and
//! detached: what was on that interface meanwhile is lost and nothing else, and `status` tells each re-choice.

use std::{
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::{
    bind::Bind,
    crowd::{self, FLOWS, PACKETS},
    evenkeel::Evenkeel,
    harness::{on_root, run},
    lab::{CLIENT_SIDE, Host, Lab, Layout, Offloads, Reach, SECOND_SIDE},
    namespace::Namespace,
    steady::{Query, Record, Steady},
    theirs::{self, Theirs},
};

fn main() -> ExitCode {
    run(vec![
        on_root("by tc, ports of a bridge are renamed, changed and moved, and only what was on them is lost", || {
            ports_of_a_bridge("tc")
        }),
        on_root("by xdp, ports of a bridge are renamed, changed and moved, and only what was on them is lost", || {
            ports_of_a_bridge("xdp")
        }),
        on_root("by tc, a nic is changed, switched off and made anew, and only what came meanwhile is lost", || {
            a_nic("tc")
        }),
        on_root("by xdp, a nic is changed, switched off and made anew, and only what came meanwhile is lost", || {
            a_nic("xdp")
        }),
        on_root("by tc, interfaces of clients come and go, and the rest runs", || sides_of_clients("tc")),
        on_root("by xdp, interfaces of clients come and go, and the rest runs", || sides_of_clients("xdp")),
        on_root("xdp comes and goes a hundred times under load", xdp_comes_and_goes),
        on_root("someone else's xdp program is left alone, and xdp that is forced is refused for it", theirs_stays),
        on_root("xdp that is forced and that only the kernel refuses leaves nothing behind", refused_by_the_kernel),
    ])
}

const BACKENDS: usize = 3;
/// The backend whose port things happen to, counted from 0.
const TOUCHED: usize = 0;
/// How long clients ask before and after each event.
const AROUND: Duration = Duration::from_millis(250);

fn ports_of_a_bridge(hook: &str) -> Result<()> {
    let mut stage = Stage::set(Reach::Bridge, hook)?;
    let port = stage.lab.port(TOUCHED).to_owned();
    let to = |device: &str| {
        let device = device.to_owned();
        move |status: &Value| ways(status, TOUCHED, |way| way["interface"] == *device && way["way"] == "redirect-peer")
    };

    let watched = stage.meanwhile(|stage| {
        stage.balancer().sh(&format!("ip link set {port} name other0"))?;
        stage.wait_for("the way by the renamed port", to("other0"))?;
        stage.wait_for("the hook at it", |status| hook_at(status, "other0").is_some())?;
        stage.balancer().sh(&format!("ip link set other0 name {port}"))?;
        stage.wait_for("the way by the old name", to(&port))
    })?;
    watched.nothing_is_lost().context("renamed")?;

    for device in [port.as_str(), "br0", CLIENT_SIDE] {
        let watched = stage.meanwhile(|stage| stage.change_mtu(device))?;
        watched.nothing_is_lost().with_context(|| format!("another mtu of {device}"))?;
    }

    let watched = stage.meanwhile(|stage| {
        stage.balancer().sh(&format!("ip link set {port} nomaster"))?;
        stage.wait_for("another way than by the port", |status| {
            ways(status, TOUCHED, |way| way["way"] != "redirect-peer" && way["why"] != "")
        })?;
        thread::sleep(AROUND);
        stage.balancer().sh(&format!("ip link set {port} master br0"))?;
        stage.wait_for("the way by the port", to(&port))
    })?;
    watched.only_the_touched_backends_are_lost().context("out of the bridge and back")?;

    let watched = stage.meanwhile(|stage| {
        stage.balancer().sh(&format!("ip link set {port} down"))?;
        thread::sleep(AROUND);
        stage.balancer().sh(&format!("ip link set {port} up"))?;
        stage.wait_for("the way by the port", to(&port))?;
        stage.wait_for_gateways(TOUCHED)
    })?;
    watched.only_the_touched_backends_are_lost().context("down and up")?;
    watched.something_is_lost().context("down and up")?;
    stage.leave()
}

fn a_nic(hook: &str) -> Result<()> {
    let mut stage = Stage::set(Reach::Routed, hook)?;
    let way = if hook == "xdp" { "xdp-redirect" } else { "redirect-neigh" };
    let by_nic = move |status: &Value| {
        (0..BACKENDS).all(|backend| ways(status, backend, |one| one["way"] == way && one["interface"] == "eth1"))
    };
    stage.wait_for("the ways by the nic", by_nic)?;

    for device in ["eth1", CLIENT_SIDE] {
        let watched = stage.meanwhile(|stage| stage.change_mtu(device))?;
        watched.nothing_is_lost().with_context(|| format!("another mtu of {device}"))?;
    }

    let watched = stage.meanwhile(|stage| {
        stage.balancer().sh("ip link set eth1 down")?;
        stage.wait_for("no way by the nic", |status| !by_nic(status))?;
        stage.balancer().sh("ip link set eth1 up")?;
        stage.lab.address_backend_side("eth1")?;
        stage.wait_for("the ways by the nic", by_nic)
    })?;
    watched.only_meanwhile().context("down and up")?;
    watched.something_is_lost().context("down and up")?;

    let number = |status: &Value| hook_at(status, "eth1").map(|hook| hook["ifindex"].clone());
    let before = number(&stage.evenkeel.status()?);
    let watched = stage.meanwhile(|stage| {
        stage.lab.renew_nic()?;
        stage.wait_for("a hook at the new nic", |status| number(status).is_some_and(|now| Some(now) != before))?;
        stage.wait_for("the ways by the new nic", by_nic)
    })?;
    watched.only_meanwhile().context("made anew")?;
    watched.something_is_lost().context("made anew")?;
    let sent = sent_by_xdp(&stage.evenkeel.status()?);
    ensure!((sent > 200) == (hook == "xdp"), "xdp sent {sent} packets");
    stage.leave()
}

fn sides_of_clients(hook: &str) -> Result<()> {
    let mut stage = Stage::set(Reach::Routed, hook)?;
    let second = stage.lab.add_second_side()?;
    let sides = format!("interfaces = [\"{CLIENT_SIDE}\", \"{SECOND_SIDE}\"]\n");
    stage.evenkeel.apply(&format!("{sides}{}", stage.configuration))?;
    stage.watch(&second)?.nothing_is_lost().context("by the second side")?;
    let is_gone = |interface: &'static str| {
        move |status: &Value| {
            let told = format!("there is no interface {interface}, by which clients are said to come in");
            hook_at(status, interface).is_none() && status["warnings"].to_string().contains(&told)
        }
    };

    let watched = stage.meanwhile(|stage| {
        stage.balancer().sh(&format!("ip link del {SECOND_SIDE}"))?;
        stage.wait_for("that the second side is gone", is_gone(SECOND_SIDE))?;
        stage.lab.connect_second_side(&second)?;
        stage.wait_for("a hook at the second side", |status| hook_at(status, SECOND_SIDE).is_some())
    })?;
    watched.nothing_is_lost().context("by the first side, while the second goes and comes")?;
    stage.watch(&second)?.nothing_is_lost().context("by the second side, come again")?;

    let watched = stage.meanwhile_asking(&second, |stage| {
        stage.balancer().sh(&format!("ip link del {CLIENT_SIDE}"))?;
        stage.wait_for("that the first side is gone", is_gone(CLIENT_SIDE))
    })?;
    watched.nothing_is_lost().context("by the second side, while the first goes")?;
    stage.leave()
}

/// The devices that XDP comes to and goes from.
const SWITCHED: [&str; 2] = [CLIENT_SIDE, "eth1"];

/// Whether far ends receive as a NIC does, who finishes checksums, and how often XDP comes and goes there.
const STATES: [(bool, Offloads, usize); 6] = [
    (true, Offloads::FinishedByHosts, 100),
    (true, Offloads::Untouched, 20),
    (true, Offloads::Off, 20),
    (false, Offloads::FinishedByHosts, 20),
    (false, Offloads::Untouched, 20),
    (false, Offloads::Off, 20),
];

fn xdp_comes_and_goes() -> Result<()> {
    for (far_gro, offloads, times) in STATES {
        xdp_comes_and_goes_in(far_gro, offloads, times)
            .with_context(|| format!("far gro {far_gro}, offloads {offloads:?}"))?;
    }
    Ok(())
}

fn xdp_comes_and_goes_in(far_gro: bool, offloads: Offloads, times: usize) -> Result<()> {
    let layout = Layout { reach: Reach::Routed, backends: BACKENDS, far_gro, offloads, ..Layout::default() };
    let mut stage = Stage::set_on(layout, "tc")?;
    let before = stage.features()?;
    stage.watch(&stage.client())?.nothing_is_lost().context("before")?;
    let switched = stage.meanwhile(|stage| {
        for _ in 0..times {
            for hook in ["xdp", "tc"] {
                stage.evenkeel.apply(&configuration(&stage.lab, hook))?;
            }
        }
        Ok(())
    })?;
    eprintln!("far gro {far_gro}, offloads {offloads:?}, {times} times: {}", switched.summary());
    let theirs = Theirs::write(&stage.lab)?;
    let compared = stage.meanwhile(|stage| {
        for _ in 0..times {
            SWITCHED.into_iter().try_for_each(|device| theirs.attach(&stage.lab, device))?;
            SWITCHED.into_iter().try_for_each(|device| theirs.detach(&stage.lab, device))?;
        }
        Ok(())
    })?;
    eprintln!("the same with an empty program: {}", compared.summary());
    switched.no_more_is_lost_than_by_the_driver(times * SWITCHED.len() * 2)?;
    let after = stage.features()?;
    ensure!(after == before, "{before} became {after}");
    stage.watch(&stage.client())?.nothing_is_lost().context("afterwards")?;

    // XDP was at work, where the state lets it send anything.
    stage.evenkeel.apply(&configuration(&stage.lab, "xdp"))?;
    stage.watch(&stage.client())?.nothing_is_lost().context("by xdp in the end")?;
    let sends = far_gro && offloads == Offloads::FinishedByHosts;
    ensure!(!sends || sent_by_xdp(&stage.evenkeel.status()?) > 200, "{}", stage.evenkeel.status()?["xdp"]);
    stage.leave()
}

fn theirs_stays() -> Result<()> {
    let lab = Lab::up(Layout { reach: Reach::Routed, backends: 1, far_gro: true, ..Layout::default() })?;
    let bind = Bind::start(&lab, "b1", &lab.backends()[0])?;
    let theirs = Theirs::write(&lab)?;
    theirs.attach(&lab, CLIENT_SIDE)?;
    let configuration = crowd::configuration(&lab, &[(0, 1)]);
    for options in [["--hook", "xdp"], ["--hook", "xdp-generic"], ["--way", "xdp-redirect"]] {
        let refusal = Evenkeel::start_refused(&lab, &configuration, &options)?;
        ensure!(refusal.code == Some(2), "{refusal:?}");
        let [kind, value] = options.map(|word| word.trim_start_matches("--"));
        let expected = format!(
            "{kind} {value} cannot be at {CLIENT_SIDE}: an XDP program of someone else is there; use `hook = \"auto\"` and \
             `way = \"auto\"`"
        );
        ensure!(refusal.said.contains(&expected), "{}\nnot: {expected}", refusal.said);
        nothing_is_attached(&lab)?;
    }
    let mut evenkeel = Evenkeel::start(&lab, &configuration)?;
    let hook = hook_at(&evenkeel.status()?, CLIENT_SIDE).context("a hook")?;
    ensure!(hook["xdp"].is_null() && hook["mode"] != "none", "{hook}");
    ensure!(hook["why"].to_string().contains(&format!("xdp program {} on {CLIENT_SIDE} sees", theirs::NAME)), "{hook}");
    evenkeel.stop()?;
    evenkeel.detach()?;
    let shown = lab.balancer().sh(&format!("ip -d link show {CLIENT_SIDE}"))?;
    ensure!(shown.contains(theirs::NAME), "it is where it was: {shown}");
    bind.stop()?;
    lab.down()
}

/// A device takes no program while the bridge that it is a port of has one, which nothing tells beforehand.
fn refused_by_the_kernel() -> Result<()> {
    let lab = Lab::up(Layout { reach: Reach::Routed, backends: 1, far_gro: true, ..Layout::default() })?;
    lab.balancer().sh("ip link add above type bridge")?;
    lab.balancer().sh(&format!("ip link set {CLIENT_SIDE} master above"))?;
    Theirs::write(&lab)?.attach(&lab, "above")?;
    let sides = format!("interfaces = [\"{CLIENT_SIDE}\"]\n");
    let configuration = format!("{sides}{}", crowd::configuration(&lab, &[(0, 1)]));
    let refusal = Evenkeel::start_refused(&lab, &configuration, &["--hook", "xdp"])?;
    ensure!(refusal.code == Some(2), "{refusal:?}");
    let expected =
        [&format!("hook xdp cannot be at {CLIENT_SIDE}: interface {CLIENT_SIDE} ("), "xdp by xdp: File exists"];
    ensure!(expected.into_iter().all(|part| refusal.said.contains(part)), "{}\nnot: {expected:?}", refusal.said);
    nothing_is_attached(&lab)?;
    lab.down()
}

/// Neither a hook nor a pin.
fn nothing_is_attached(lab: &Lab) -> Result<()> {
    for device in SWITCHED {
        let filters = lab.balancer().sh(&format!("tc filter show dev {device} ingress"))?;
        ensure!(filters.trim().is_empty(), "{device}: {filters}");
    }
    let pins = lab.pins()?.join("evenkeel");
    ensure!(!pins.exists(), "{} is left", pins.display());
    Ok(())
}

/// A lab with BIND on each backend and Evenkeel before them.
struct Stage {
    evenkeel: Evenkeel,
    configuration: String,
    binds: Vec<Bind>,
    lab: Lab,
}

impl Stage {
    /// In the way that XDP sends what it can: far ends receive as a NIC does, and hosts finish their checksums.
    fn set(reach: Reach, hook: &str) -> Result<Self> {
        let (far_gro, offloads) = match hook {
            "xdp" => (true, Offloads::FinishedByHosts),
            _ => (false, Offloads::Untouched),
        };
        Self::set_on(Layout { reach, backends: BACKENDS, far_gro, offloads, ..Layout::default() }, hook)
    }

    fn set_on(layout: Layout, hook: &str) -> Result<Self> {
        let lab = Lab::up(layout)?;
        let binds = Bind::start_all(&lab)?;
        let configuration = configuration(&lab, hook);
        let evenkeel = Evenkeel::start(&lab, &configuration)?;
        Ok(Self { evenkeel, configuration, binds, lab })
    }

    fn balancer(&self) -> &Namespace {
        self.lab.balancer()
    }

    fn client(&self) -> Host {
        self.lab.client().clone()
    }

    /// Clients ask for a while, and nothing happens.
    fn watch(&mut self, client: &Host) -> Result<Watched> {
        self.meanwhile_asking(client, |_| Ok(()))
    }

    /// Something happens while the first client asks.
    fn meanwhile(&mut self, event: impl FnOnce(&mut Self) -> Result<()>) -> Result<Watched> {
        self.meanwhile_asking(&self.client(), event)
    }

    /// A thousand queries a second to the service per flow over IPv4 and as many to the one per packet over IPv6.
    fn meanwhile_asking(&mut self, client: &Host, event: impl FnOnce(&mut Self) -> Result<()>) -> Result<Watched> {
        let ask = |server, sockets| Steady { server, sockets, rate: 1000 }.start(&client.namespace);
        let (flows, packets) = (ask(FLOWS[0], 30)?, ask(PACKETS[1], 30)?);
        thread::sleep(AROUND);
        let begin = Instant::now();
        event(self)?;
        let end = Instant::now();
        thread::sleep(AROUND);
        Ok(Watched { flows: flows.finish()?, packets: packets.finish()?, begin, end })
    }

    /// Smaller for a while, and as before then.
    fn change_mtu(&mut self, device: &str) -> Result<()> {
        let before = self.evenkeel.status()?["ways"].clone();
        for mtu in [1400, self.lab.layout().mtu] {
            self.balancer().sh(&format!("ip link set {device} mtu {mtu}"))?;
            thread::sleep(AROUND);
            let now = self.evenkeel.status()?["ways"].clone();
            ensure!(now == before, "mtu {mtu} of {device}: {before} became {now}");
        }
        Ok(())
    }

    /// Waits until `status` shows something.
    fn wait_for(&self, what: &str, shows: impl Fn(&Value) -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let status = self.evenkeel.status()?;
            if shows(&status) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{what}: not shown by {status:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a backend knows the balancer's link-layer address again, over both families. It forgets it when its
    /// link goes, and asks once a second: the first time before the port forwards.
    fn wait_for_gateways(&self, backend: usize) -> Result<()> {
        let namespace = &self.lab.backends()[backend].namespace;
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let neighbours = namespace.sh("ip neigh show nud reachable")?;
            if ["10.100.13.1 ", "fd00:100:13::1 "].iter().all(|gateway| neighbours.contains(gateway)) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "no gateway, only {neighbours:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `ethtool` and `ip` say of both ends of the balancer's devices.
    fn features(&self) -> Result<String> {
        let mut said = String::new();
        for (namespace, device) in self.lab.both_ends() {
            said += &namespace.sh(&format!("ethtool -k {device}"))?;
            let link = namespace.sh(&format!("ip -d -o link show {device}"))?;
            let words: Vec<&str> = link.split_whitespace().collect();
            let after = |word: &str| words.iter().skip_while(|one| **one != word).nth(1).copied().unwrap_or_default();
            said += &format!("mtu {} maxmtu {}\n", after("mtu"), after("maxmtu"));
        }
        Ok(said)
    }

    fn leave(mut self) -> Result<()> {
        self.evenkeel.stop()?;
        self.binds.into_iter().try_for_each(Bind::stop)?;
        self.lab.down()
    }
}

/// What clients got while something happened.
struct Watched {
    flows: Record,
    packets: Record,
    begin: Instant,
    end: Instant,
}

impl Watched {
    fn nothing_is_lost(&self) -> Result<()> {
        self.nothing_is_odd()?;
        let lost: Vec<&Query> = self.unanswered().collect();
        ensure!(lost.is_empty(), "{}", self.summary());
        Ok(())
    }

    /// A veth that loses its NAPI may free what waits in its ring: with an empty program, 0 or 1 query was lost in 400
    /// switches.
    fn no_more_is_lost_than_by_the_driver(&self, switches: usize) -> Result<()> {
        self.nothing_is_odd()?;
        let lost = self.unanswered().count();
        ensure!(lost <= switches.div_ceil(100), "{lost} queries in {switches} switches: {}", self.summary());
        Ok(())
    }

    fn something_is_lost(&self) -> Result<()> {
        ensure!(self.unanswered().next().is_some(), "the event did not reach the traffic");
        Ok(())
    }

    /// What was asked before the event and after it is answered.
    fn only_meanwhile(&self) -> Result<()> {
        self.nothing_is_odd()?;
        // An answer may be on its way back when it begins.
        let begin = self.begin - Duration::from_millis(20);
        let outside = self.unanswered().filter(|query| query.sent < begin || query.sent > self.end).count();
        ensure!(outside == 0, "{outside} queries of before or after are lost: {}", self.summary());
        Ok(())
    }

    /// The same, and whoever is served by the other backends notices nothing.
    fn only_the_touched_backends_are_lost(&self) -> Result<()> {
        self.only_meanwhile()?;
        let touched = format!("b{}", TOUCHED + 1);
        let servers = self.flows.server_of_sockets();
        for query in self.flows.unanswered() {
            let who = servers.get(&query.socket).context("a socket that several backends answered, or none")?;
            ensure!(*who == touched, "a flow of {who} lost a query: {}", self.summary());
        }
        // Round robin: each of the others has its whole share, up to one of the first and one of the last round.
        let (all, counts) = (self.packets.queries.len(), self.packets.counts());
        for other in (1..=BACKENDS).map(|number| format!("b{number}")).filter(|other| *other != touched) {
            let count = counts.get(other.as_str()).copied().unwrap_or_default();
            ensure!(count.abs_diff(all / BACKENDS) <= 2, "{other} answered {count} of {all}: {}", self.summary());
        }
        Ok(())
    }

    /// Every answer is one, comes once, and from the frontend that was asked; and the clients really asked.
    fn nothing_is_odd(&self) -> Result<()> {
        for record in [&self.flows, &self.packets] {
            let asked = record.queries.len();
            ensure!(record.wrong_source == 0 && record.odd == 0 && asked > 200, "{}", self.summary());
        }
        Ok(())
    }

    fn unanswered(&self) -> impl Iterator<Item = &Query> {
        self.flows.unanswered().chain(self.packets.unanswered())
    }

    fn summary(&self) -> String {
        let of = |record: &Record| {
            let lost: Vec<i128> = record.unanswered().map(|query| self.moment(query)).collect();
            let (first, last) = (lost.first(), lost.last());
            format!(
                "{} asked, {} lost (from {first:?} to {last:?} ms), {} of strangers, {} odd, {:?}",
                record.queries.len(),
                lost.len(),
                record.wrong_source,
                record.odd,
                record.counts()
            )
        };
        let length = (self.end - self.begin).as_millis();
        format!("an event of {length} ms; per flow: {}; per packet: {}", of(&self.flows), of(&self.packets))
    }

    /// In milliseconds from the begin of the event.
    fn moment(&self, query: &Query) -> i128 {
        let (before, after) =
            (self.begin.saturating_duration_since(query.sent), query.sent - self.begin.min(query.sent));
        after.as_millis() as i128 - before.as_millis() as i128
    }
}

fn configuration(lab: &Lab, hook: &str) -> String {
    let weights: Vec<(usize, u32)> = (0..lab.backends().len()).map(|backend| (backend, 1)).collect();
    format!("hook = \"{hook}\"\n{}", crowd::configuration(lab, &weights))
}

/// Whether the ways to a backend over both families are so.
fn ways(status: &Value, backend: usize, is_so: impl Fn(&Value) -> bool) -> bool {
    let suffixes = [format!(".13.{}", backend + 2), format!(":13::{}", backend + 2)];
    let ways = status["ways"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_backend = |way: &&Value| {
        let address = way["address"].as_str().unwrap_or_default();
        suffixes.iter().any(|suffix| address.ends_with(suffix.as_str()))
    };
    ways.iter().filter(of_backend).filter(|way| is_so(way)).count() == 2
}

/// Packets that XDP sent, of those interfaces at which it looks first.
fn sent_by_xdp(status: &Value) -> u64 {
    let all = status["xdp"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().filter_map(|one| one["sent"].as_u64()).sum()
}

fn hook_at(status: &Value, interface: &str) -> Option<Value> {
    status["hooks"].as_array()?.iter().find(|hook| hook["interface"] == interface).cloned()
}
