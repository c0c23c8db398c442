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

use super::{At, Choice, Desired, Schedule, Service, Target};
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

/// A part of what is wanted that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("service {service}: {why}")]
pub struct Rejected {
    /// The configured service's name.
    pub service: String,
    /// Why, and what would be right.
    pub why: String,
}

/// Makes services of the kernel of the configured ones, given the global addresses of each interface.
///
/// An interface that is not there, or has no address, simply has no frontends. A family without backends is left to
/// the host.
pub fn resolve(desired: &Desired, interfaces: &BTreeMap<String, BTreeSet<IpAddr>>) -> Compiled {
    let mut compiled = Compiled::default();
    let mut taken: BTreeMap<SocketKey, &str> = BTreeMap::new();
    for service in &desired.services {
        for frontend in frontends(service, interfaces) {
            let Some((key, choice)) = behind(service, frontend) else { continue };
            let reject = |why| Rejected { service: service.name.clone(), why };
            if let Some(other) = taken.get(&frontend) {
                let why = format!("frontend {frontend} is claimed by service {other} as well; let one of them have it");
                compiled.rejected.push(reject(why));
                continue;
            }
            if choice.backends().contains(&&frontend) {
                let why = format!("backend {frontend} is the frontend itself; remove it, or give it another port");
                compiled.rejected.push(reject(why));
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

/// The frontends of a service, each once.
fn frontends(service: &Service, interfaces: &BTreeMap<String, BTreeSet<IpAddr>>) -> BTreeSet<SocketKey> {
    let mut keys = BTreeSet::new();
    for listen in &service.listens {
        let addresses: Vec<IpAddr> = match &listen.at {
            At::Address(address) => vec![*address],
            At::Interface(name) => interfaces.get(name).into_iter().flatten().copied().collect(),
        };
        for address in addresses {
            let key = |protocol: &Protocol| SocketKey::new(Addr::from(address), Port::new(listen.port), *protocol);
            keys.extend(listen.protocols.iter().map(key));
        }
    }
    keys
}

/// The service of the kernel a frontend belongs to, and the choice it has; nothing where the family has no backends.
fn behind(service: &Service, frontend: SocketKey) -> Option<(ServiceKey, Choice<SocketKey>)> {
    let family = frontend.address.family();
    let choice = service.choice.filter_map(|target: &Target| {
        let port = Port::new(target.port_behind(frontend.port.number()));
        (target.family() == family).then(|| SocketKey::new(target.address.into(), port, frontend.protocol))
    });
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
