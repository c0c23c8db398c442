//! UDP through Evenkeel: answers and queries larger than a frame, datagrams without a checksum, and hop limits; by each
//! way, over both families, per flow and per packet. What arrives is compared with what the server says directly.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use testbed::{
    bind::{Bind, SIZES, WHO},
    datagram::{Datagram, exchange, query},
    engine::Engine,
    evenkeel::{ByXdp, Evenkeel},
    harness::{on_root, run},
    lab::{FRONTENDS, Host, Lab, Layout, Offloads, Reach},
    packet::eth,
    tap::{Seen, Tap, send_raw},
};

fn main() -> ExitCode {
    run(vec![
        on_root("large answers and queries arrive whole, one hop further, by each way", large_ones_arrive),
        on_root("large answers and queries arrive among an engine's rules", large_ones_arrive_among_an_engines_rules),
        on_root("a datagram without a checksum stays without one by each way", none_stays_none),
        on_root("a server on the balancer itself answers, and its direct clients too", a_local_server_answers),
    ])
}

/// Every way and who looks for it, each where it is found or asked for; where XDP is to send, hosts finish checksums.
const WAYS: [(Reach, Offloads, HooksAndWays); 5] = [
    (Reach::Bridge, Offloads::Untouched, &[("auto", "redirect-peer"), ("auto", "redirect-neigh"), ("auto", "stack")]),
    (Reach::Veths, Offloads::Untouched, &[("auto", "redirect-peer"), ("auto", "stack")]),
    (Reach::Routed, Offloads::Untouched, &[("auto", "redirect-neigh"), ("auto", "stack"), ("xdp", "xdp-redirect")]),
    (Reach::Routed, Offloads::FinishedByHosts, &[("xdp", "xdp-redirect"), ("xdp-generic", "xdp-redirect")]),
    (Reach::Veths, Offloads::FinishedByHosts, &[("xdp", "xdp-redirect"), ("xdp", "redirect-peer")]),
];

/// Settings `hook`, and `way` as it is asked for.
type HooksAndWays = &'static [(&'static str, &'static str)];

fn large_ones_arrive() -> Result<()> {
    for (reach, offloads, ways) in WAYS {
        let mut stage = Stage::set(reach, offloads)?;
        for (hook, way) in ways {
            stage.go_by(hook, way)?;
            stage.ask_all().with_context(|| format!("{reach:?}, {offloads:?}, {hook}, {way}"))?;
            stage.has_gone_by(hook, way)?;
        }
        stage.leave()?;
    }
    Ok(())
}

fn large_ones_arrive_among_an_engines_rules() -> Result<()> {
    for (reach, offloads, ways) in WAYS {
        let mut stage = Stage::set(reach, offloads)?;
        let engine = Engine::start(&stage.lab)?;
        for (hook, way) in ways.iter().filter(|(_, way)| *way != "stack") {
            stage.go_by(hook, way)?;
            stage.ask_all().with_context(|| format!("{reach:?}, {offloads:?}, {hook}, {way}"))?;
        }
        engine.stop()?;
        stage.leave()?;
    }
    Ok(())
}

fn none_stays_none() -> Result<()> {
    for (reach, offloads, ways) in WAYS {
        let mut stage = Stage::set(reach, offloads)?;
        for ((hook, way), schedule) in ways.iter().flat_map(|way| SCHEDULES.map(|schedule| (way, schedule))) {
            stage.go_by(hook, way)?;
            stage
                .send_without_checksum(schedule)
                .with_context(|| format!("{reach:?}, {offloads:?}, {hook}, {way}, {schedule:?}"))?;
        }
        stage.leave()?;
    }
    Ok(())
}

fn a_local_server_answers() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let host = |v4: &str, v6: &str| -> Result<Host> {
        Ok(Host { namespace: lab.balancer().clone(), v4: v4.parse()?, v6: v6.parse()? })
    };
    // Of the side of the backends, and of that of the clients.
    let (inside, outside) = (host("10.100.13.1", "fd00:100:13::1")?, host("10.9.0.3", "fd00:9::3")?);
    let [first] = lab.backends() else { unreachable!("the lab has one backend") };
    let binds = [Bind::start(&lab, "own", &inside)?, Bind::start(&lab, "b1", first)?];
    // Frontends on ports on which it does not listen itself.
    let configuration =
        service(Schedule::PerFlow, 5300, &[&inside, first]) + &service(Schedule::PerPacket, 5301, &[&outside]);
    let evenkeel = Evenkeel::start(&lab, &configuration)?;
    let client = &lab.client().namespace;
    for (frontend, port, own) in [
        (FRONTENDS[0], 5300, inside.v4),
        (FRONTENDS[1], 5300, inside.v6),
        (FRONTENDS[0], 5301, outside.v4),
        (FRONTENDS[1], 5301, outside.v6),
    ] {
        let who = query(1, WHO, 0);
        let named = |answer: &Datagram| {
            let bytes = &answer.bytes;
            ["own", "b1"].into_iter().find(|name| bytes.windows(name.len()).any(|part| part == name.as_bytes()))
        };
        let mut answered = Vec::new();
        for _ in 0..4 {
            let answer = exchange(client, (frontend, port).into(), &who)?;
            ensure!(answer.source == (frontend, port).into(), "{frontend}: answered by {}", answer.source);
            answered.push(named(&answer).context("an answer without a name")?);
        }
        answered.sort_unstable();
        let expected = if port == 5300 { ["b1", "b1", "own", "own"] } else { ["own"; 4] };
        ensure!(answered == expected, "{frontend}, {port}: {answered:?}");
        for size in SIZES {
            let large = query(2, &format!("s{size}.example.test"), 0);
            let answer = exchange(client, (frontend, port).into(), &large)?;
            ensure!(answer.source == (frontend, port).into() && answer.bytes.len() == size, "{:?}", answer.source);
            let direct = exchange(client, (own, 53).into(), &large)?;
            ensure!(direct.source == (own, 53).into(), "asked {own}, answered by {}", direct.source);
            ensure!(direct.bytes == answer.bytes, "{size} other bytes");
        }
    }
    let ways = evenkeel.status()?["ways"].clone();
    let is_local = |way: &&serde_json::Value| way["why"] == "it is an address of this host";
    let local = ways.as_array().context("a status")?.iter().filter(is_local).count();
    ensure!(local == 4, "{ways}");
    binds.into_iter().try_for_each(Bind::stop)?;
    lab.down()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PerFlow,
    PerPacket,
}

const SCHEDULES: [Schedule; 2] = [Schedule::PerFlow, Schedule::PerPacket];

impl Schedule {
    fn name(self) -> &'static str {
        match self {
            Self::PerFlow => "per-flow",
            Self::PerPacket => "per-packet",
        }
    }

    /// Of its frontends in a [`Stage`].
    fn port(self) -> u16 {
        match self {
            Self::PerFlow => 53,
            Self::PerPacket => 5300,
        }
    }

    /// Its backends in a [`Stage`]: an endpoint serves one schedule only.
    fn of<T>(self, backends: &[T]) -> [&T; 2] {
        match self {
            Self::PerFlow => [&backends[0], &backends[1]],
            Self::PerPacket => [&backends[2], &backends[3]],
        }
    }
}

/// Four BINDs behind Evenkeel, two for each schedule.
struct Stage {
    binds: Vec<Bind>,
    evenkeel: Evenkeel,
    /// What XDP had done when the way was chosen.
    before: ByXdp,
    next_id: u16,
    at_client: Tap,
    at_backends: Vec<Tap>,
    lab: Lab,
}

impl Stage {
    fn set(reach: Reach, offloads: Offloads) -> Result<Self> {
        let lab = Lab::up(Layout { reach, offloads, far_gro: true, ..Layout::default() })?;
        let binds = Bind::start_all(&lab)?;
        let evenkeel = Evenkeel::start(&lab, &configuration(&lab, "auto", "auto"))?;
        let at_client = Tap::listen(&lab.client().namespace)?;
        let listen = |host: &Host| Tap::listen(&host.namespace);
        let at_backends = lab.backends().iter().map(listen).collect::<Result<Vec<_>>>()?;
        Ok(Self { binds, evenkeel, before: ByXdp::default(), next_id: 0, at_client, at_backends, lab })
    }

    fn go_by(&mut self, hook: &str, way: &str) -> Result<()> {
        self.evenkeel.apply(&configuration(&self.lab, hook, way))?;
        self.evenkeel.wait_for_way(way)?;
        self.before = self.evenkeel.by_xdp()?;
        Ok(())
    }

    /// XDP has sent most, where it was to and the hosts have finished their checksums, and nothing by a way not its own.
    fn has_gone_by(&self, hook: &str, way: &str) -> Result<()> {
        let by_xdp = self.evenkeel.by_xdp()?.since(self.before);
        let is_right = match (way, self.lab.layout().offloads) {
            ("xdp-redirect", Offloads::FinishedByHosts) => by_xdp.sent > by_xdp.left,
            // Fragments are finished by whoever makes them.
            ("xdp-redirect", _) => by_xdp.sent > 0 && by_xdp.left > 0,
            _ => by_xdp.sent == 0,
        };
        ensure!(is_right, "{hook}, {way}: {by_xdp:?}");
        Ok(())
    }

    /// Answers of all sizes, queries in one piece and in several.
    fn ask_all(&mut self) -> Result<()> {
        let names = SIZES.map(|size| (format!("s{size}.example.test"), 0, size));
        let queries = [(WHO.to_owned(), 1400, 0), (WHO.to_owned(), 3000, 0), ("s4096.example.test".into(), 4000, 4096)];
        for schedule in SCHEDULES {
            for frontend in [FRONTENDS[0], FRONTENDS[1]] {
                for (name, query_size, answer_size) in names.iter().chain(&queries) {
                    self.ask(schedule, frontend, name, *query_size, *answer_size)
                        .with_context(|| format!("{name} in {query_size} bytes, {} at {frontend}", schedule.name()))?;
                }
            }
        }
        Ok(())
    }

    /// Asks each backend of the service once, which rr sees to.
    fn ask(
        &mut self,
        schedule: Schedule,
        frontend: IpAddr,
        name: &str,
        query_size: usize,
        answer_size: usize,
    ) -> Result<()> {
        self.next_id += 1;
        let message = query(self.next_id, name, query_size);
        let backends = schedule.of(self.lab.backends());
        let own = |host: &Host| if frontend.is_ipv4() { host.v4 } else { host.v6 };
        let mut direct = Vec::new();
        for host in backends {
            direct.push(exchange(&host.namespace, (own(host), 53).into(), &message)?.bytes);
        }
        let client = self.lab.client();
        let (at_client, at_backends) = self.listen_anew(schedule)?;
        let server = SocketAddr::new(frontend, schedule.port());
        let mut answered = [0; 2];
        for _ in 0..2 {
            let answer = exchange(&client.namespace, server, &message)?;
            ensure!(answer.source == server, "answered by {}", answer.source);
            ensure!(answer_size == 0 || answer.bytes.len() == answer_size, "{} bytes", answer.bytes.len());
            let seen = [at_backends[0].seen()?, at_backends[1].seen()?];
            let backend = usize::from(seen[0].is_empty());
            answered[backend] += 1;
            ensure!(answer.bytes == direct[backend], "other bytes than the server sends directly");
            ensure!(seen[1 - backend].is_empty(), "both backends got a part: {seen:?}");
            let road = Road { client: own(client), frontend, backend: own(backends[backend]) };
            road.check(&at_client.seen()?, &seen[backend], message.len(), answer.bytes.len())?;
        }
        ensure!(answered == [1, 1], "rr asked them {answered:?}");
        Ok(())
    }

    /// A query and an answer without a checksum, IPv4's privilege, by either frontend of one service.
    fn send_without_checksum(&mut self, schedule: Schedule) -> Result<()> {
        let (client, frontend, service) = (self.lab.client(), FRONTENDS[0], schedule.port());
        let (at_client, at_backends) = self.listen_anew(schedule)?;
        // Takes the answers, so that nobody tells the server that no one wants them.
        let socket = client.namespace.enter(|| Ok(UdpSocket::bind(("0.0.0.0", 0))?))?;
        let port = socket.local_addr()?.port();
        let backends = schedule.of(self.lab.backends());

        let (from, to) = (client.v4.to_string(), frontend.to_string());
        let message = query(1, WHO, 0);
        send_raw(&client.namespace, &eth().ipv4(&from, &to).udp(port, service).payload(&message).without_checksum())?;
        let answer = at_client.wait_for("an answer", |seen| seen.destination == client.v4)?;
        ensure!(answer.source == frontend, "answered by {}", answer.source);
        let seen = [at_backends[0].seen()?, at_backends[1].seen()?];
        let chosen = usize::from(seen[0].is_empty());
        let query = seen[chosen].iter().find(|seen| seen.source == client.v4).context("no query came")?;
        let head = query.head.context("a query in one piece")?;
        ensure!(head.checksum == 0, "the query got a checksum: {:#06x}", head.checksum);
        ensure!((head.source, head.destination) == (port, 53), "{head:?}");

        let backend = backends[chosen];
        let reply = eth().ipv4(&backend.v4.to_string(), &from).udp(53, port).payload(b"again").without_checksum();
        send_raw(&backend.namespace, &reply)?;
        let answer = at_client.wait_for("a second answer", |seen| seen.destination == client.v4)?;
        ensure!(answer.source == frontend, "answered by {}", answer.source);
        let head = answer.head.context("an answer in one piece")?;
        ensure!(head.checksum == 0, "the answer got a checksum: {:#06x}", head.checksum);
        ensure!((head.source, head.destination) == (service, port), "{head:?}");
        Ok(())
    }

    /// The taps of the client and of a service's backends, what was seen before forgotten.
    fn listen_anew(&self, schedule: Schedule) -> Result<(&Tap, [&Tap; 2])> {
        let of_service = schedule.of(&self.at_backends);
        for tap in [&self.at_client].into_iter().chain(of_service) {
            tap.seen()?;
        }
        Ok((&self.at_client, of_service))
    }

    /// Takes everything away; nothing was dropped by the data path.
    fn leave(mut self) -> Result<()> {
        let not_balanced = self.evenkeel.status()?["not_balanced"].take();
        ensure!(not_balanced.as_array().is_some_and(Vec::is_empty), "{not_balanced}");
        self.evenkeel.stop()?;
        self.binds.into_iter().try_for_each(Bind::stop)?;
        self.lab.down()
    }
}

/// Who sent and who was sent to, in one exchange.
struct Road {
    client: IpAddr,
    frontend: IpAddr,
    backend: IpAddr,
}

impl Road {
    /// Both ends saw the same pieces, each from and to whom it should be, and one hop apart.
    fn check(&self, at_client: &[Seen], at_backend: &[Seen], query: usize, answer: usize) -> Result<()> {
        let Self { client, frontend, backend } = *self;
        let between = |seen: &[Seen], source, destination| -> Vec<Seen> {
            seen.iter().filter(|seen| seen.source == source && seen.destination == destination).copied().collect()
        };
        let asked = [between(at_client, client, frontend), between(at_backend, client, backend)];
        let answered = [between(at_backend, backend, client), between(at_client, frontend, client)];
        let strangers =
            at_client.len() + at_backend.len() - [&asked, &answered].into_iter().flatten().flatten().count();
        ensure!(strangers == 0, "packets of strangers: {at_client:?} {at_backend:?}");
        // What has to be cut is cut to full frames, by BIND over IPv6 to what every road has room for.
        let (room, of_client, of_bind) = if backend.is_ipv4() { (1480, 1480, 1480) } else { (1460, 1448, 1232) };
        for ([sent, received], length, part) in [(&asked, query, of_client), (&answered, answer, of_bind)] {
            let pieces = if 8 + length <= room { 1 } else { (8 + length).div_ceil(part) };
            ensure!(sent.len() == pieces, "{length} bytes in {} pieces: {sent:?}", sent.len());
            ensure!(sent.len() == received.len(), "{sent:?} sent, {received:?} received");
            for (sent, received) in sent.iter().zip(received) {
                ensure!((sent.offset, sent.has_more) == (received.offset, received.has_more), "{sent:?} {received:?}");
                ensure!(received.hops + 1 == sent.hops, "{} hops sent, {} received", sent.hops, received.hops);
            }
        }
        Ok(())
    }
}

fn configuration(lab: &Lab, hook: &str, way: &str) -> String {
    let service = |schedule: Schedule| service(schedule, schedule.port(), &schedule.of(lab.backends()));
    format!("hook = \"{hook}\"\nway = \"{way}\"\n{}{}", service(Schedule::PerFlow), service(Schedule::PerPacket))
}

fn service(schedule: Schedule, port: u16, hosts: &[&Host]) -> String {
    let addresses = hosts.iter().flat_map(|host| [format!("\"{}:53\"", host.v4), format!("\"[{}]:53\"", host.v6)]);
    let backends = addresses.collect::<Vec<_>>().join(", ");
    let schedule = schedule.name();
    format!(
        "[[service]]\nname = \"{schedule}\"\nschedule = \"{schedule}\"\nselector = \"rr\"\nbackends = [{backends}]\n\
         listen = [{{ interface = \"eth3\", port = {port}, protocols = [\"udp\"] }}]\n"
    )
}
