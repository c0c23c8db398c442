//! TCP through Evenkeel: 20 MB down and 20 MB up, byte for byte, again and again while 1000 short connections run
//! beside; by each way, over both families, at two MTUs, and wherever checksums and segments are finished.

use std::{net::SocketAddr, process::ExitCode, thread};

use anyhow::{Context as _, Result, ensure};
use testbed::{
    curl,
    engine::Engine,
    evenkeel::Evenkeel,
    harness::{on_root, run_side_by_side},
    lab::{FRONTENDS, Host, Lab, Layout, Offloads, Reach},
    namespace::Namespace,
    nginx::{Nginx, large},
};

fn main() -> ExitCode {
    run_side_by_side(vec![
        on_root("behind a bridge at mtu 1500, 20 MB go down and up by each way", || by_each_way(Reach::Bridge, 1500)),
        on_root("behind a bridge at mtu 9000, 20 MB go down and up by each way", || by_each_way(Reach::Bridge, 9000)),
        on_root("over plain veths at mtu 1500, 20 MB go down and up by each way", || by_each_way(Reach::Veths, 1500)),
        on_root("over plain veths at mtu 9000, 20 MB go down and up by each way", || by_each_way(Reach::Veths, 9000)),
        on_root("through a nic at mtu 1500, 20 MB go down and up by each way", || by_each_way(Reach::Routed, 1500)),
        on_root("through a nic at mtu 9000, 20 MB go down and up by each way", || by_each_way(Reach::Routed, 9000)),
        on_root("among an engine's rules, 20 MB go down and up by the ways past the stack", among_an_engines_rules),
        on_root("by xdp, 20 MB go down and up", by_xdp),
        on_root("from a server on the balancer itself, 20 MB go down and up", from_the_balancer_itself),
    ])
}

/// In an order in which receive offload, once off, is not needed again.
const OFFLOADS: [Offloads; 4] =
    [Offloads::Untouched, Offloads::FinishedByBalancer, Offloads::FinishedByHosts, Offloads::Off];

/// Who finishes a checksum does not depend on the MTU: it is varied at one of them.
fn offloads(mtu: u32) -> &'static [Offloads] {
    if mtu == 1500 { &OFFLOADS } else { &[Offloads::Untouched, Offloads::Off] }
}

/// The ways that there are to backends so reached, without one for which another reach says the same.
fn ways(reach: Reach) -> &'static [&'static str] {
    match reach {
        Reach::Bridge => &["redirect-peer", "redirect-neigh", "stack"],
        Reach::Veths => &["redirect-peer"],
        Reach::Routed => &["redirect-neigh", "stack"],
    }
}

fn by_each_way(reach: Reach, mtu: u32) -> Result<()> {
    let mut stage = Stage::set(Layout { reach, mtu, backends: 2, ..Layout::default() }, ways(reach)[0])?;
    for offloads in offloads(mtu) {
        stage.lab.set_offloads(*offloads)?;
        for way in ways(reach) {
            stage.go_by(way)?;
            stage.transfer_over_both_families().with_context(|| format!("{way}, offloads {offloads:?}"))?;
        }
    }
    stage.leave()
}

fn by_xdp() -> Result<()> {
    for (reach, mtu) in [(Reach::Routed, 1500), (Reach::Routed, 9000), (Reach::Veths, 1500)] {
        let layout = Layout { reach, mtu, backends: 2, far_gro: true, ..Layout::default() };
        let mut stage = Stage::set(layout, "xdp-redirect")?;
        for offloads in offloads(mtu) {
            stage.lab.set_offloads(*offloads)?;
            stage.evenkeel.wait_for_way("xdp-redirect")?;
            stage
                .transfer_over_both_families()
                .with_context(|| format!("{reach:?}, mtu {mtu}, offloads {offloads:?}"))?;
        }
        ensure!(stage.evenkeel.by_xdp()?.sent > 0, "nothing went by XDP");
        stage.leave()?;
    }
    Ok(())
}

fn among_an_engines_rules() -> Result<()> {
    for reach in [Reach::Bridge, Reach::Veths, Reach::Routed] {
        let mut past_the_stack = ways(reach).iter().filter(|way| **way != "stack");
        let layout = Layout { reach, backends: 2, ..Layout::default() };
        let mut stage = Stage::set(layout, past_the_stack.clone().next().context("each reach has one")?)?;
        let engine = Engine::start(&stage.lab)?;
        past_the_stack.try_for_each(|way| {
            stage.go_by(way)?;
            stage.transfer_over_both_families().with_context(|| format!("{reach:?}, {way}"))
        })?;
        engine.stop()?;
        stage.leave()?;
    }
    Ok(())
}

fn from_the_balancer_itself() -> Result<()> {
    let lab = Lab::up(Layout { backends: 1, ..Layout::default() })?;
    let own = Host { namespace: lab.balancer().clone(), v4: "10.100.13.1".parse()?, v6: "fd00:100:13::1".parse()? };
    let servers = vec![Nginx::start(&lab, "own", &own)?];
    let hosts = vec![own];
    // The frontend is the host's own address on a port on which nobody listens.
    let configuration = configuration(&hosts, "auto").replace("port = 80", "port = 8080");
    let evenkeel = Evenkeel::start(&lab, &configuration)?;
    evenkeel.wait_for_way("stack")?;
    let mut stage = Stage { servers, evenkeel, large: large(), port: 8080, hosts, lab };
    for offloads in OFFLOADS {
        stage.lab.set_offloads(offloads)?;
        stage.transfer_over_both_families().with_context(|| format!("offloads {offloads:?}"))?;
    }
    stage.leave()
}

/// A lab with nginx on each backend and Evenkeel before them.
struct Stage {
    servers: Vec<Nginx>,
    evenkeel: Evenkeel,
    large: Vec<u8>,
    /// Of the frontends.
    port: u16,
    hosts: Vec<Host>,
    lab: Lab,
}

impl Stage {
    fn set(layout: Layout, way: &str) -> Result<Self> {
        let lab = Lab::up(layout)?;
        let servers = Nginx::start_all(&lab)?;
        let hosts = lab.backends().to_vec();
        let evenkeel = Evenkeel::start(&lab, &configuration(&hosts, way))?;
        evenkeel.wait_for_way(way)?;
        Ok(Self { servers, evenkeel, large: large(), port: 80, hosts, lab })
    }

    fn go_by(&mut self, way: &str) -> Result<()> {
        self.evenkeel.apply(&configuration(&self.hosts, way))?;
        self.evenkeel.wait_for_way(way)
    }

    /// Down, up and the short connections at once, over one family after the other; no checksum is wrong meanwhile.
    fn transfer_over_both_families(&self) -> Result<()> {
        let before = self.checksum_errors()?;
        for frontend in [FRONTENDS[0], FRONTENDS[1]] {
            self.transfer((frontend, self.port).into()).with_context(|| frontend.to_string())?;
        }
        let wrong = self.checksum_errors()? - before;
        ensure!(wrong == 0, "{wrong} packets came with a wrong checksum");
        Ok(())
    }

    /// Down and up again and again, until so many short connections have run beside.
    fn transfer(&self, server: SocketAddr) -> Result<()> {
        let client = &self.lab.client().namespace;
        let ((), short) = curl::short_connections_beside(client, server, "/who", 2, |beside| {
            let enough = beside.done()? + SHORT;
            thread::scope(|scope| {
                let up = scope.spawn(|| {
                    while beside.done()? < enough {
                        self.upload(server)?;
                    }
                    Ok(())
                });
                let down = || {
                    while beside.done()? < enough {
                        let body = curl::get(client, &curl::url(server, "/large"))?;
                        ensure!(body == self.large, "other bytes came down");
                    }
                    Ok(())
                };
                let (down, up): (Result<()>, Result<()>) = (down(), up.join().expect("no client panics"));
                down.context("down").and(up.context("up"))
            })
        })?;
        ensure!(short.values().sum::<usize>() >= SHORT, "short connections: {short:?}");
        ensure!(short.len() == self.servers.len(), "not all servers were asked: {short:?}");
        Ok(())
    }

    fn upload(&self, server: SocketAddr) -> Result<()> {
        let file = self.lab.directory("nginx")?.join("large");
        curl::put(&self.lab.client().namespace, &file, &curl::url(server, "/up/large"))?;
        let uploads = self.servers.iter().map(|nginx| nginx.take_upload("large")).collect::<Result<Vec<_>>>()?;
        let uploads: Vec<_> = uploads.into_iter().flatten().collect();
        ensure!(uploads.len() == 1, "{} servers have the upload", uploads.len());
        ensure!(uploads[0] == self.large, "other bytes went up");
        Ok(())
    }

    fn checksum_errors(&self) -> Result<u64> {
        let hosts = self.hosts.iter().chain([self.lab.client()]).map(|host| &host.namespace);
        hosts.map(Namespace::checksum_errors).sum()
    }

    /// Takes everything away; nothing was dropped by the data path.
    fn leave(mut self) -> Result<()> {
        let status = self.evenkeel.status()?;
        let dropped = status["not_balanced"].as_array().context("a status")?;
        // What is no part of a flow is the stack's: the last segments of a connection that both ends have forgotten.
        let dropped: Vec<_> = dropped.iter().filter(|one| one["reason"] != "no_flow").collect();
        ensure!(dropped.is_empty(), "packets were not balanced: {dropped:?}");
        self.evenkeel.stop()?;
        self.servers.into_iter().try_for_each(Nginx::stop)?;
        self.lab.down()
    }
}

/// How many short connections run beside the transfers.
const SHORT: usize = 1000;

fn configuration(hosts: &[Host], way: &str) -> String {
    let addresses = hosts.iter().flat_map(|host| [format!("\"{}:80\"", host.v4), format!("\"[{}]:80\"", host.v6)]);
    let backends = addresses.collect::<Vec<_>>().join(", ");
    format!(
        "way = \"{way}\"\n[[service]]\nname = \"web\"\nselector = \"rr\"\nbackends = [{backends}]\n\
         listen = [{{ interface = \"eth3\", port = 80, protocols = [\"tcp\"] }}]\n"
    )
}
