//! Which way packets take to a backend: a function of what the network looks like and what was chosen before.

use std::net::IpAddr;

use lb_common::backend::Way;

use super::{Link, Mac, Peer, Route, View, early};
use crate::settings::WaySetting;

/// The way to one backend, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The way.
    pub way: Way,
    /// The device that the backend is routed by.
    pub device: Option<u32>,
    /// The end of the veth that leads into the backend's namespace.
    pub port: Option<u32>,
    /// The backend's link-layer address on that device, as last known.
    pub mac: Option<Mac>,
    /// One short sentence: why not a better way.
    pub why: String,
}

/// A way was asked for by the operator and cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backend {backend}: way {way} cannot be: {why}; use `way = \"auto\"`")]
pub struct Impossible {
    /// The backend.
    pub backend: IpAddr,
    /// The way's name.
    pub way: &'static str,
    /// Why it cannot be.
    pub why: String,
}

/// Chooses the way to `backend`.
///
/// What was known of its link-layer address stays known until something contradicts it: neighbour entries age, and
/// packets that bypass the stack do not refresh them.
///
/// # Errors
/// When `setting` asks for a way that cannot be.
pub fn choose(
    view: &View,
    backend: IpAddr,
    setting: WaySetting,
    previous: Option<&Chosen>,
) -> Result<Chosen, Impossible> {
    let impossible = |why| Impossible { backend, way: setting.name(), why };
    match setting {
        WaySetting::Auto => Ok(best(view, backend, previous)),
        WaySetting::Stack => Ok(stack(routed_by(view, backend), "asked for".into())),
        WaySetting::RedirectNeigh => {
            let hop = ethernet_hop(view, backend).map_err(impossible)?;
            Ok(neighbour(&hop, hop.mac(view, previous), "asked for".into()))
        }
        WaySetting::XdpRedirect => {
            let hop = ethernet_hop(view, backend).map_err(impossible)?;
            match early::refuses_redirected(view, hop.device) {
                Some(why) => Err(impossible(why)),
                None => Ok(neighbour(&hop, hop.mac(view, previous), "asked for".into())),
            }
        }
        WaySetting::RedirectPeer => {
            let hop = ethernet_hop(view, backend).map_err(impossible)?;
            peer(view, &hop, previous).map_err(impossible)
        }
    }
}

fn best(view: &View, backend: IpAddr, previous: Option<&Chosen>) -> Chosen {
    let hop = match ethernet_hop(view, backend) {
        Ok(hop) => hop,
        Err(why) => return stack(routed_by(view, backend), why),
    };
    match peer(view, &hop, previous) {
        Ok(choice) => choice,
        Err(why) => neighbour(&hop, hop.mac(view, previous), why),
    }
}

fn stack(device: Option<u32>, why: String) -> Chosen {
    Chosen { way: Way::Stack, device, port: None, mac: None, why }
}

fn neighbour(hop: &Hop<'_>, mac: Option<Mac>, why: String) -> Chosen {
    let way = Way::Neighbour { ifindex: hop.device };
    Chosen { way, device: Some(hop.device), port: None, mac, why }
}

/// The way straight into the backend's namespace, or why there is none.
fn peer(view: &View, hop: &Hop<'_>, previous: Option<&Chosen>) -> Result<Chosen, String> {
    let Link { name, .. } = hop.link;
    if let Some(gateway) = hop.gateway {
        return Err(format!("it is behind the router {gateway} on {name}"));
    }
    let mac = hop.mac(view, previous);
    let (port, why) = if hop.link.is_bridge() {
        let mac = mac.ok_or_else(|| format!("its link-layer address on {name} is not known yet"))?;
        let port = port_of_bridge(view, hop, mac, previous)?;
        (port, format!("port {} of bridge {name}", view.name(port)))
    } else {
        leads_to_station(hop.link, mac)?;
        (hop.device, format!("the other end of {name}"))
    };
    Ok(Chosen { way: Way::Peer { ifindex: port }, device: Some(hop.device), port: Some(port), mac, why })
}

/// Whether packets through this veth are received by whoever has `mac`, or by whoever is there where that is unknown.
fn leads_to_station(link: &Link, mac: Option<Mac>) -> Result<(), String> {
    let name = &link.name;
    match link.peer {
        None => Err(format!("{name} does not lead into another namespace")),
        Some(Peer::Unseen) => Err(format!("what is at the other end of {name} cannot be seen")),
        Some(Peer::Port) => Err(format!("the other end of {name} is itself a port of a bridge")),
        Some(Peer::Station(station)) => match mac {
            Some(mac) if mac != station => Err(format!("it has {mac}, the other end of {name} has {station}")),
            Some(_) | None => Ok(()),
        },
    }
}

/// The one port of a bridge whose other end has `mac`.
///
/// The other ends themselves tell, because the bridge's table forgets who is silent; but where it knows, it is right:
/// then the address has moved, or is there twice.
fn port_of_bridge(view: &View, hop: &Hop<'_>, mac: Mac, previous: Option<&Chosen>) -> Result<u32, String> {
    let bridge = &hop.link.name;
    let learned = view.forwarding.get(&(hop.device, mac));
    let seen_at = |port: &u32| learned.is_none_or(|ports| ports.contains(port));
    let leads_there = |link: &Link| link.master == Some(hop.device) && link.peer == Some(Peer::Station(mac));
    let ports: Vec<u32> =
        view.links.iter().filter(|(port, link)| leads_there(link) && seen_at(port)).map(|(port, _)| *port).collect();
    match ports[..] {
        [port] => Ok(port),
        [] => match learned.and_then(|ports| ports.first()) {
            Some(port) => match view.links.get(port) {
                Some(link) => Err(leads_to_station(link, Some(mac))
                    .err()
                    .unwrap_or_else(|| format!("its port {} has left {bridge}", link.name))),
                None => Err(format!("its port of {bridge} is gone")),
            },
            None => Err(format!("no veth of bridge {bridge} leads to {mac}")),
        },
        [..] => match previous.and_then(|choice| choice.port).filter(|port| ports.contains(port)) {
            Some(port) => Ok(port),
            None => Err(format!("several ports of {bridge} lead to {mac}")),
        },
    }
}

/// Where packets to a backend are handed to the link layer.
struct Hop<'v> {
    backend: IpAddr,
    device: u32,
    link: &'v Link,
    gateway: Option<IpAddr>,
}

impl Hop<'_> {
    /// The link-layer address of the next hop: as it is, else as it was on the same device.
    fn mac(&self, view: &View, previous: Option<&Chosen>) -> Option<Mac> {
        let known = view.neighbours.get(&(self.device, self.gateway.unwrap_or(self.backend))).map(|known| known.mac);
        let remembered = || previous.filter(|choice| choice.device == Some(self.device))?.mac;
        known.or_else(remembered)
    }
}

fn ethernet_hop(view: &View, backend: IpAddr) -> Result<Hop<'_>, String> {
    let (device, gateway) = match view.routes.get(&backend) {
        None | Some(Route::None) => return Err("no route leads to it".into()),
        Some(Route::Local) => return Err("it is an address of this host".into()),
        Some(Route::Encapsulated { device }) => {
            return Err(format!("its route through {} wraps the packets", view.name(*device)));
        }
        Some(Route::Through { device, gateway }) => (*device, *gateway),
    };
    match view.links.get(&device) {
        None => Err(format!("interface {device} is gone")),
        Some(link) if !link.is_ethernet() => Err(format!("{} has no link-layer addresses", link.name)),
        Some(link) => Ok(Hop { backend, device, link, gateway }),
    }
}

fn routed_by(view: &View, backend: IpAddr) -> Option<u32> {
    match view.routes.get(&backend)? {
        Route::Through { device, .. } | Route::Encapsulated { device } => Some(*device),
        Route::Local | Route::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::testing::{BR0, ETH3, POD, V1, V2, V3, ip, lab, mac, meet};

    /// `redirect-peer v1: port v1 of bridge br0`
    fn described(view: &View, chosen: &Chosen) -> String {
        let through = match chosen.way {
            Way::Stack => "",
            Way::Neighbour { ifindex } | Way::Peer { ifindex } => &format!(" {}", view.name(ifindex)),
        };
        format!("{}{through}: {}", chosen.way.name(), chosen.why)
    }

    fn check(view: &View, backend: &str, expected: &str) -> Chosen {
        let chosen = choose(view, ip(backend), WaySetting::Auto, None).expect("a way of our own choice");
        assert_eq!(described(view, &chosen), expected, "{backend}");
        chosen
    }

    #[test]
    fn each_backend_gets_the_best_way_there_is() {
        let mut view = lab();
        check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        check(&view, "10.0.0.3", "redirect-peer v2: port v2 of bridge br0");
        check(&view, "10.0.0.4", "redirect-neigh br0: its link-layer address on br0 is not known yet");
        check(&view, "172.16.0.1", "redirect-neigh br0: it is behind the router 10.0.0.9 on br0");
        check(&view, "10.1.0.1", "redirect-peer pod: the other end of pod");
        check(&view, "192.0.2.9", "redirect-neigh eth3: eth3 does not lead into another namespace");
        check(&view, "10.9.0.1", "stack: wg0 has no link-layer addresses");
        check(&view, "198.51.100.1", "stack: it is an address of this host");
        check(&view, "203.0.113.1", "stack: no route leads to it");
        check(&view, "203.0.113.2", "stack: no route leads to it");
        view.routes.insert(ip("203.0.113.3"), Route::Encapsulated { device: ETH3 });
        check(&view, "203.0.113.3", "stack: its route through eth3 wraps the packets");
    }

    #[test]
    fn a_veth_is_taken_only_where_the_backend_itself_is_at_its_other_end() {
        let mut view = lab();
        meet(&mut view, POD, "10.1.0.1", mac(8));
        check(
            &view,
            "10.1.0.1",
            "redirect-neigh pod: it has 02:00:00:00:00:08, the other end of pod has 02:00:00:00:00:09",
        );
        for (peer, why) in [
            (Peer::Port, "the other end of v1 is itself a port of a bridge"),
            (Peer::Unseen, "what is at the other end of v1 cannot be seen"),
        ] {
            let mut view = lab();
            view.links.get_mut(&V1).expect("the lab has v1").peer = Some(peer);
            check(&view, "10.0.0.2", &format!("redirect-neigh br0: {why}"));
        }
        let mut view = lab();
        meet(&mut view, BR0, "10.0.0.2", mac(77));
        check(&view, "10.0.0.2", "redirect-neigh br0: no veth of bridge br0 leads to 02:00:00:00:00:4d");
        view.forwarding.insert((BR0, mac(77)), [ETH3].into());
        check(&view, "10.0.0.2", "redirect-neigh br0: eth3 does not lead into another namespace");
    }

    #[test]
    fn a_known_port_stays_when_the_neighbour_and_the_bridge_forget() {
        let mut view = lab();
        let before = check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        view.neighbours.clear();
        view.forwarding.clear();
        let after = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!(after, before);
    }

    #[test]
    fn a_port_is_left_when_its_link_vanishes() {
        let mut view = lab();
        let before = check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        view.links.remove(&V1);
        view.forwarding.clear();
        let after = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!(described(&view, &after), "redirect-neigh br0: no veth of bridge br0 leads to 02:00:00:00:00:01");
    }

    #[test]
    fn a_port_is_followed_when_the_neighbours_address_changes() {
        let mut view = lab();
        let before = check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        meet(&mut view, BR0, "10.0.0.2", mac(3));
        let after = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!((after.port, after.mac), (Some(V3), Some(mac(3))));
    }

    #[test]
    fn a_port_is_followed_when_the_bridge_sees_the_address_elsewhere() {
        let mut view = lab();
        let before = check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        view.links.get_mut(&V3).expect("the lab has v3").peer = Some(Peer::Station(mac(1)));
        let stays = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!(stays.port, Some(V1), "the bridge still sees it at v1");
        view.forwarding.insert((BR0, mac(1)), [V3].into());
        let moved = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!(moved.port, Some(V3));
    }

    #[test]
    fn of_two_ports_with_one_address_the_one_before_is_kept_and_none_is_guessed() {
        let mut view = lab();
        view.forwarding.clear();
        view.links.get_mut(&V2).expect("the lab has v2").peer = Some(Peer::Station(mac(1)));
        let none = check(&view, "10.0.0.2", "redirect-neigh br0: several ports of br0 lead to 02:00:00:00:00:01");
        assert_eq!(none.port, None);
        let before = Chosen { port: Some(V2), ..none };
        let after = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!(after.port, Some(V2));
    }

    #[test]
    fn what_was_known_on_another_device_is_not_believed() {
        let mut view = lab();
        let before = check(&view, "10.0.0.2", "redirect-peer v1: port v1 of bridge br0");
        view.routes.insert(ip("10.0.0.2"), Route::Through { device: ETH3, gateway: None });
        let after = choose(&view, ip("10.0.0.2"), WaySetting::Auto, Some(&before)).expect("a way of our own choice");
        assert_eq!((after.way, after.mac), (Way::Neighbour { ifindex: ETH3 }, None));
    }

    #[test]
    fn a_way_that_was_asked_for_is_taken_or_refused_with_the_reason() {
        let view = lab();
        let forced = |backend: &str, setting| match choose(&view, ip(backend), setting, None) {
            Ok(chosen) => described(&view, &chosen),
            Err(impossible) => impossible.to_string(),
        };
        assert_eq!(forced("10.0.0.2", WaySetting::Stack), "stack: asked for");
        assert_eq!(forced("10.0.0.2", WaySetting::RedirectNeigh), "redirect-neigh br0: asked for");
        assert_eq!(forced("10.0.0.2", WaySetting::RedirectPeer), "redirect-peer v1: port v1 of bridge br0");
        assert_eq!(
            forced("192.0.2.9", WaySetting::RedirectPeer),
            "backend 192.0.2.9: way redirect-peer cannot be: eth3 does not lead into another namespace; \
             use `way = \"auto\"`"
        );
        assert_eq!(
            forced("10.9.0.1", WaySetting::RedirectNeigh),
            "backend 10.9.0.1: way redirect-neigh cannot be: wg0 has no link-layer addresses; use `way = \"auto\"`"
        );
    }

    #[test]
    fn a_redirect_by_xdp_is_refused_where_the_device_takes_none() {
        let forced = |view: &View, backend: &str| match choose(view, ip(backend), WaySetting::XdpRedirect, None) {
            Ok(chosen) => described(view, &chosen),
            Err(impossible) => impossible.to_string(),
        };
        assert_eq!(forced(&lab(), "192.0.2.9"), "redirect-neigh eth3: asked for");
        for (backend, why) in [
            ("10.0.0.2", "br0 takes no packets from XDP"),
            ("10.1.0.1", "pod takes no packets from XDP, unless GRO is on at its other end"),
            ("10.9.0.1", "wg0 has no link-layer addresses"),
            ("203.0.113.1", "no route leads to it"),
        ] {
            assert_eq!(
                forced(&lab(), backend),
                format!("backend {backend}: way xdp-redirect cannot be: {why}; use `way = \"auto\"`")
            );
        }
        let mut view = lab();
        view.links.get_mut(&POD).expect("the lab has pod").xdp = Some(crate::network::XdpFeatures(0x67));
        assert_eq!(forced(&view, "10.1.0.1"), "redirect-neigh pod: asked for");
    }
}
