//! Where XDP looks at packets first, and why not elsewhere: a function of the view, of the ways and of what was asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    backend::Way,
    device::{Abilities, Device},
};

use super::{Link, View, way::Chosen};
use crate::{
    dataplane::attach::{Hooks, XdpMode},
    settings::{HookSetting, Settings, WaySetting},
};

/// What was decided of XDP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// Where it looks first, and how it is run there.
    pub modes: BTreeMap<u32, XdpMode>,
    /// Why not on the other interfaces that clients or replies come in by.
    pub why_not: BTreeMap<u32, String>,
    /// Where it was asked for and cannot be.
    pub impossible: BTreeMap<u32, String>,
}

/// Decides where XDP looks first, `held` being the interfaces that it does so on now.
///
/// Replies are taken by XDP on the device that a backend is routed by, and not on the ports of a bridge: what goes to
/// those backends is not sent by XDP either.
pub fn decide(
    view: &View,
    settings: &Settings,
    clients: &BTreeSet<u32>,
    ways: &BTreeMap<IpAddr, Chosen>,
    held: &BTreeSet<u32>,
) -> Early {
    let wish = Wish::of(settings);
    let mut early = Early::default();
    for ifindex in clients {
        match mode(view, *ifindex, wish, held).and_then(|mode| worth(view, wish, ways).map(|()| mode)) {
            Ok(mode) => {
                early.modes.insert(*ifindex, mode);
            }
            Err(why) => {
                if settings.asks_for_xdp() {
                    early.impossible.insert(*ifindex, why.clone());
                }
                early.why_not.insert(*ifindex, why);
            }
        }
    }
    let devices = ways.values().filter_map(|chosen| match chosen.way {
        Way::Neighbour { ifindex } => Some(ifindex),
        Way::Stack | Way::Peer { .. } => None,
    });
    for ifindex in devices.filter(|ifindex| !clients.contains(ifindex)).collect::<BTreeSet<u32>>() {
        match mode(view, ifindex, wish, held).and_then(|mode| back(view, clients).map(|()| mode)) {
            Ok(mode) => early.modes.insert(ifindex, mode).map(drop),
            Err(why) => early.why_not.insert(ifindex, why).map(drop),
        };
    }
    early
}

/// What the packet path is told of devices: those that XDP runs on and those that take packets from it, each at its
/// place. Of two at one place the first of these is told; what would be sent by the other is left to traffic control.
pub fn devices(view: &View, hooks: &BTreeMap<u32, Hooks>) -> BTreeMap<u32, Device> {
    let is_hooked = |ifindex: &u32| hooks.get(ifindex).is_some_and(|hooks| hooks.xdp.is_some());
    let mut links: Vec<(&u32, &Link)> = view.links.iter().collect();
    links.sort_by_key(|(ifindex, link)| (!is_hooked(ifindex), !link.is_real(), **ifindex));
    let mut devices = BTreeMap::new();
    for (ifindex, link) in links {
        let Some(mac) = link.mac.filter(|_| link.is_ethernet()) else { continue };
        let abilities = abilities(link);
        if is_hooked(ifindex) || abilities != Abilities::default() {
            let [a, b, c, d, e, f] = mac.0;
            let address = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
            let device = Device { ifindex: *ifindex, abilities, address, zero: 0 };
            devices.entry(Device::place(*ifindex)).or_insert(device);
        }
    }
    devices
}

/// What XDP on an interface leaves to traffic control, where senders on this host are at its other end.
pub fn leaves(view: &View, ifindex: u32) -> Option<String> {
    let link = view.links.get(&ifindex).filter(|link| !link.is_real())?;
    Some(format!(
        "checksums that senders behind {} leave unfinished are finished by traffic control; `ethtool -K … tx off` there \
         keeps them with XDP",
        link.name
    ))
}

/// Why what is sent to a backend by this device is not sent by XDP; nothing where it can be.
pub fn refuses_redirected(view: &View, ifindex: u32) -> Option<String> {
    match view.links.get(&ifindex) {
        None => Some(format!("interface {ifindex} is gone")),
        Some(link) if link.xdp.is_none() => {
            Some(format!("the kernel does not say whether {} takes packets from XDP", link.name))
        }
        Some(link) if !abilities(link).has(Abilities::SENDS) => {
            let advice = if link.kind == "veth" { ", unless GRO is on at its other end" } else { "" };
            Some(format!("{} takes no packets from XDP{advice}", link.name))
        }
        Some(_) => None,
    }
}

fn abilities(link: &Link) -> Abilities {
    let mut abilities = Abilities::default();
    let Some(features) = link.xdp else { return abilities };
    if features.takes_redirected() {
        abilities = abilities.with(Abilities::SENDS);
        if features.takes_redirected_fragments() {
            abilities = abilities.with(Abilities::SENDS_PIECES);
        }
    }
    abilities
}

/// What the operator wants of XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Where it is surely of use.
    Fitting,
    /// In this mode.
    Forced(XdpMode),
    /// Nowhere.
    Nowhere,
}

impl Wish {
    fn of(settings: &Settings) -> Self {
        match settings.hook {
            HookSetting::Auto => match settings.way {
                WaySetting::XdpRedirect => Self::Forced(XdpMode::Native),
                WaySetting::Auto | WaySetting::RedirectPeer | WaySetting::RedirectNeigh | WaySetting::Stack => {
                    Self::Fitting
                }
            },
            HookSetting::Xdp => Self::Forced(XdpMode::Native),
            HookSetting::XdpGeneric => Self::Forced(XdpMode::Generic),
            HookSetting::Tc => Self::Nowhere,
        }
    }

    fn is_forced(self) -> bool {
        match self {
            Self::Forced(_) => true,
            Self::Fitting | Self::Nowhere => false,
        }
    }
}

/// How XDP is run on an interface, or why not.
fn mode(view: &View, ifindex: u32, wish: Wish, held: &BTreeSet<u32>) -> Result<XdpMode, String> {
    let mode = match wish {
        Wish::Nowhere => return Err("traffic control was asked for".into()),
        Wish::Fitting => XdpMode::Native,
        Wish::Forced(mode) => mode,
    };
    let Some(link) = view.links.get(&ifindex) else { return Err("it is gone".into()) };
    if wish == Wish::Fitting && !link.is_real() {
        let kind = if link.kind.is_empty() { "virtual device" } else { link.kind.as_str() };
        return Err(format!("it is a {kind}, where XDP has to be asked for"));
    }
    if link.has_xdp && !held.contains(&ifindex) {
        return Err("an XDP program of someone else is there".into());
    }
    match (mode, link.xdp) {
        (XdpMode::Generic, _) => Ok(mode),
        (XdpMode::Native, None) => Err("the kernel does not say whether its driver runs XDP programs".into()),
        (XdpMode::Native, Some(features)) if !features.takes_programs() => {
            Err("its driver runs no XDP programs".into())
        }
        (XdpMode::Native, Some(_)) => Ok(mode),
    }
}

/// Whether XDP at the clients' side has anything to send, where that is what decides.
fn worth(view: &View, wish: Wish, ways: &BTreeMap<IpAddr, Chosen>) -> Result<(), String> {
    let is_sent = |chosen: &Chosen| match chosen.way {
        Way::Neighbour { ifindex } => refuses_redirected(view, ifindex).is_none(),
        Way::Stack | Way::Peer { .. } => false,
    };
    if wish.is_forced() || ways.values().any(is_sent) {
        return Ok(());
    }
    Err("no backend is reached through a device that takes packets from XDP".into())
}

/// Whether XDP has anywhere to send replies to.
fn back(view: &View, clients: &BTreeSet<u32>) -> Result<(), String> {
    let mut refusals = clients.iter().map(|ifindex| refuses_redirected(view, *ifindex));
    if refusals.clone().any(|refusal| refusal.is_none()) {
        return Ok(());
    }
    Err(refusals.find_map(|refusal| refusal).unwrap_or_else(|| "no client comes in anywhere".into()))
}
