//! The exact content of the maps, as values: what a plan results in, and what is read back from a running data path.

use std::collections::BTreeMap;

use lb_common::{
    addr::{Port, Protocol},
    backend::{BackendId, BackendState, Endpoint, EndpointId, Way},
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
};

use crate::selector::words_each;

/// The content of all maps that configuration decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `FRONTENDS`: what is balanced.
    pub frontends: BTreeMap<SocketKey, Frontend>,
    /// `FRONTEND_INFO`, those removed from `frontends` included, until no flow names them.
    pub frontend_infos: BTreeMap<FrontendId, FrontendInfo>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceId, ServiceWord>,
    /// `POLICIES`, those in force only.
    pub policies: BTreeMap<PolicyId, Policy>,
    /// `SLOTS`: the words of each run of a policy in force.
    pub runs: BTreeMap<Run, Vec<u64>>,
    /// `BACKENDS`, removed ones included, until no flow names them.
    pub backends: BTreeMap<BackendId, BackendRecord>,
    /// `ENDPOINTS`: one for each address, port and protocol that a backend in `backends` has.
    pub endpoints: BTreeMap<SocketKey, Endpoint>,
}

impl Tables {
    /// The names of the maps in which `other` differs.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let maps = [
            ("FRONTENDS", self.frontends != other.frontends),
            ("FRONTEND_INFO", self.frontend_infos != other.frontend_infos),
            ("SERVICES", self.services != other.services),
            ("POLICIES", self.policies != other.policies),
            ("SLOTS", self.runs != other.runs),
            ("BACKENDS", self.backends != other.backends),
            ("ENDPOINTS", self.endpoints != other.endpoints),
        ];
        maps.into_iter().filter(|(_, differs)| *differs).map(|(map, _)| map).collect()
    }
}

/// Where a run of slots begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// Which large value of `SLOTS`.
    pub chunk: u32,
    /// First word in it.
    pub start: u32,
}

impl Run {
    /// Where a policy's run begins.
    pub fn of(policy: &Policy) -> Self {
        Self { chunk: policy.slots_chunk, start: policy.slots_start }
    }
}

/// Words at the beginning of a policy's run that its choices are made from; `None` for a policy no one wrote. The others
/// follow, a word each.
pub fn choice_words(policy: &Policy) -> Option<usize> {
    policy.index().map(|index| policy.slots_count as usize * words_each(index))
}

/// A record of `BACKENDS`, typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRecord {
    /// The service that uses it.
    pub service: ServiceId,
    /// Where it listens.
    pub key: SocketKey,
    /// The endpoint it is.
    pub endpoint: EndpointId,
    /// What may be sent to it.
    pub state: BackendState,
    /// How packets get there.
    pub way: Way,
}

/// What a kernel service is known by from one plan to the next: a configured service compiles to one for each family,
/// protocol and port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ServiceKey {
    /// The configured service's name.
    pub name: String,
    /// The family of its frontends and backends: 4 or 6.
    pub family: u8,
    /// The protocol's number.
    pub protocol: u8,
    /// The port of its frontends.
    pub port: u16,
}

impl ServiceKey {
    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        Protocol(self.protocol)
    }

    /// The port of its frontends.
    pub fn port(&self) -> Port {
        Port::new(self.port)
    }
}
