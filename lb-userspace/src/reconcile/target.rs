//! What is to be brought about: a function of what is wanted, of the network and of what was chosen before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    addr::{Addr, Family},
    backend::Way,
};

use crate::{
    dataplane::attach::Hooks,
    model::{
        At, Desired, Part, Rejected, Service,
        resolve::{Compiled, frontends, resolve},
    },
    network::{
        Route, View,
        early::{self, Early},
        hooks,
        way::{self, Chosen, Impossible},
    },
    settings::{HookSetting, Settings, WaySetting},
};

/// Services, ways and hooks, decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The services of the kernel.
    pub compiled: Compiled,
    /// The way to each backend.
    pub ways: BTreeMap<IpAddr, Chosen>,
    /// The interfaces that clients come in by.
    pub clients: BTreeSet<u32>,
    /// Where XDP looks first, and why not elsewhere.
    pub early: Early,
    /// The programs wanted on each interface.
    pub hooks: BTreeMap<u32, Hooks>,
    /// What cannot be as it was asked for. A configuration with any is refused; once in force, the rest goes on.
    pub faults: Vec<Rejected>,
    /// What someone should look at.
    pub warnings: Vec<String>,
}

impl Target {
    /// Decides everything, `previous` being what was decided before. Backends that `remain` are in the maps still, desired
    /// or not: flows may go to them, and what they answer is taken. XDP looks first at the interfaces that are `held`.
    pub fn decide(
        desired: &Desired,
        remain: &BTreeSet<IpAddr>,
        settings: &Settings,
        view: &View,
        previous: &Self,
        held: &BTreeSet<u32>,
    ) -> Self {
        let compiled = resolve(desired, &view.addresses_by_name());
        let (mut clients, homeless) = hooks::clients(view, &settings.interfaces, desired);
        if !homeless.is_empty() {
            clients.extend(previous.clients.iter().filter(|ifindex| view.links.contains_key(ifindex)));
        }
        let mut faults = compiled.rejected.clone();
        faults.extend(homeless);
        let mut ways = BTreeMap::new();
        for backend in backends(desired).union(remain) {
            let (chosen, impossible) = choose(view, *backend, settings.way, previous.ways.get(backend));
            ways.insert(*backend, chosen);
            faults.extend(impossible.and_then(|impossible| blame(desired, &impossible)));
        }
        let early = early::decide(view, settings, &clients, &ways, held);
        faults.extend(early.impossible.iter().map(|(ifindex, why)| impossible(&view.name(*ifindex), why, settings)));
        let warnings = warnings(desired, settings, view, &clients, &ways);
        let hooks = hooks::wanted(view, &clients, &ways, &early);
        Self { compiled, ways, clients, early, hooks, faults, warnings }
    }

    /// The words that go into the maps.
    pub fn words(&self) -> BTreeMap<IpAddr, Way> {
        self.ways.iter().map(|(backend, chosen)| (*backend, chosen.way)).collect()
    }

    /// Gives up the ways whose replies would come in by an interface that could not be hooked; a reply that is not
    /// rewritten would reach the client from a stranger. Tells whether there were any.
    pub fn avoid(&mut self, view: &View, unhooked: &BTreeMap<u32, String>) -> bool {
        let mut any = false;
        for chosen in self.ways.values_mut() {
            let replies = match chosen.way {
                Way::Stack => continue,
                Way::Neighbour { ifindex } | Way::Peer { ifindex } => ifindex,
            };
            if let Some(why) = unhooked.get(&replies) {
                chosen.way = Way::Stack;
                chosen.why = format!("replies cannot be taken: {why}");
                any = true;
            }
        }
        if any {
            self.hooks = hooks::wanted(view, &self.clients, &self.ways, &self.early);
        }
        any
    }

    /// Lets no client in at interfaces where the stack's replies cannot be taken: they would leave with the backend's
    /// address. The hook stays wanted, to be tried again. Tells what to say about it.
    pub fn shut(&mut self, unhooked: &BTreeMap<u32, String>) -> Vec<String> {
        let mut said = Vec::new();
        for (ifindex, hooks) in self.hooks.iter_mut().filter(|(_, hooks)| hooks.egress) {
            if let Some(why) = unhooked.get(ifindex) {
                hooks.ingress = hooks::without_clients(hooks.ingress);
                said.push(format!(
                    "no client is let in at {}: what the stack answers them there cannot be rewritten: {why}",
                    hooks.name
                ));
            }
        }
        said
    }

    /// What is to be said of interfaces of clients at which XDP was asked for and the kernel has refused it.
    pub fn refused_xdp(&self, refused: &BTreeMap<u32, String>, settings: &Settings) -> Vec<Rejected> {
        let is_asked_for = |(ifindex, _): &(&u32, &String)| settings.asks_for_xdp() && self.clients.contains(ifindex);
        let fault = |(ifindex, why): (&u32, &String)| Some(impossible(&self.hooks.get(ifindex)?.name, why, settings));
        refused.iter().filter(is_asked_for).filter_map(fault).collect()
    }

    /// Goes on taking the stack's replies where they are taken now: who is removed may be about to answer.
    pub fn keep_egress(&mut self, view: &View, current: &BTreeMap<u32, Hooks>) {
        let is_kept = |(ifindex, hooks): &(&u32, &Hooks)| hooks.egress && view.links.contains_key(ifindex);
        for (ifindex, _) in current.iter().filter(is_kept) {
            let none = || Hooks { name: view.name(*ifindex), ingress: None, egress: false, xdp: None };
            self.hooks.entry(*ifindex).or_insert_with(none).egress = true;
        }
    }
}

/// The fault of an interface at which XDP was asked for and cannot be.
fn impossible(interface: &str, why: &str, settings: &Settings) -> Rejected {
    let asked = match settings.hook {
        HookSetting::Xdp | HookSetting::XdpGeneric => format!("hook {}", settings.hook.name()),
        HookSetting::Auto | HookSetting::Tc => format!("way {}", settings.way.name()),
    };
    Rejected {
        service: String::new(),
        part: Part::Interface(interface.to_owned()),
        why: format!("{asked} cannot be at {interface}: {why}; use `hook = \"auto\"` and `way = \"auto\"`"),
    }
}

/// The addresses of all backends.
pub fn backends(desired: &Desired) -> BTreeSet<IpAddr> {
    let targets = desired.services.iter().flat_map(|service| service.choice.backends());
    targets.map(|target| target.address).collect()
}

/// The way that was asked for; where that cannot be, the one before or the best there is, and the fault.
fn choose(
    view: &View,
    backend: IpAddr,
    setting: WaySetting,
    previous: Option<&Chosen>,
) -> (Chosen, Option<Impossible>) {
    match way::choose(view, backend, setting, previous) {
        Ok(chosen) => (chosen, None),
        Err(impossible) => {
            let best = way::choose(view, backend, WaySetting::Auto, previous);
            let chosen = best.unwrap_or_else(|_| unreachable!("the automatic choice is always possible"));
            (chosen, Some(impossible))
        }
    }
}

/// The fault of the first service that names the backend.
fn blame(desired: &Desired, impossible: &Impossible) -> Option<Rejected> {
    let named = |service: &Service| {
        let target = service.choice.backends().into_iter().find(|target| target.address == impossible.backend)?;
        let part = Part::Backend(*target);
        Some(Rejected { service: service.name.clone(), part, why: impossible.to_string() })
    };
    desired.services.iter().find_map(named)
}

fn warnings(
    desired: &Desired,
    settings: &Settings,
    view: &View,
    clients: &BTreeSet<u32>,
    ways: &BTreeMap<IpAddr, Chosen>,
) -> Vec<String> {
    let gone = settings.interfaces.iter().filter(|name| view.ifindex(name).is_none());
    let mut warnings: Vec<String> =
        gone.map(|name| format!("there is no interface {name}, by which clients are said to come in")).collect();
    let addresses = view.addresses_by_name();
    for service in &desired.services {
        for listen in &service.listens {
            if let At::Interface(name) = &listen.at {
                match view.ifindex(name) {
                    None => warnings.push(format!("service {}: there is no interface {name}", service.name)),
                    Some(ifindex) if view.addresses.get(&ifindex).is_none_or(BTreeSet::is_empty) => {
                        warnings.push(format!("service {}: interface {name} has no address", service.name));
                    }
                    Some(_) => {}
                }
            }
        }
        warnings.extend(Family::ALL.into_iter().filter_map(|family| unreached(service, family, &addresses)));
    }
    if clients.is_empty() {
        warnings.push("clients come in by no interface: nothing is balanced".into());
    }
    for family in Family::ALL {
        let leaves = |backend: &&IpAddr| {
            Addr::from(**backend).family() == family && !matches!(view.routes.get(backend), Some(Route::Local))
        };
        if let Some(backend) = ways.keys().find(leaves)
            && !view.forwards.contains(&family)
        {
            let sysctl = match family {
                Family::V4 => "net.ipv4.ip_forward",
                Family::V6 => "net.ipv6.conf.all.forwarding",
            };
            warnings.push(format!(
                "this host does not forward {family}: what backend {backend} answers, or is asked through the stack, \
                 goes nowhere; set {sysctl} = 1"
            ));
        }
    }
    warnings
}

/// A warning where backends of this family are behind interfaces that have addresses of the other one only.
fn unreached(service: &Service, family: Family, addresses: &BTreeMap<String, BTreeSet<IpAddr>>) -> Option<String> {
    let backends = service.choice.backends();
    let backend = backends.iter().find(|target| target.family() == family)?;
    let frontends = frontends(service, addresses);
    // Without any, the interface itself has been told.
    if frontends.is_empty() || frontends.keys().any(|frontend| frontend.address.family() == family) {
        return None;
    }
    let name = service.listens.iter().find_map(|listen| match &listen.at {
        At::Interface(name) => Some(name),
        At::Address(_) => None,
    })?;
    Some(format!(
        "service {}: interface {name} has no {family} address: no client is sent to backend {backend}; add one, or \
         remove the backend",
        service.name
    ))
}

#[cfg(test)]
mod tests {
    use lb_common::addr::Protocol;

    use super::*;
    use crate::{
        model::{Choice, Listen, Schedule, Target as Backend},
        network::testing::{BR0, ETH3, V1, ip, lab},
    };

    fn desired(at: At, backends: &[&str]) -> Desired {
        let backend = |text: &&str| Backend { address: ip(text), port: None };
        Desired {
            services: vec![Service {
                name: "dns".into(),
                listens: vec![Listen { at, port: 53, protocols: [Protocol::UDP].into() }],
                schedule: Schedule::PerFlow,
                choice: Choice::RoundRobin(backends.iter().map(backend).collect()),
            }],
        }
    }

    fn on_eth3(backends: &[&str]) -> Desired {
        desired(At::Interface("eth3".into()), backends)
    }

    fn decide(desired: &Desired, settings: &Settings, view: &View) -> Target {
        Target::decide(desired, &BTreeSet::new(), settings, view, &Target::default(), &BTreeSet::new())
    }

    #[test]
    fn an_interface_means_all_its_addresses_of_the_backends_family() {
        let target = decide(&on_eth3(&["10.0.0.2"]), &Settings::default(), &lab());
        let frontends: Vec<String> =
            target.compiled.services.values().flat_map(|one| &one.frontends).map(ToString::to_string).collect();
        assert_eq!(frontends, ["192.0.2.53:53/udp", "192.0.2.54:53/udp"]);
        assert_eq!(target.clients, [ETH3].into());
        assert_eq!(target.words(), [(ip("10.0.0.2"), Way::Peer { ifindex: V1 })].into());
        assert_eq!((target.faults, target.warnings), (Vec::new(), Vec::new()));
    }

    #[test]
    fn a_way_that_cannot_be_is_a_fault_and_another_one_goes_on() {
        let settings = Settings { way: WaySetting::RedirectPeer, ..Settings::default() };
        let target = decide(&on_eth3(&["10.0.0.2", "10.0.0.4"]), &settings, &lab());
        assert_eq!(target.ways[&ip("10.0.0.4")].way, Way::Neighbour { ifindex: BR0 });
        assert_eq!(
            target.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "service dns: backend 10.0.0.4: way redirect-peer cannot be: its link-layer address on br0 is not known yet; \
              use `way = \"auto\"`"
            ]
        );
    }

    #[test]
    fn clients_stay_where_they_were_when_an_address_is_taken_away() {
        let desired = desired(At::Address(ip("192.0.2.53")), &["10.0.0.2"]);
        let mut view = lab();
        let before = decide(&desired, &Settings::default(), &view);
        view.addresses.remove(&ETH3);
        let after = Target::decide(&desired, &BTreeSet::new(), &Settings::default(), &view, &before, &BTreeSet::new());
        assert_eq!(after.clients, [ETH3].into());
        assert_eq!(after.faults.len(), 1);
    }

    #[test]
    fn a_backend_whose_replies_cannot_be_taken_is_reached_through_the_stack() {
        let view = lab();
        let mut target = decide(&on_eth3(&["10.0.0.2", "10.0.0.3"]), &Settings::default(), &view);
        assert!(!target.avoid(&view, &[(99, "busy".to_owned())].into()));
        assert!(target.avoid(&view, &[(V1, "busy".to_owned())].into()));
        let chosen = &target.ways[&ip("10.0.0.2")];
        assert_eq!((chosen.way, chosen.why.as_str()), (Way::Stack, "replies cannot be taken: busy"));
        assert_ne!(target.ways[&ip("10.0.0.3")].way, Way::Stack);
        assert!(target.hooks[&ETH3].egress);
    }

    #[test]
    fn a_backend_of_a_family_that_the_interface_has_no_address_of_is_told() {
        let settings = Settings { way: WaySetting::Stack, ..Settings::default() };
        let mut view = lab();
        let both = on_eth3(&["10.0.0.2", "fd00::2"]);
        assert_eq!(decide(&both, &settings, &view).warnings, [""; 0]);
        view.addresses.insert(ETH3, [ip("192.0.2.53")].into());
        assert_eq!(
            decide(&both, &settings, &view).warnings,
            ["service dns: interface eth3 has no IPv6 address: no client is sent to backend fd00::2; add one, or \
              remove the backend"]
        );
        assert_eq!(decide(&on_eth3(&["10.0.0.2"]), &settings, &view).warnings, [""; 0]);
        view.addresses.insert(ETH3, [ip("2001:db8::53")].into());
        assert_eq!(
            decide(&both, &settings, &view).warnings,
            ["service dns: interface eth3 has no IPv4 address: no client is sent to backend 10.0.0.2; add one, or \
              remove the backend"]
        );
        let mut elsewhere = both;
        elsewhere.services[0].listens.push(Listen {
            at: At::Address(ip("192.0.2.60")),
            port: 53,
            protocols: [Protocol::UDP].into(),
        });
        assert_eq!(decide(&elsewhere, &settings, &view).warnings, [""; 0], "another listener reaches it");
    }

    #[test]
    fn a_named_interface_that_has_vanished_is_told() {
        let settings = Settings { interfaces: vec!["eth3".into(), "pod".into()], ..Settings::default() };
        let mut view = lab();
        let dns = desired(At::Address(ip("192.0.2.53")), &["10.0.0.2"]);
        assert_eq!(decide(&dns, &settings, &view).warnings, [""; 0]);
        view.links.retain(|_, link| link.name != "pod");
        let target = decide(&dns, &settings, &view);
        assert_eq!(target.warnings, ["there is no interface pod, by which clients are said to come in"]);
        assert_eq!(target.clients, [ETH3].into(), "the other one goes on");
    }

    #[test]
    fn no_client_is_let_in_where_the_stacks_replies_cannot_be_taken() {
        let view = lab();
        let stack = Settings { way: WaySetting::Stack, ..Settings::default() };
        let mut target = decide(&on_eth3(&["10.0.0.2"]), &stack, &view);
        assert_eq!(target.shut(&[(99, "busy".to_owned())].into()), [""; 0]);
        assert_eq!(
            target.shut(&[(ETH3, "busy".to_owned())].into()),
            ["no client is let in at eth3: what the stack answers them there cannot be rewritten: busy"]
        );
        assert_eq!(target.hooks[&ETH3], Hooks { name: "eth3".into(), ingress: None, egress: true, xdp: None });
        let mut target = decide(&on_eth3(&["10.0.0.2"]), &Settings::default(), &view);
        assert_eq!(target.shut(&[(ETH3, "busy".to_owned())].into()), [""; 0], "no reply comes through the stack");
    }

    #[test]
    fn what_will_not_work_is_told() {
        let mut view = View { forwards: BTreeSet::new(), ..lab() };
        let stack = Settings { way: WaySetting::Stack, ..Settings::default() };
        assert_eq!(
            decide(&on_eth3(&["10.0.0.2"]), &stack, &view).warnings,
            ["this host does not forward IPv4: what backend 10.0.0.2 answers, or is asked through the stack, goes \
              nowhere; set net.ipv4.ip_forward = 1"]
        );
        assert_eq!(decide(&on_eth3(&["198.51.100.1"]), &stack, &view).warnings, [""; 0], "it stays on this host");
        view.forwards.insert(Family::V4);
        assert_eq!(decide(&on_eth3(&["10.0.0.2"]), &stack, &view).warnings, [""; 0]);
        view.addresses.remove(&ETH3);
        assert_eq!(
            decide(&on_eth3(&["10.0.0.2"]), &stack, &view).warnings,
            ["service dns: interface eth3 has no address"]
        );
        view.links.remove(&ETH3);
        assert_eq!(
            decide(&on_eth3(&["10.0.0.2"]), &stack, &view).warnings,
            ["service dns: there is no interface eth3", "clients come in by no interface: nothing is balanced"]
        );
    }
}
