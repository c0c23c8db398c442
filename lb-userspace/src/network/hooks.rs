//! Which programs are wanted on which interfaces: a function of the view, of where clients come in and of the ways to
//! the backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::backend::Way;

use super::{Link, View, early::Early, way::Chosen};
use crate::{
    dataplane::attach::{Hooks, Role},
    model::{At, Desired, Part, Rejected},
};

/// The interfaces that clients come in by: those `named` if any are, else those of the frontends. One that is not there
/// has no clients. Beside them what cannot be: interfaces that no client's packet can be balanced at, and listeners whose
/// address is on none that it can be; nobody said where their clients come in, and the network does not tell.
pub fn clients(view: &View, named: &[String], desired: &Desired) -> (BTreeSet<u32>, Vec<Rejected>) {
    let mut interfaces = BTreeSet::new();
    let mut homeless = Vec::new();
    for name in named {
        match at_interface(view, name) {
            Ok(ifindex) => interfaces.extend(ifindex),
            Err(why) => homeless.push(Rejected {
                service: String::new(),
                part: Part::Interface(name.clone()),
                why: format!("clients cannot be balanced at {name}: {why}; name those that they come in by instead"),
            }),
        }
    }
    if !named.is_empty() {
        return (interfaces, homeless);
    }
    for service in &desired.services {
        for listen in &service.listens {
            let reject = |why: String| Rejected {
                service: service.name.clone(),
                part: Part::Listen(listen.clone()),
                why: format!("{why}; name those they come in by: interfaces = [\"…\"]"),
            };
            match &listen.at {
                At::Interface(name) => match at_interface(view, name) {
                    Ok(ifindex) => interfaces.extend(ifindex),
                    Err(why) => homeless.push(reject(format!("clients cannot be balanced at {name}: {why}"))),
                },
                At::Address(address) => {
                    let owners = owners(view, *address);
                    if owners.is_empty() {
                        let why = format!("no interface that clients could come in by has the address {address}");
                        homeless.push(reject(why));
                    }
                    interfaces.extend(owners);
                }
            }
        }
    }
    // Several ports of one address are one fault.
    homeless.dedup_by(|one, other| (&one.service, &one.why) == (&other.service, &other.why));
    (interfaces, homeless)
}

/// The interface of this name, if there is one; or why clients cannot be balanced at it.
fn at_interface(view: &View, name: &str) -> Result<Option<u32>, &'static str> {
    let ifindex = view.ifindex(name);
    match ifindex.and_then(|ifindex| view.links.get(&ifindex)).and_then(Link::takes_no_clients) {
        Some(why) => Err(why),
        None => Ok(ifindex),
    }
}

fn owners(view: &View, address: IpAddr) -> Vec<u32> {
    let takes_clients = |ifindex: &u32| view.links.get(ifindex).is_some_and(|link| link.takes_no_clients().is_none());
    let owns = |(ifindex, addresses): (&u32, &BTreeSet<IpAddr>)| addresses.contains(&address).then_some(*ifindex);
    view.addresses.iter().filter_map(owns).filter(takes_clients).collect()
}

/// The programs wanted on each interface.
///
/// Every veth of a bridge that has backends is hooked, and the bridge itself: a restarted container answers from its
/// first packet on, and a bridge that hands its packets to netfilter has them rewritten before.
pub fn wanted(
    view: &View,
    clients: &BTreeSet<u32>,
    ways: &BTreeMap<IpAddr, Chosen>,
    early: &Early,
) -> BTreeMap<u32, Hooks> {
    let mut backends = BTreeSet::new();
    for chosen in ways.values().filter(|chosen| chosen.way != Way::Stack) {
        let Some(device) = chosen.device else { continue };
        backends.insert(device);
        if view.links.get(&device).is_some_and(Link::is_bridge) {
            let is_port = |link: &Link| link.master == Some(device) && link.kind == "veth";
            backends.extend(view.links.iter().filter(|(_, link)| is_port(link)).map(|(port, _)| *port));
        }
    }
    let through_stack = ways.values().any(|chosen| chosen.way == Way::Stack);
    let hooks = |ifindex: u32| Hooks {
        name: view.name(ifindex),
        ingress: role(clients.contains(&ifindex), backends.contains(&ifindex)),
        egress: through_stack && clients.contains(&ifindex),
        xdp: early.modes.get(&ifindex).copied(),
    };
    clients
        .union(&backends)
        .filter(|ifindex| view.links.contains_key(ifindex))
        .map(|ifindex| (*ifindex, hooks(*ifindex)))
        .collect()
}

/// What is attached before the maps change: everything that replies need, nothing taken away, and no client let in
/// that was not before.
pub fn replies_first(current: &BTreeMap<u32, Hooks>, wanted: &BTreeMap<u32, Hooks>) -> BTreeMap<u32, Hooks> {
    let mut hooks = current.clone();
    for (ifindex, next) in wanted {
        let now = current.get(ifindex);
        let role_now = now.and_then(|now| now.ingress);
        let ingress = role(takes_clients(role_now), takes_replies(role_now) || takes_replies(next.ingress));
        let egress = next.egress || now.is_some_and(|now| now.egress);
        if ingress.is_some() || egress {
            // XDP comes last, since it leaves packets to the others.
            let xdp = now.and_then(|now| now.xdp);
            hooks.insert(*ifindex, Hooks { name: next.name.clone(), ingress, egress, xdp });
        }
    }
    hooks
}

/// The same with no client let in.
pub fn without_clients(role_now: Option<Role>) -> Option<Role> {
    role(false, takes_replies(role_now))
}

fn role(clients: bool, backends: bool) -> Option<Role> {
    match (clients, backends) {
        (true, true) => Some(Role::Both),
        (true, false) => Some(Role::Clients),
        (false, true) => Some(Role::Backends),
        (false, false) => None,
    }
}

fn takes_clients(role: Option<Role>) -> bool {
    match role {
        Some(Role::Clients | Role::Both) => true,
        Some(Role::Backends) | None => false,
    }
}

fn takes_replies(role: Option<Role>) -> bool {
    match role {
        Some(Role::Backends | Role::Both) => true,
        Some(Role::Clients) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Protocol;

    use super::*;
    use crate::{
        dataplane::attach::XdpMode,
        model::{Choice, Listen, Schedule, Service},
        network::testing::{self, lab},
        settings::WaySetting,
    };

    fn desired(at: &[At]) -> Desired {
        let listen = |at: &At| Listen { at: at.clone(), port: 53, protocols: [Protocol::UDP].into() };
        Desired {
            services: vec![Service {
                name: "dns".into(),
                listens: at.iter().map(listen).collect(),
                schedule: Schedule::PerFlow,
                choice: Choice::RoundRobin(Vec::new()),
            }],
        }
    }

    fn at_address(text: &str) -> At {
        At::Address(testing::ip(text))
    }

    /// `eth3=clients eth4=both+egress`
    fn dump(hooks: &BTreeMap<u32, Hooks>) -> String {
        let role = |role| match role {
            Some(Role::Clients) => "clients",
            Some(Role::Backends) => "backends",
            Some(Role::Both) => "both",
            None => "none",
        };
        let egress = |egress| if egress { "+egress" } else { "" };
        let xdp = |xdp: Option<XdpMode>| xdp.map_or_else(String::new, |mode| format!("+{}", mode.name()));
        let each =
            |hooks: &Hooks| format!("{}={}{}{}", hooks.name, role(hooks.ingress), egress(hooks.egress), xdp(hooks.xdp));
        hooks.values().map(each).collect::<Vec<_>>().join(" ")
    }

    fn wanted_for(view: &View, client: &str, backends: &[&str], setting: WaySetting) -> BTreeMap<u32, Hooks> {
        let clients = view.ifindex(client).into_iter().collect();
        let chosen = |text: &&str| {
            let backend = testing::ip(text);
            (backend, crate::network::way::choose(view, backend, setting, None).expect("a way that can be"))
        };
        wanted(view, &clients, &backends.iter().map(chosen).collect(), &Early::default())
    }

    #[test]
    fn clients_come_in_where_the_frontends_are() {
        let view = lab();
        let only = |name: &str| (view.ifindex(name).into_iter().collect(), Vec::new());
        assert_eq!(clients(&view, &[], &desired(&[At::Interface("eth3".into())])), only("eth3"));
        let aliases = desired(&[at_address("192.0.2.53"), at_address("192.0.2.54")]);
        assert_eq!(clients(&view, &[], &aliases), only("eth3"));
        let named = ["br0".to_owned(), "gone0".to_owned()];
        assert_eq!(clients(&view, &named, &desired(&[at_address("198.51.100.1")])), only("br0"));
    }

    #[test]
    fn an_address_that_no_interface_takes_clients_for_needs_the_interfaces_named() {
        let view = lab();
        for address in ["198.51.100.1", "192.0.2.99"] {
            let (interfaces, homeless) = clients(&view, &[], &desired(&[at_address(address)]));
            assert!(interfaces.is_empty());
            let messages: Vec<String> = homeless.iter().map(ToString::to_string).collect();
            assert_eq!(
                messages,
                [format!(
                    "service dns: no interface that clients could come in by has the address {address}; \
                     name those they come in by: interfaces = [\"…\"]"
                )]
            );
        }
    }

    #[test]
    fn an_interface_that_no_client_comes_in_by_is_refused_with_the_way_out() {
        let mut view = lab();
        let dummy = Link { kind: "dummy".into(), name: "dummy0".into(), link_layer: 1, ..Link::default() };
        view.links.insert(50, dummy);
        for (name, why) in [
            ("dummy0", "no packet comes in by a dummy device"),
            ("lo", "it is the loopback"),
            ("wg0", "it has no link-layer addresses"),
        ] {
            let at = desired(&[At::Interface(name.into()), At::Interface(name.into())]);
            let (interfaces, homeless) = clients(&view, &[], &at);
            let messages: Vec<String> = homeless.iter().map(ToString::to_string).collect();
            assert_eq!(interfaces, BTreeSet::new());
            assert_eq!(
                messages,
                [format!(
                    "service dns: clients cannot be balanced at {name}: {why}; name those they come in by: \
                     interfaces = [\"…\"]"
                )]
            );
            let (interfaces, homeless) = clients(&view, &["eth3".to_owned()], &at);
            assert_eq!((interfaces.len(), homeless), (1, Vec::new()), "with the way out taken");
            let (interfaces, homeless) = clients(&view, &["eth3".to_owned(), name.to_owned()], &at);
            let messages: Vec<String> = homeless.iter().map(ToString::to_string).collect();
            assert_eq!(interfaces.len(), 1);
            assert_eq!(
                messages,
                [format!("clients cannot be balanced at {name}: {why}; name those that they come in by instead")]
            );
        }
    }

    #[test]
    fn a_bridge_and_all_its_veths_take_replies() {
        let view = lab();
        assert_eq!(
            dump(&wanted_for(&view, "eth3", &["10.0.0.2"], WaySetting::Auto)),
            "eth3=clients br0=backends v1=backends v2=backends v3=backends"
        );
    }

    #[test]
    fn an_interface_with_clients_and_backends_takes_both() {
        let view = lab();
        assert_eq!(dump(&wanted_for(&view, "eth3", &["192.0.2.9"], WaySetting::Auto)), "eth3=both");
    }

    #[test]
    fn through_the_stack_only_the_clients_side_is_hooked() {
        let view = lab();
        assert_eq!(dump(&wanted_for(&view, "eth3", &["10.0.0.2"], WaySetting::Stack)), "eth3=clients+egress");
        assert_eq!(dump(&wanted_for(&view, "eth3", &["10.9.0.1"], WaySetting::Auto)), "eth3=clients+egress");
    }

    #[test]
    fn replies_are_taken_before_clients_are_let_in_and_nothing_is_taken_away() {
        let view = lab();
        let bridge = wanted_for(&view, "eth3", &["10.0.0.2"], WaySetting::Auto);
        let stack = wanted_for(&view, "eth3", &["10.0.0.2"], WaySetting::Stack);
        let none = BTreeMap::new();
        assert_eq!(dump(&replies_first(&none, &bridge)), "br0=backends v1=backends v2=backends v3=backends");
        assert_eq!(
            dump(&replies_first(&stack, &bridge)),
            "eth3=clients+egress br0=backends v1=backends v2=backends v3=backends"
        );
        assert_eq!(replies_first(&bridge, &none), bridge);
        assert_eq!(replies_first(&bridge, &bridge), bridge);
    }

    #[test]
    fn xdp_comes_after_all_that_it_leaves_packets_to() {
        let view = lab();
        let without = wanted_for(&view, "eth3", &["192.0.2.9"], WaySetting::Auto);
        let mut with = without.clone();
        with.values_mut().for_each(|hooks| hooks.xdp = Some(XdpMode::Native));
        assert_eq!(dump(&with), "eth3=both+xdp");
        assert_eq!(dump(&replies_first(&BTreeMap::new(), &with)), "eth3=backends");
        assert_eq!(dump(&replies_first(&without, &with)), "eth3=both");
        assert_eq!(dump(&replies_first(&with, &without)), "eth3=both+xdp", "nothing is taken away");
        assert_eq!(dump(&replies_first(&with, &BTreeMap::new())), "eth3=both+xdp");
        assert_eq!(replies_first(&with, &with), with);
        let mut generic = with.clone();
        generic.values_mut().for_each(|hooks| hooks.xdp = Some(XdpMode::Generic));
        assert_eq!(dump(&replies_first(&with, &generic)), "eth3=both+xdp", "in its mode of before");
    }

    #[test]
    fn xdp_is_wanted_where_it_was_decided_and_programs_are_wanted_at_all() {
        let view = lab();
        let clients = view.ifindex("eth3").into_iter().collect();
        let chosen = crate::network::way::choose(&view, testing::ip("10.0.0.2"), WaySetting::Auto, None);
        let ways = [(testing::ip("10.0.0.2"), chosen.expect("a way that can be"))].into();
        let modes =
            [(testing::ETH3, XdpMode::Native), (testing::V1, XdpMode::Generic), (testing::POD, XdpMode::Native)];
        let early = Early { modes: modes.into(), ..Early::default() };
        assert_eq!(
            dump(&wanted(&view, &clients, &ways, &early)),
            "eth3=clients+xdp br0=backends v1=backends+xdp-generic v2=backends v3=backends"
        );
    }
}
