//! From what is wanted to what that means on this host: interfaces become addresses, and each configured service
//! becomes one service of the kernel for each family, protocol and port.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{
    addr::{Addr, Family, Port, Protocol},
    service::SocketKey,
};

use super::{At, Choice, Desired, Listen, Part, Rejected, Schedule, Service, Target};
use crate::plan::tables::ServiceKey;

/// The services of the kernel that are wanted. No two have a frontend in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// By what they are known by.
    pub services: BTreeMap<ServiceKey, CompiledService>,
    /// What could not be, and why; the rest does not wait for it.
    pub rejected: Vec<Rejected>,
}

/// One family, protocol and port of a configured service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledService {
    /// Where clients connect to.
    pub frontends: BTreeSet<SocketKey>,
    /// What is chosen once; always [`Schedule::PerFlow`] for TCP.
    pub schedule: Schedule,
    /// How a backend is chosen, and among which: one at least.
    pub choice: Choice<SocketKey>,
}

/// Makes services of the kernel of the configured ones, given the global addresses of each interface.
///
/// An interface that is not there, or has no address, simply has no frontends. A family without backends is left to
/// the host.
pub fn resolve(desired: &Desired, interfaces: &BTreeMap<String, BTreeSet<IpAddr>>) -> Compiled {
    let mut compiled = Compiled::default();
    let mut taken: BTreeMap<SocketKey, &str> = BTreeMap::new();
    for service in &desired.services {
        for (frontend, listen) in frontends(service, interfaces) {
            let Some((key, choice)) = behind(service, frontend) else { continue };
            let reject = |part, why| Rejected { service: service.name.clone(), part, why };
            if let Some(other) = taken.get(&frontend) {
                let why = format!("frontend {frontend} is claimed by service {other} as well; let one of them have it");
                compiled.rejected.push(reject(Part::Listen(listen.clone()), why));
                continue;
            }
            let is_frontend = |target: &&&Target| socket(target, frontend) == frontend;
            if let Some(target) = service.choice.backends().iter().find(is_frontend) {
                let why = format!("backend {frontend} is the frontend itself; remove it, or give it another port");
                compiled.rejected.push(reject(Part::Backend(**target), why));
                continue;
            }
            taken.insert(frontend, &service.name);
            let schedule = match frontend.protocol {
                Protocol::UDP => service.schedule,
                _ => Schedule::PerFlow,
            };
            compiled
                .services
                .entry(key)
                .or_insert_with(|| CompiledService { frontends: BTreeSet::new(), schedule, choice })
                .frontends
                .insert(frontend);
        }
    }
    compiled
}

/// The frontends of a service, each once and with the listener that it is of.
pub(crate) fn frontends<'s>(
    service: &'s Service,
    interfaces: &BTreeMap<String, BTreeSet<IpAddr>>,
) -> BTreeMap<SocketKey, &'s Listen> {
    let mut frontends = BTreeMap::new();
    for listen in &service.listens {
        let addresses: Vec<IpAddr> = match &listen.at {
            At::Address(address) => vec![*address],
            At::Interface(name) => interfaces.get(name).into_iter().flatten().copied().collect(),
        };
        for address in addresses {
            for protocol in &listen.protocols {
                let key = SocketKey::new(Addr::from(address), Port::new(listen.port), *protocol);
                frontends.entry(key).or_insert(listen);
            }
        }
    }
    frontends
}

/// Where a backend is asked for what comes to a frontend.
fn socket(target: &Target, frontend: SocketKey) -> SocketKey {
    let port = Port::new(target.port_behind(frontend.port.number()));
    SocketKey::new(target.address.into(), port, frontend.protocol)
}

/// The service of the kernel a frontend belongs to, and the choice it has; nothing where the family has no backends.
fn behind(service: &Service, frontend: SocketKey) -> Option<(ServiceKey, Choice<SocketKey>)> {
    let family = frontend.address.family();
    let choice =
        service.choice.filter_map(|target: &Target| (target.family() == family).then(|| socket(target, frontend)));
    let key = ServiceKey {
        name: service.name.clone(),
        family: match family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        protocol: frontend.protocol.0,
        port: frontend.port.number(),
    };
    (!choice.backends().is_empty()).then_some((key, choice))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Listen;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a valid address")
    }

    fn service(name: &str, at: At, schedule: Schedule, backends: &[&str]) -> Service {
        let protocols = [Protocol::UDP, Protocol::TCP].into();
        let targets = backends.iter().map(|text| Target { address: ip(text), port: None }).collect();
        let listens = vec![Listen { at, port: 53, protocols }];
        Service { name: name.to_owned(), listens, schedule, choice: Choice::RoundRobin(targets) }
    }

    fn eth3(addresses: &[&str]) -> BTreeMap<String, BTreeSet<IpAddr>> {
        [("eth3".to_owned(), addresses.iter().map(|text| ip(text)).collect())].into()
    }

    /// What came of it, a line for each service of the kernel.
    fn dump(compiled: &Compiled) -> Vec<String> {
        let line = |(key, service): (&ServiceKey, &CompiledService)| {
            let list = |keys: Vec<String>| keys.join(" ");
            let frontends = list(service.frontends.iter().map(ToString::to_string).collect());
            let backends = list(service.choice.backends().iter().map(ToString::to_string).collect());
            format!("{} {}: {frontends} -> {backends}", key.name, service.schedule.name())
        };
        compiled.services.iter().map(line).collect()
    }

    #[test]
    fn an_interface_becomes_its_addresses_and_a_service_one_for_each_family_and_protocol() {
        let at = At::Interface("eth3".to_owned());
        let services = vec![service("dns", at, Schedule::PerPacket, &["10.0.0.2", "fd00::2", "10.0.0.3"])];
        let compiled = resolve(&Desired { services }, &eth3(&["192.0.2.1", "192.0.2.2", "2001:db8::1"]));
        let expected = [
            "dns per-flow: 192.0.2.1:53/tcp 192.0.2.2:53/tcp -> 10.0.0.2:53/tcp 10.0.0.3:53/tcp",
            "dns per-packet: 192.0.2.1:53/udp 192.0.2.2:53/udp -> 10.0.0.2:53/udp 10.0.0.3:53/udp",
            "dns per-flow: [2001:db8::1]:53/tcp -> [fd00::2]:53/tcp",
            "dns per-packet: [2001:db8::1]:53/udp -> [fd00::2]:53/udp",
        ];
        assert_eq!(dump(&compiled), expected);
        assert_eq!(compiled.rejected, []);
    }

    #[test]
    fn a_family_without_backends_and_an_interface_without_addresses_are_left_to_the_host() {
        let at = || At::Interface("eth3".to_owned());
        let services = vec![service("dns", at(), Schedule::PerFlow, &["10.0.0.2"])];
        assert_eq!(dump(&resolve(&Desired { services: services.clone() }, &eth3(&["2001:db8::1"]))), [""; 0]);
        assert_eq!(dump(&resolve(&Desired { services }, &BTreeMap::new())), [""; 0]);
    }

    #[test]
    fn what_two_services_claim_once_interfaces_have_addresses_goes_to_the_first() {
        let services = vec![
            service("a", At::Address(ip("192.0.2.1")), Schedule::PerFlow, &["10.0.0.2"]),
            service("b", At::Interface("eth3".to_owned()), Schedule::PerFlow, &["10.0.0.3"]),
        ];
        let compiled = resolve(&Desired { services }, &eth3(&["192.0.2.1", "192.0.2.2"]));
        let shown: Vec<_> = compiled.rejected.iter().map(ToString::to_string).collect();
        let why = |frontend| {
            format!("service b: frontend {frontend} is claimed by service a as well; let one of them have it")
        };
        assert_eq!(shown, [why("192.0.2.1:53/tcp"), why("192.0.2.1:53/udp")]);
        assert_eq!(dump(&compiled)[2], "b per-flow: 192.0.2.2:53/tcp -> 10.0.0.3:53/tcp");
    }

    #[test]
    fn an_address_of_the_interface_is_no_backend_on_the_same_port() {
        let at = At::Interface("eth3".to_owned());
        let services = vec![service("dns", at, Schedule::PerFlow, &["192.0.2.1", "10.0.0.2"])];
        let compiled = resolve(&Desired { services }, &eth3(&["192.0.2.1"]));
        assert_eq!(compiled.services.len(), 0);
        assert_eq!(
            compiled.rejected[0].to_string(),
            "service dns: backend 192.0.2.1:53/tcp is the frontend itself; remove it, or give it another port"
        );
    }
}
