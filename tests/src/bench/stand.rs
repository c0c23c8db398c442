//! The ways that are compared. Each has a lab of its own, which stays up for as long as it is measured: so rounds take
//! turns without anything being set up in between, and nothing that one way leaves behind meets another.

use std::{
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    thread,
};

use anyhow::{Context as _, Result};

use super::{Part, figures::Hook};
use crate::{
    bind::Bind,
    evenkeel::Evenkeel,
    lab::{CLIENT_SIDE, FRONTENDS, Lab, Layout, Offloads, Reach},
    namespace::Namespace,
    reference::{Reference, Rules},
    statistic,
};

/// One way from the client to the backends.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Its name.
    pub name: &'static str,
    /// What is measured of it.
    pub parts: &'static [Part],
    reach: Reach,
    balancer: Balancer,
}

/// What chooses the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balancer {
    /// Evenkeel, with these settings, by this way of `evenkeel status`.
    Evenkeel { settings: &'static str, way: &'static str },
    /// nft: `numgen inc mod 4`.
    Nft,
    /// iptables: `-m statistic --mode nth`.
    Iptables,
    /// Nothing: the client asks the first backend, and the balancer routes.
    Routing,
    /// Nothing: frames are dropped where they come in, so that the generator shows alone.
    Nobody(Hook),
}

/// What Evenkeel does for containers behind a bridge when nothing is tuned.
pub const DEFAULT: &str = "evenkeel redirect-peer";
/// What it does out of a device at XDP.
pub const XDP_REDIRECT: &str = "evenkeel xdp-redirect, veths";
/// What it is compared with, since no container's device is tuned for it.
pub const VETH_PEER: &str = "evenkeel redirect-peer, veths";
/// What it is compared with.
pub const VETH_NFT: &str = "nft numgen, veths";
/// What it is compared with.
pub const VETH_IPTABLES: &str = "iptables nth, veths";
/// What it is compared with.
pub const NFT: &str = "nft numgen";
/// What it is compared with.
pub const IPTABLES: &str = "iptables nth";

const ALL: &[Part] = &[Part::Frames, Part::PingPong, Part::Queries];

/// Every way: a line for each.
pub const WAYS: &[Way] = &[
    evenkeel(DEFAULT, Reach::Bridge, "way = \"redirect-peer\"", "redirect-peer"),
    evenkeel("evenkeel redirect-neigh", Reach::Bridge, "way = \"redirect-neigh\"", "redirect-neigh"),
    evenkeel("evenkeel stack", Reach::Bridge, "way = \"stack\"", "stack"),
    Way { name: NFT, parts: ALL, reach: Reach::Bridge, balancer: Balancer::Nft },
    Way { name: IPTABLES, parts: ALL, reach: Reach::Bridge, balancer: Balancer::Iptables },
    Way { name: "plain routing", parts: ALL, reach: Reach::Bridge, balancer: Balancer::Routing },
    evenkeel(VETH_PEER, Reach::Veths, "way = \"redirect-peer\"", "redirect-peer"),
    evenkeel(XDP_REDIRECT, Reach::Veths, "way = \"xdp-redirect\"", "xdp-redirect"),
    Way { name: VETH_NFT, parts: ALL, reach: Reach::Veths, balancer: Balancer::Nft },
    Way { name: VETH_IPTABLES, parts: ALL, reach: Reach::Veths, balancer: Balancer::Iptables },
    generator("generator alone, dropped at tc", Hook::Tc),
    generator("generator alone, dropped at xdp", Hook::Xdp),
];

const fn evenkeel(name: &'static str, reach: Reach, settings: &'static str, way: &'static str) -> Way {
    Way { name, parts: ALL, reach, balancer: Balancer::Evenkeel { settings, way } }
}

const fn generator(name: &'static str, hook: Hook) -> Way {
    Way { name, parts: &[Part::Frames], reach: Reach::Bridge, balancer: Balancer::Nobody(hook) }
}

impl Way {
    /// Its lab: nothing tuned, but where packets are sent by XDP, which devices have to take, and whose sums have to be
    /// finished.
    fn layout(self) -> Layout {
        let layout = Layout { reach: self.reach, ..Layout::default() };
        if self.name == XDP_REDIRECT {
            Layout { far_gro: true, offloads: Offloads::FinishedByHosts, ..layout }
        } else {
            layout
        }
    }
}

/// The balancer's address on all veths.
const VETH_GATEWAY: &str = "02:00:00:00:13:01";

/// A way that is set up.
#[derive(Debug)]
pub(super) struct Stand {
    pub(super) way: Way,
    pub(super) lab: Lab,
    /// The link-layer address of the balancer's device towards the clients.
    pub(super) client_side: [u8; 6],
    /// That of its device towards the backends, which they send to.
    pub(super) gateway: [u8; 6],
    _servers: Vec<Bind>,
    _evenkeel: Option<Evenkeel>,
    _reference: Option<Reference>,
}

/// The port that is balanced.
const PORT: u16 = 53;

impl Stand {
    /// Builds the lab and the way in it; with servers where `parts` has queries.
    pub(super) fn set(way: Way, parts: &[Part]) -> Result<Self> {
        let lab = Lab::up(way.layout())?;
        // As a NIC, which polls, and off which checksums come finished.
        lab.balancer().sh(&format!("ethtool -K {CLIENT_SIDE} gro on"))?;
        lab.client().namespace.sh("ethtool -K eth0 tx off")?;
        if way.reach == Reach::Veths {
            // What answers in a container knows one address of the balancer.
            for port in lab.backend_side() {
                lab.balancer().sh(&format!("ip link set {port} address {VETH_GATEWAY}"))?;
            }
        }
        let gateway_device = lab.backend_side().first().context("a device towards the backends")?.clone();
        let client_side = address(lab.balancer(), CLIENT_SIDE)?;
        let gateway = address(lab.balancer(), &gateway_device)?;
        settle_neighbours(&lab, &gateway_device)?;
        let is_asked = way.parts.contains(&Part::Queries) && parts.contains(&Part::Queries);
        let servers = if is_asked { Bind::start_all(&lab)? } else { Vec::new() };
        let (mut evenkeel, mut reference) = (None, None);
        match way.balancer {
            Balancer::Evenkeel { settings, way } => {
                let running = Evenkeel::start(&lab, &configuration(&lab, settings))?;
                running.wait_for_way(way)?;
                evenkeel = Some(running);
            }
            Balancer::Nft => reference = Some(Reference::start(&lab, &Rules::NftNumgen, PORT)?),
            Balancer::Iptables => {
                let rules = Rules::Nth(statistic::cascade(lab.backends().len()));
                reference = Some(Reference::start(&lab, &rules, PORT)?);
            }
            Balancer::Routing | Balancer::Nobody(_) => {}
        }
        Ok(Self { way, lab, client_side, gateway, _servers: servers, _evenkeel: evenkeel, _reference: reference })
    }

    /// Sets up every way of which one of these parts is measured, all at once, because each waits a lot.
    pub(super) fn set_all(parts: &[Part]) -> Result<Vec<Self>> {
        let is_measured = |way: &&Way| way.parts.iter().any(|part| parts.contains(part));
        let set = |way: &'static Way| Self::set(*way, parts).with_context(|| way.name.to_owned());
        thread::scope(|scope| {
            let threads: Vec<_> = WAYS.iter().filter(is_measured).map(|way| scope.spawn(move || set(way))).collect();
            let stands =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|payload| resume_unwind(payload)));
            // All are waited for, so that none is still set up while what an error leaves is taken away.
            stands.collect::<Vec<_>>().into_iter().collect()
        })
    }

    /// Where the client sends its queries.
    pub(super) fn server(&self) -> SocketAddr {
        let address = match self.way.balancer {
            Balancer::Routing => self.lab.backends()[0].v4,
            Balancer::Evenkeel { .. } | Balancer::Nft | Balancer::Iptables | Balancer::Nobody(_) => FRONTENDS[0],
        };
        SocketAddr::new(address, PORT)
    }

    /// Where frames end: the sink, and the namespaces and devices it is attached to.
    pub(super) fn sinks(&self) -> (&'static str, Vec<(&Namespace, &'static str)>) {
        match self.way.balancer {
            Balancer::Nobody(Hook::Tc) => ("tc_sink", vec![(self.lab.balancer(), CLIENT_SIDE)]),
            Balancer::Nobody(Hook::Xdp) => ("xdp_sink", vec![(self.lab.balancer(), CLIENT_SIDE)]),
            Balancer::Evenkeel { .. } | Balancer::Nft | Balancer::Iptables | Balancer::Routing => {
                ("tc_sink", self.containers())
            }
        }
    }

    /// The devices of the containers.
    pub(super) fn containers(&self) -> Vec<(&Namespace, &'static str)> {
        self.lab.backends().iter().map(|host| (&host.namespace, "eth0")).collect()
    }
}

/// Where only one side speaks, nobody learns who is where: neighbours that were once asked would be asked again and
/// again, and a bridge would send what goes to one port to all.
fn settle_neighbours(lab: &Lab, gateway_device: &str) -> Result<()> {
    let balancer = lab.balancer();
    let known = |namespace: &Namespace, who: IpAddr, address: [u8; 6], device: &str| {
        namespace.sh(&format!("ip neigh replace {who} lladdr {} dev {device} nud permanent", written(address)))
    };
    let gateway = address(balancer, gateway_device)?;
    let client = lab.client();
    known(&client.namespace, FRONTENDS[0], address(balancer, CLIENT_SIDE)?, "eth0")?;
    known(balancer, client.v4, address(&client.namespace, "eth0")?, CLIENT_SIDE)?;
    for (index, backend) in lab.backends().iter().enumerate() {
        let own = address(&backend.namespace, "eth0")?;
        let port = lab.port(index);
        known(&backend.namespace, "10.100.13.1".parse()?, gateway, "eth0")?;
        match lab.layout().reach {
            Reach::Bridge => {
                known(balancer, backend.v4, own, gateway_device)?;
                balancer.sh(&format!("bridge fdb replace {} dev {port} master static", written(own)))?;
            }
            Reach::Veths => {
                known(balancer, backend.v4, own, port)?;
            }
            Reach::Routed => {
                known(balancer, backend.v4, own, gateway_device)?;
                let switch = Namespace::named(lab.prefix().namespace("rack"));
                switch.sh(&format!("bridge fdb replace {} dev v{} master static", written(own), index + 1))?;
            }
        }
    }
    Ok(())
}

/// A device's link-layer address.
fn address(namespace: &Namespace, device: &str) -> Result<[u8; 6]> {
    let shown = namespace.sh(&format!("ip -o link show dev {device}"))?;
    parse_address(&shown).with_context(|| format!("no address of {device} in {shown}"))
}

fn parse_address(shown: &str) -> Option<[u8; 6]> {
    let word = shown.split_once("link/ether ")?.1.split_whitespace().next()?;
    let bytes: Option<Vec<u8>> = word.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn written(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// DNS per flow, as the rules of today have it.
fn configuration(lab: &Lab, settings: &str) -> String {
    let backends = lab.backends().iter().flat_map(|host| [host.v4, host.v6]);
    let backends: Vec<_> = backends.map(|address| format!("\"{address}\"")).collect();
    format!(
        "{settings}\n[[service]]\nname = \"dns\"\nselector = \"rr\"\n\
         listen = [{{ interface = \"{CLIENT_SIDE}\", port = {PORT}, protocols = [\"udp\", \"tcp\"] }}]\n\
         backends = [{}]\n",
        backends.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn an_address_is_read_from_what_ip_shows() {
        let shown = "2: eth0@if3: <BROADCAST> mtu 1500 qdisc noqueue\\    link/ether 02:00:5e:10:00:ff brd ff:ff";
        assert_eq!(parse_address(shown), Some([2, 0, 0x5e, 0x10, 0, 0xff]));
        assert_eq!(written([2, 0, 0x5e, 0x10, 0, 0xff]), "02:00:5e:10:00:ff");
        assert_eq!(parse_address("1: lo: <LOOPBACK> link/loopback 00:00:00:00:00:00"), None);
    }

    #[test]
    fn every_way_has_a_name_of_its_own() {
        let names: BTreeSet<_> = WAYS.iter().map(|way| way.name).collect();
        assert_eq!(names.len(), WAYS.len());
        assert!([DEFAULT, NFT, IPTABLES].iter().all(|name| names.contains(name)));
    }
}
