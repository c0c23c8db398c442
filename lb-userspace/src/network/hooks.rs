//! Which programs are wanted on which interfaces: a function of the view, of where clients come in and of the ways to
//! the backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::backend::Way;

use super::{Link, View, way::Chosen};
use crate::{
    dataplane::attach::{Hooks, Role},
    model::{At, Desired, Listen, Part, Rejected, Service},
};

/// The interfaces that clients come in by: those `named` if any are, else those of the frontends. A named one that is
/// not there has no clients. Beside them, the listeners whose address is on no interface, or on one that packets from
/// elsewhere never come in by: nobody said where their clients come in, and the network does not tell.
pub fn clients(view: &View, named: &[String], desired: &Desired) -> (BTreeSet<u32>, Vec<Rejected>) {
    if !named.is_empty() {
        return (named.iter().filter_map(|name| view.ifindex(name)).collect(), Vec::new());
    }
    let mut interfaces = BTreeSet::new();
    let mut homeless = Vec::new();
    for service in &desired.services {
        for listen in &service.listens {
            match &listen.at {
                At::Interface(name) => interfaces.extend(view.ifindex(name)),
                At::Address(address) => {
                    let owners = owners(view, *address);
                    if owners.is_empty() {
                        homeless.push(no_interface(service, listen, *address));
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

fn no_interface(service: &Service, listen: &Listen, address: IpAddr) -> Rejected {
    let why = format!(
        "no interface that clients could come in by has the address {address}; \
         name those they come in by: interfaces = [\"…\"]"
    );
    Rejected { service: service.name.clone(), part: Part::Listen(listen.clone()), why }
}

fn owners(view: &View, address: IpAddr) -> Vec<u32> {
    let takes_clients =
        |ifindex: &u32| view.links.get(ifindex).is_some_and(|link| link.is_ethernet() && !link.is_dummy());
    let owns = |(ifindex, addresses): (&u32, &BTreeSet<IpAddr>)| addresses.contains(&address).then_some(*ifindex);
    view.addresses.iter().filter_map(owns).filter(takes_clients).collect()
}

/// The programs wanted on each interface.
///
/// Every veth of a bridge that has backends is hooked, and the bridge itself: a restarted container answers from its
/// first packet on, and a bridge that hands its packets to netfilter has them rewritten before.
pub fn wanted(view: &View, clients: &BTreeSet<u32>, ways: &BTreeMap<IpAddr, Chosen>) -> BTreeMap<u32, Hooks> {
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
            hooks.insert(*ifindex, Hooks { name: next.name.clone(), ingress, egress });
        }
    }
    hooks
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
        model::{Choice, Schedule},
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
        let each = |hooks: &Hooks| format!("{}={}{}", hooks.name, role(hooks.ingress), egress(hooks.egress));
        hooks.values().map(each).collect::<Vec<_>>().join(" ")
    }

    fn wanted_for(view: &View, client: &str, backends: &[&str], setting: WaySetting) -> BTreeMap<u32, Hooks> {
        let clients = view.ifindex(client).into_iter().collect();
        let chosen = |text: &&str| {
            let backend = testing::ip(text);
            (backend, crate::network::way::choose(view, backend, setting, None).expect("a way that can be"))
        };
        wanted(view, &clients, &backends.iter().map(chosen).collect())
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
}
