//! The roads there are: what packets are looked at by, the way they take from there, and what Evenkeel is to say of each.

use anyhow::{Context as _, Result, ensure};

use crate::{
    evenkeel::{ByXdp, Evenkeel},
    lab::{CLIENT_SIDE, Lab, Layout, Offloads, Reach},
};

/// A network around the balancer, and the roads through it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// What it is called.
    pub name: &'static str,
    /// How backends are reached in it.
    pub reach: Reach,
    /// Whether the far ends of the balancer's devices receive as a NIC does, so that these take packets from XDP.
    pub far_gro: bool,
    /// Whether the host's packet filters look at what its bridge forwards: `bridge-nf-call-iptables`.
    pub is_bridge_filtered: bool,
    /// Each hook and each way that can be asked for.
    pub roads: &'static [Road],
}

/// What is asked for, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Road {
    /// The setting `hook`.
    pub hook: &'static str,
    /// The setting `way`.
    pub way: &'static str,
    /// What comes of it.
    pub end: End,
}

/// What comes of a road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Packets go by this way, and XDP has this part in it.
    Goes(&'static str, Early),
    /// It is not offered: the start is refused with these words.
    Refused(&'static str),
}

/// What XDP does with the packets of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Early {
    /// It sends those whose checksum is finished.
    Sends,
    /// It looks at all of them and leaves them to traffic control.
    Leaves,
    /// It is not there, for this reason.
    Absent(&'static str),
}

/// Every place.
pub const PLACES: [Place; 6] = [
    Place { name: "plain veths", reach: Reach::Veths, far_gro: true, is_bridge_filtered: false, roads: VETHS },
    Place { name: "a bridge", reach: Reach::Bridge, far_gro: true, is_bridge_filtered: false, roads: BRIDGE },
    Place { name: "a filtered bridge", reach: Reach::Bridge, far_gro: true, is_bridge_filtered: true, roads: BRIDGE },
    Place { name: "a nic", reach: Reach::Routed, far_gro: true, is_bridge_filtered: false, roads: NIC },
    Place {
        name: "plain veths that take nothing from xdp",
        reach: Reach::Veths,
        far_gro: false,
        is_bridge_filtered: false,
        roads: VETHS_WITHOUT_XDP,
    },
    Place {
        name: "a nic that takes nothing from xdp",
        reach: Reach::Routed,
        far_gro: false,
        is_bridge_filtered: false,
        roads: NIC_WITHOUT_XDP,
    },
];

const VETHS: &[Road] = &[
    goes("auto", "auto", "redirect-peer", VETH),
    goes("auto", "xdp-redirect", "xdp-redirect", Early::Sends),
    goes("tc", "redirect-peer", "redirect-peer", TC),
    goes("tc", "redirect-neigh", "redirect-neigh", TC),
    goes("tc", "stack", "stack", TC),
    refused("tc", "xdp-redirect", NOT_BY_TC),
    goes("xdp", "redirect-peer", "redirect-peer", Early::Leaves),
    goes("xdp", "redirect-neigh", "xdp-redirect", Early::Sends),
    goes("xdp", "stack", "stack", Early::Leaves),
    goes("xdp-generic", "redirect-peer", "redirect-peer", Early::Leaves),
    goes("xdp-generic", "redirect-neigh", "xdp-redirect", Early::Sends),
    goes("xdp-generic", "xdp-redirect", "xdp-redirect", Early::Sends),
    goes("xdp-generic", "stack", "stack", Early::Leaves),
];

const BRIDGE: &[Road] = &[
    goes("auto", "auto", "redirect-peer", VETH),
    refused("auto", "xdp-redirect", NOT_INTO_BRIDGE),
    goes("tc", "redirect-peer", "redirect-peer", TC),
    goes("tc", "redirect-neigh", "redirect-neigh", TC),
    goes("tc", "stack", "stack", TC),
    refused("tc", "xdp-redirect", NOT_BY_TC),
    goes("xdp", "redirect-peer", "redirect-peer", Early::Leaves),
    goes("xdp", "redirect-neigh", "redirect-neigh", Early::Leaves),
    goes("xdp", "stack", "stack", Early::Leaves),
    refused("xdp", "xdp-redirect", NOT_INTO_BRIDGE),
    goes("xdp-generic", "redirect-peer", "redirect-peer", Early::Leaves),
    goes("xdp-generic", "redirect-neigh", "redirect-neigh", Early::Leaves),
    goes("xdp-generic", "stack", "stack", Early::Leaves),
    refused("xdp-generic", "xdp-redirect", NOT_INTO_BRIDGE),
];

const NIC: &[Road] = &[
    goes("auto", "auto", "redirect-neigh", VETH),
    goes("auto", "xdp-redirect", "xdp-redirect", Early::Sends),
    refused("tc", "redirect-peer", NO_PEER),
    goes("tc", "redirect-neigh", "redirect-neigh", TC),
    goes("tc", "stack", "stack", TC),
    refused("tc", "xdp-redirect", NOT_BY_TC),
    refused("xdp", "redirect-peer", NO_PEER),
    goes("xdp", "redirect-neigh", "xdp-redirect", Early::Sends),
    goes("xdp", "stack", "stack", Early::Leaves),
    refused("xdp-generic", "redirect-peer", NO_PEER),
    goes("xdp-generic", "redirect-neigh", "xdp-redirect", Early::Sends),
    goes("xdp-generic", "xdp-redirect", "xdp-redirect", Early::Sends),
    goes("xdp-generic", "stack", "stack", Early::Leaves),
];

const VETHS_WITHOUT_XDP: &[Road] = &[
    refused("auto", "xdp-redirect", "backend 10.100.13.2: way xdp-redirect cannot be: v1 takes no packets from XDP"),
    goes("xdp", "redirect-neigh", "redirect-neigh", Early::Leaves),
    goes("xdp-generic", "redirect-neigh", "redirect-neigh", Early::Leaves),
];

const NIC_WITHOUT_XDP: &[Road] = &[
    refused("auto", "xdp-redirect", "backend 10.100.13.2: way xdp-redirect cannot be: eth1 takes no packets from XDP"),
    goes("xdp", "redirect-neigh", "redirect-neigh", Early::Leaves),
    goes("xdp-generic", "redirect-neigh", "redirect-neigh", Early::Leaves),
];

const VETH: Early = Early::Absent("it is a veth, where XDP has to be asked for");
const TC: Early = Early::Absent("traffic control was asked for");
const NOT_BY_TC: &str = "way xdp-redirect cannot be at eth3: traffic control was asked for";
const NOT_INTO_BRIDGE: &str =
    "backend 10.100.13.2: way xdp-redirect cannot be: br0 takes no packets from XDP; use `way = \"auto\"`";
const NO_PEER: &str =
    "backend 10.100.13.2: way redirect-peer cannot be: the other end of eth1 is itself a port of a bridge";

const fn goes(hook: &'static str, way: &'static str, by: &'static str, early: Early) -> Road {
    Road { hook, way, end: End::Goes(by, early) }
}

const fn refused(hook: &'static str, way: &'static str, why: &'static str) -> Road {
    Road { hook, way, end: End::Refused(why) }
}

impl Place {
    /// What a lab there is built from.
    pub fn layout(&self) -> Layout {
        Layout { reach: self.reach, far_gro: self.far_gro, ..Layout::default() }
    }

    /// Makes the balancer of a lab look at what it bridges, or not, as is meant; it has a filter that would.
    ///
    /// # Errors
    /// The kernel has no `bridge-nf-call-iptables`, without which there is no such place, or a rule is refused.
    pub fn settle(&self, lab: &Lab) -> Result<()> {
        if self.reach != Reach::Bridge {
            return Ok(());
        }
        let (balancer, value) = (lab.balancer(), u8::from(self.is_bridge_filtered));
        for tool in ["iptables", "ip6tables"] {
            balancer
                .sh(&format!("sysctl -qw net.bridge.bridge-nf-call-{tool}={value}"))
                .context("this kernel filters nothing that is bridged: build it with br_netfilter")?;
            balancer.sh(&format!("{tool} -w -A FORWARD -m conntrack --ctstate INVALID -j DROP"))?;
        }
        Ok(())
    }
}

impl Road {
    /// What it is called in a test's name or fault.
    pub fn name(&self) -> String {
        format!("hook {}, way {}", self.hook, self.way)
    }

    /// The head of a configuration that asks for it; nothing is said of what is automatic.
    pub fn settings(&self) -> String {
        let settings = [("hook", self.hook), ("way", self.way)].into_iter().filter(|(_, value)| *value != "auto");
        settings.map(|(key, value)| format!("{key} = \"{value}\"\n")).collect()
    }

    /// Waits until packets take it, and says that `status` shows that and why not a better one.
    ///
    /// # Errors
    /// They do not, or `status` says something else.
    pub fn wait_for(&self, evenkeel: &Evenkeel) -> Result<()> {
        let End::Goes(way, early) = self.end else { return Ok(()) };
        evenkeel.wait_for_way(way)?;
        let status = evenkeel.status()?;
        let hooks = status["hooks"].as_array().context("a status")?;
        let hook = hooks.iter().find(|hook| hook["interface"] == CLIENT_SIDE).context("nothing is at the clients'")?;
        let why = hook["xdp_why"].as_str().unwrap_or_default();
        match early {
            Early::Sends | Early::Leaves => {
                let mode = if self.hook == "xdp-generic" { "xdp-generic" } else { "xdp" };
                ensure!(hook["xdp"] == mode, "XDP is not there: {hook}");
                ensure!(why.contains("are finished by traffic control"), "not said what it leaves: {hook}");
            }
            Early::Absent(expected) => {
                ensure!(hook["xdp"].is_null() && why == expected, "XDP is there, or not for this reason: {hook}");
            }
        }
        let ways = status["ways"].as_array().context("a status")?;
        ensure!(ways.iter().all(|one| !one["why"].as_str().unwrap_or_default().is_empty()), "why so? {ways:?}");
        Ok(())
    }

    /// Says that XDP has sent what it can and left the rest; most senders have finished their checksums, or none has.
    ///
    /// # Errors
    /// It has not.
    pub fn xdp_did_its_part(&self, are_finished: bool, by_xdp: ByXdp) -> Result<()> {
        let (ByXdp { sent, left }, End::Goes(_, early)) = (by_xdp, self.end) else { return Ok(()) };
        let is_right = match (early, are_finished) {
            // The first packets to a next hop are left, and those whose finished checksum looks like an unfinished one.
            (Early::Sends, true) => sent > 10 * left,
            // The other way round it is the same one in 65,535, and fragments, which whoever makes them finishes.
            (Early::Sends, false) => left > 20 * sent,
            (Early::Leaves, _) => sent == 0 && left > 0,
            (Early::Absent(_), _) => (sent, left) == (0, 0),
        };
        ensure!(is_right, "{}: XDP sent {sent} and left {left}", self.name());
        Ok(())
    }
}

/// A road in a network of its own: the default one, and one of each kind beside it, on which everything is tried again
/// that has to hold on every road.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trip {
    name: &'static str,
    reach: Reach,
    /// The hosts finish checksums where XDP is to have something to send.
    offloads: Offloads,
    far_gro: bool,
    /// The road.
    pub road: Road,
}

impl Trip {
    /// Nothing is asked for.
    pub const DEFAULT: Self = Self {
        name: "",
        reach: Reach::Bridge,
        offloads: Offloads::Untouched,
        far_gro: false,
        road: goes("auto", "auto", "redirect-peer", VETH),
    };
    /// What XDP sends, to hosts behind a NIC.
    pub const XDP: Self =
        Self::by_xdp("by xdp through a nic", Reach::Routed, goes("xdp", "xdp-redirect", "xdp-redirect", Early::Sends));
    /// What XDP in the stack sends, to hosts behind a NIC.
    pub const XDP_GENERIC: Self = Self::by_xdp(
        "by generic xdp through a nic",
        Reach::Routed,
        goes("xdp-generic", "xdp-redirect", "xdp-redirect", Early::Sends),
    );
    /// What XDP sends into containers.
    pub const XDP_TO_VETHS: Self = Self::by_xdp(
        "by xdp over plain veths",
        Reach::Veths,
        goes("xdp", "xdp-redirect", "xdp-redirect", Early::Sends),
    );
    /// What XDP leaves, because only traffic control sends it there.
    pub const LEFT_BY_XDP: Self =
        Self::by_tc("left by xdp behind a bridge", goes("xdp", "redirect-peer", "redirect-peer", Early::Leaves));
    /// What traffic control sends to neighbours.
    pub const NEIGHBOURS: Self =
        Self::by_tc("to neighbours behind a bridge", goes("tc", "redirect-neigh", "redirect-neigh", TC));
    /// What the stack forwards.
    pub const STACK: Self = Self::by_tc("through the stack behind a bridge", goes("tc", "stack", "stack", TC));
    /// All but the default one.
    pub const FURTHER: [Self; 6] =
        [Self::XDP, Self::XDP_GENERIC, Self::XDP_TO_VETHS, Self::LEFT_BY_XDP, Self::NEIGHBOURS, Self::STACK];

    const fn by_xdp(name: &'static str, reach: Reach, road: Road) -> Self {
        Self { name, reach, offloads: Offloads::FinishedByHosts, far_gro: true, road }
    }

    const fn by_tc(name: &'static str, road: Road) -> Self {
        Self { name, road, ..Self::DEFAULT }
    }

    /// A test's name, with what this is called where it is not the default.
    pub fn title(&self, test: &str) -> String {
        if *self == Self::DEFAULT { test.to_owned() } else { format!("{test}, {}", self.name) }
    }

    /// How backends are reached.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// What a lab for it is built from.
    pub fn layout(&self) -> Layout {
        Layout { reach: self.reach, offloads: self.offloads, far_gro: self.far_gro, ..Layout::default() }
    }

    /// Says that XDP has done its part since `before`.
    ///
    /// # Errors
    /// It has not.
    pub fn was_taken_since(&self, before: ByXdp, evenkeel: &Evenkeel) -> Result<()> {
        let are_finished = match self.offloads {
            Offloads::Untouched | Offloads::FinishedByBalancer => false,
            Offloads::Off | Offloads::FinishedByHosts => true,
        };
        self.road.xdp_did_its_part(are_finished, evenkeel.by_xdp()?.since(before))
    }
}
