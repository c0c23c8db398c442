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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::{
        Link, Route, XdpFeatures,
        testing::{BR0, ETH3, POD, V1, WG0, ip, lab, mac},
        way::choose,
    };

    const ETH5: u32 = 5;
    const RUNS_ONLY: XdpFeatures = XdpFeatures(0x23);

    fn asked(hook: HookSetting, way: WaySetting) -> Settings {
        Settings { hook, way, ..Settings::default() }
    }

    /// `eth3 xdp`, `eth3: why not`, `eth3 impossible: why not`, one a line.
    fn decided_with(view: &View, settings: &Settings, clients: &[u32], backends: &[&str], held: &[u32]) -> String {
        let chosen = |text: &&str| (ip(text), choose(view, ip(text), WaySetting::Auto, None).expect("our own choice"));
        let ways = backends.iter().map(chosen).collect();
        let set = |numbers: &[u32]| numbers.iter().copied().collect();
        let Early { modes, why_not, impossible } = decide(view, settings, &set(clients), &ways, &set(held));
        let modes = modes.iter().map(|(at, mode)| format!("{} {}", view.name(*at), mode.name()));
        let why_not = why_not.iter().map(|(at, why)| format!("{}: {why}", view.name(*at)));
        let impossible = impossible.iter().map(|(at, why)| format!("{} impossible: {why}", view.name(*at)));
        modes.chain(why_not).chain(impossible).collect::<Vec<_>>().join("\n")
    }

    fn decided(view: &View, settings: &Settings, client: u32, backend: &str) -> String {
        decided_with(view, settings, &[client], &[backend], &[])
    }

    fn with(mut view: View, ifindex: u32, change: impl FnOnce(&mut Link)) -> View {
        change(view.links.get_mut(&ifindex).expect("the lab has it"));
        view
    }

    #[test]
    fn xdp_is_chosen_on_a_nic_where_it_has_something_to_send() {
        let auto = Settings::default();
        assert_eq!(decided(&lab(), &auto, ETH3, "192.0.2.9"), "eth3 xdp");
        for backend in ["10.0.0.2", "10.9.0.1", "172.16.0.1"] {
            let why = "eth3: no backend is reached through a device that takes packets from XDP";
            let said = decided(&lab(), &auto, ETH3, backend);
            assert!(said.lines().any(|line| line == why) && !said.contains(" xdp"), "{backend}: {said}");
        }
        assert_eq!(decided_with(&lab(), &auto, &[ETH3], &["10.0.0.2", "192.0.2.9"], &[]), "eth3 xdp", "one will do");
        let refuses = with(lab(), ETH3, |link| link.xdp = Some(RUNS_ONLY));
        assert_eq!(
            decided(&refuses, &auto, ETH3, "192.0.2.9"),
            "eth3: no backend is reached through a device that takes packets from XDP"
        );
    }

    #[test]
    fn on_virtual_devices_xdp_has_to_be_asked_for() {
        let auto = Settings::default();
        for (client, why) in [
            (POD, "pod: it is a veth, where XDP has to be asked for"),
            (BR0, "br0: it is a bridge, where XDP has to be asked for"),
            (1, "lo: it is a virtual device, where XDP has to be asked for"),
        ] {
            let said = decided_with(&lab(), &auto, &[client, ETH3], &["192.0.2.9"], &[]);
            assert_eq!(said, format!("eth3 xdp\n{why}"));
        }
        assert_eq!(decided(&lab(), &asked(HookSetting::Xdp, WaySetting::Auto), POD, "10.0.0.2"), "pod xdp");
    }

    #[test]
    fn what_was_asked_for_is_done_even_where_all_is_left_to_traffic_control() {
        for (hook, way, expected) in [
            (HookSetting::Xdp, WaySetting::Auto, "eth3 xdp"),
            (HookSetting::XdpGeneric, WaySetting::Auto, "eth3 xdp-generic"),
            (HookSetting::Auto, WaySetting::XdpRedirect, "eth3 xdp"),
            (HookSetting::XdpGeneric, WaySetting::XdpRedirect, "eth3 xdp-generic"),
            (HookSetting::Tc, WaySetting::Auto, "eth3: traffic control was asked for"),
            (
                HookSetting::Tc,
                WaySetting::XdpRedirect,
                "eth3: traffic control was asked for\neth3 impossible: traffic control was asked for",
            ),
        ] {
            assert_eq!(decided(&lab(), &asked(hook, way), ETH3, "10.0.0.2"), expected, "{hook:?} {way:?}");
        }
    }

    #[test]
    fn what_was_asked_for_and_cannot_be_is_impossible_with_the_reason() {
        let native = asked(HookSetting::Xdp, WaySetting::Auto);
        let generic = asked(HookSetting::XdpGeneric, WaySetting::Auto);
        let both = |why: &str| format!("{why}\n{}", why.replacen(':', " impossible:", 1));
        let said = |view: &View, settings: &Settings, client| decided(view, settings, client, "10.0.0.2");
        assert_eq!(said(&lab(), &native, BR0), both("br0: its driver runs no XDP programs"));
        assert_eq!(said(&lab(), &generic, BR0), "br0 xdp-generic", "the stack runs them");
        let untold = with(lab(), ETH3, |link| link.xdp = None);
        let why = both("eth3: the kernel does not say whether its driver runs XDP programs");
        assert_eq!(said(&untold, &native, ETH3), why);
        assert_eq!(said(&untold, &generic, ETH3), "eth3 xdp-generic");
        assert_eq!(said(&lab(), &native, 99), both(&format!("{}: it is gone", lab().name(99))));
        let auto = Settings::default();
        assert_eq!(
            decided(&untold, &auto, ETH3, "192.0.2.9"),
            "eth3: the kernel does not say whether its driver runs XDP programs",
            "nobody asked for it"
        );
    }

    #[test]
    fn a_program_of_someone_else_is_left_alone_and_our_own_is_not_taken_for_one() {
        let view = with(lab(), ETH3, |link| link.has_xdp = true);
        let why = "eth3: an XDP program of someone else is there";
        for hook in [HookSetting::Xdp, HookSetting::XdpGeneric] {
            let said = decided(&view, &asked(hook, WaySetting::Auto), ETH3, "192.0.2.9");
            assert_eq!(said, format!("{why}\neth3 impossible: an XDP program of someone else is there"));
        }
        let auto = Settings::default();
        assert_eq!(decided(&view, &auto, ETH3, "192.0.2.9"), why);
        assert_eq!(decided_with(&view, &auto, &[ETH3], &["192.0.2.9"], &[ETH3]), "eth3 xdp");
        assert_eq!(decided_with(&view, &auto, &[ETH3], &["192.0.2.9"], &[V1]), why);
    }

    /// A second NIC, by which 203.0.113.9 is reached.
    fn two_nics() -> View {
        let mut view = lab();
        let nic = Link { name: "eth5".into(), ..view.links[&ETH3].clone() };
        view.links.insert(ETH5, nic);
        view.routes.insert(ip("203.0.113.9"), Route::Through { device: ETH5, gateway: None });
        view
    }

    #[test]
    fn replies_are_taken_by_xdp_where_clients_can_be_sent_to() {
        let auto = Settings::default();
        assert_eq!(decided(&two_nics(), &auto, ETH3, "203.0.113.9"), "eth3 xdp\neth5 xdp");
        let refuses = with(two_nics(), ETH3, |link| link.xdp = Some(RUNS_ONLY));
        assert_eq!(decided(&refuses, &auto, ETH3, "203.0.113.9"), "eth3 xdp\neth5: eth3 takes no packets from XDP");
        let forced = asked(HookSetting::Xdp, WaySetting::Auto);
        assert_eq!(
            decided(&lab(), &forced, ETH3, "172.16.0.1"),
            "eth3 xdp\nbr0: its driver runs no XDP programs",
            "which is no fault: clients come in elsewhere"
        );
        assert_eq!(decided(&lab(), &forced, ETH3, "10.0.0.2"), "eth3 xdp", "not on the ports of a bridge");
        assert_eq!(decided_with(&two_nics(), &auto, &[], &["203.0.113.9"], &[]), "eth5: no client comes in anywhere");
    }

    #[test]
    fn a_device_that_takes_no_packets_from_xdp_says_why() {
        let untold = with(lab(), ETH3, |link| link.xdp = None);
        for (view, ifindex, expected) in [
            (lab(), ETH3, None),
            (lab(), 99, Some("interface 99 is gone")),
            (lab(), BR0, Some("br0 takes no packets from XDP")),
            (lab(), POD, Some("pod takes no packets from XDP, unless GRO is on at its other end")),
            (untold, ETH3, Some("the kernel does not say whether eth3 takes packets from XDP")),
            (with(lab(), POD, |link| link.xdp = Some(XdpFeatures(0x67))), POD, None),
        ] {
            assert_eq!(refuses_redirected(&view, ifindex).as_deref(), expected);
        }
    }

    #[test]
    fn checksums_are_spoken_of_where_senders_may_be_on_this_host() {
        assert_eq!((leaves(&lab(), ETH3), leaves(&lab(), 99)), (None, None));
        assert_eq!(
            leaves(&lab(), POD).as_deref(),
            Some(
                "checksums that senders behind pod leave unfinished are finished by traffic control; `ethtool -K … tx off` \
                 there keeps them with XDP"
            )
        );
    }

    fn hooked(ifindexes: &[u32]) -> BTreeMap<u32, Hooks> {
        let hooks = Hooks { name: String::new(), ingress: None, egress: false, xdp: Some(XdpMode::Native) };
        ifindexes.iter().map(|ifindex| (*ifindex, hooks.clone())).collect()
    }

    /// With link-layer addresses.
    fn addressed(mut view: View) -> View {
        for (ifindex, link) in &mut view.links {
            link.mac = Some(mac(*ifindex as u8));
        }
        view
    }

    #[test]
    fn devices_are_those_that_run_xdp_or_take_packets_from_it() {
        let view = addressed(lab());
        let numbers = |hooks: &[u32]| -> Vec<u32> {
            devices(&view, &hooked(hooks))
                .into_iter()
                .map(|(place, device)| {
                    assert_eq!(place, Device::place(device.ifindex));
                    device.ifindex
                })
                .collect()
        };
        assert_eq!(numbers(&[]), [ETH3]);
        assert_eq!(numbers(&[POD, WG0]), [ETH3, POD], "no Ethernet, no address to compare");
        let devices = devices(&view, &hooked(&[POD]));
        let both = Abilities::SENDS.with(Abilities::SENDS_PIECES);
        assert_eq!((devices[&ETH3].abilities, devices[&POD].abilities), (both, Abilities::default()));
        assert_eq!(devices[&POD].address, [[2, 0], [0, 0], [0, POD as u8]].map(u16::from_ne_bytes));
        let whole = with(addressed(lab()), ETH3, |link| link.xdp = Some(XdpFeatures(0x27)));
        assert_eq!(super::devices(&whole, &hooked(&[]))[&ETH3].abilities, Abilities::SENDS);
        let unaddressed = with(view.clone(), ETH3, |link| link.mac = None);
        assert_eq!(super::devices(&unaddressed, &hooked(&[])), BTreeMap::new());
    }

    #[test]
    fn of_two_devices_at_one_place_the_one_that_runs_xdp_is_told_then_the_nic_then_the_first() {
        const FAR: u32 = ETH3 + lb_common::device::DEVICES;
        const FARTHER: u32 = FAR + lb_common::device::DEVICES;
        let mut view = addressed(lab());
        let nic = view.links[&ETH3].clone();
        let veth = Link { kind: "veth".into(), ..nic.clone() };
        view.links.extend([(ETH3, veth.clone()), (FAR, nic.clone()), (FARTHER, nic)]);
        let told = |view: &View, hooks: &[u32]| devices(view, &hooked(hooks))[&Device::place(ETH3)].ifindex;
        assert_eq!(told(&view, &[ETH3]), ETH3);
        assert_eq!(told(&view, &[FARTHER]), FARTHER);
        assert_eq!(told(&view, &[]), FAR, "a NIC, and the first of them");
        view.links.extend([(FAR, veth.clone()), (FARTHER, veth)]);
        assert_eq!(told(&view, &[]), ETH3);
    }
}
