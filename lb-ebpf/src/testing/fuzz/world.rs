//! Maps as the controller fills them, in one of a few ways, and what may change in them between two packets.
//!
//! There are four columns, one for each family and protocol. In each, service 0 has the frontends 0 and 1 and a backend
//! at each endpoint, service 1 has frontend 2 and a backend at the first two endpoints: so a client's address and port
//! can be known at one endpoint for several frontends, or nearly.

use std::{
    boxed::Box,
    collections::{BTreeMap, BTreeSet},
    vec::Vec,
};

use lb_common::{
    addr::{Family, Port, Protocol},
    backend::{Backend, BackendId, BackendState, Endpoint, EndpointId, Way},
    device::Abilities,
    flow::Client,
    selector::{NthRule, Slot},
    service::{Frontend, FrontendId, FrontendInfo, Index, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
};

use super::{Back, frame::address};
use crate::{
    atomic::Shared,
    kernel::{Route, SlotChunk},
    packet::Link,
    testing::{Maps, TICKS_PER_SECOND},
};

/// One way to fill the maps.
pub(super) struct Setup {
    pub(super) index: Index,
    /// Whether backends have several slots.
    is_weighted: bool,
    /// The schedules of the two UDP services of a family.
    schedules: [Schedule; 2],
    /// Buckets of the flow and of the reply table.
    pub(super) buckets: usize,
    pub(super) has_cursors: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    PerFlow,
    PerPacket,
}

const PER_FLOW: [Schedule; 2] = [Schedule::PerFlow; 2];
const PER_PACKET: [Schedule; 2] = [Schedule::PerPacket; 2];
const BOTH: [Schedule; 2] = [Schedule::PerPacket, Schedule::PerFlow];

const fn setup(index: Index, schedules: [Schedule; 2], buckets: usize) -> Setup {
    Setup { index, is_weighted: false, schedules, buckets, has_cursors: true }
}

/// By number, see [`setups`].
pub(super) const SETUPS: [Setup; 11] = [
    setup(Index::Cursor, PER_FLOW, 4),
    setup(Index::Random, PER_FLOW, 2),
    setup(Index::Chain, PER_FLOW, 4),
    Setup { is_weighted: true, ..setup(Index::Cursor, PER_FLOW, 2) },
    setup(Index::Cursor, PER_PACKET, 4),
    setup(Index::Random, PER_PACKET, 2),
    setup(Index::Chain, PER_PACKET, 4),
    Setup { is_weighted: true, ..setup(Index::Random, PER_PACKET, 2) },
    setup(Index::Cursor, BOTH, 4),
    Setup { is_weighted: true, ..setup(Index::Random, BOTH, 2) },
    Setup { has_cursors: false, ..setup(Index::Cursor, BOTH, 4) },
];

/// The numbers of some setups, for the seeds.
pub(super) mod setups {
    pub(in super::super) const TURN: u8 = 0;
    pub(in super::super) const SMALL: u8 = 1;
    pub(in super::super) const CHAIN: u8 = 2;
    pub(in super::super) const WEIGHTED: u8 = 3;
    pub(in super::super) const QUERIES: u8 = 4;
    pub(in super::super) const SMALL_QUERIES: u8 = 5;
    pub(in super::super) const CHAIN_OF_QUERIES: u8 = 6;
    pub(in super::super) const BOTH: u8 = 8;
    pub(in super::super) const WITHOUT_CURSORS: u8 = 10;
}

/// The addresses and ports of the frontends of a column.
pub(super) const FRONTENDS: [([&str; 2], u16); 3] = [
    (["192.0.2.53", "2001:db8:a:b:c:d:e:53"], 53),
    (["192.0.2.54", "2001:db8:a::54"], 53),
    (["192.0.2.53", "2001:db8:a:b:c:d:e:53"], 80),
];

/// The addresses and ports of the endpoints of a column.
pub(super) const ENDPOINTS: [([&str; 2], u16); 3] = [
    (["10.100.13.1", "fd00:100:13:7:8:9:a:1"], 5353),
    (["10.100.13.2", "fd00:100:13::2"], 5353),
    (["10.100.13.1", "fd00:100:13:7:8:9:a:1"], 5354),
];

/// Columns, services of each, and backends of each service.
const COLUMNS: u32 = 4;
const SERVICES: u32 = 2;
const BACKENDS: [u32; SERVICES as usize] = [3, 2];
/// Words of the chunk that each service may use: six slots, then one for each backend.
const SLOTS: u32 = 16;
const RULES: [(u32, u32); 3] = [(3, 0), (2, 1), (4, 3)];

/// Seconds after which a clock that counts 24 bits takes an old packet for a new one. Who sweeps the tables is the
/// controller, which is not here.
const CLOCK_ENDS: u32 = (1 << 23) / TICKS_PER_SECOND;

/// The maps, and what has happened so far that promises are about.
pub(super) struct World {
    pub(super) maps: Maps,
    pub(super) setup: &'static Setup,
    schedules: [[Schedule; SERVICES as usize]; COLUMNS as usize],
    pub(super) way: Way,
    seconds: u32,
    /// Packets so far.
    pub(super) packets: u64,
    /// Those that went to a backend, and those that came from one.
    pub(super) sent: [u64; 2],
    /// Through which frontend a packet of a client was last sent to an endpoint.
    pub(super) asked: BTreeMap<(Client, EndpointId), FrontendId>,
    /// Whose packets to which frontend ended on their last hop, which is found when a backend was chosen.
    pub(super) ended: BTreeSet<(Client, FrontendId)>,
}

const fn service_id(column: u32, service: u32) -> ServiceId {
    ServiceId(1 + SERVICES * column + service)
}

const fn backend_id(column: u32, service: u32, endpoint: u32) -> BackendId {
    BackendId(1 + 8 * column + 4 * service + endpoint)
}

const fn endpoint_id(column: u32, endpoint: u32) -> EndpointId {
    EndpointId(1 + 4 * column + endpoint)
}

const fn frontend_id(column: u32, frontend: u32) -> FrontendId {
    FrontendId(1 + 4 * column + frontend)
}

const fn service_of(frontend: u32) -> u32 {
    frontend / 2
}

fn key(column: u32, (addresses, port): ([&str; 2], u16)) -> SocketKey {
    let family = if column & 1 == 0 { Family::V4 } else { Family::V6 };
    SocketKey::new(address(family, addresses), Port::new(port), protocol(column))
}

const fn protocol(column: u32) -> Protocol {
    if column & 2 == 0 { Protocol::TCP } else { Protocol::UDP }
}

/// The device that backends are reached by, and the one that leads back to clients.
pub(super) const OUT: u32 = 7;
const BACK: u32 = 9;
/// Less than any packet.
const NARROW: u32 = 0;

impl World {
    pub(super) fn new(setup: &'static Setup, slots: Box<SlotChunk>) -> Self {
        let way = Way::Neighbour { ifindex: OUT };
        let mut world = Self {
            maps: Maps::with_slots(setup.buckets, setup.buckets, slots),
            setup,
            schedules: [PER_FLOW, PER_FLOW, setup.schedules, setup.schedules],
            way,
            seconds: 0,
            packets: 0,
            sent: [0; 2],
            asked: BTreeMap::new(),
            ended: BTreeSet::new(),
        };
        // Both take packets from XDP.
        world.maps.abilities = [OUT, BACK].map(|device| (device, Abilities::SENDS)).into();
        for column in 0..COLUMNS {
            for service in 0..SERVICES {
                world.put_service(column, service);
            }
            for frontend in 0..FRONTENDS.len() as u32 {
                world.set_frontend(column as u8, frontend as u8, true);
            }
            for (endpoint, ends) in (0..).zip(ENDPOINTS) {
                let flags = match world.schedules[column as usize] {
                    PER_FLOW => Endpoint::FLOWS,
                    PER_PACKET => Endpoint::REPLIES,
                    [..] => Endpoint::FLOWS | Endpoint::REPLIES,
                };
                let backend = backend_id(column, 0, endpoint);
                let record = Endpoint { id: endpoint_id(column, endpoint), flags, backend, zero: 0 };
                world.maps.endpoints.insert(key(column, ends), record);
            }
        }
        world
    }

    fn put_service(&mut self, column: u32, service: u32) {
        let id = service_id(column, service);
        self.maps.services.insert(id, Shared::new(ServiceWord { policy: PolicyId(id.0), change: 1 }.to_word()));
        if self.setup.has_cursors {
            self.maps.cursors.insert(id, Shared::new(0));
        }
        for endpoint in 0..BACKENDS[service as usize] {
            let backend = Backend {
                way: self.way.to_word(),
                state: BackendState::Use.to_word(),
                endpoint: endpoint_id(column, endpoint),
                key: key(column, ENDPOINTS[endpoint as usize]),
                service: id,
                zero: [0; 6],
            };
            self.maps.put_backend(backend_id(column, service, endpoint), backend);
        }
        self.program(column, service);
    }

    /// Writes slots that lead to those backends of a service that get new flows, and the policy for them.
    fn program(&mut self, column: u32, service: u32) {
        let usable: Vec<u64> = (0..BACKENDS[service as usize])
            .filter(|endpoint| self.state(backend_id(column, service, *endpoint)) == BackendState::Use)
            .map(|n| Slot { backend: backend_id(column, service, n), endpoint: endpoint_id(column, n) }.to_word())
            .collect();
        let (mut words, mut others_count, mut slots_count) = (usable.clone(), 0, usable.len());
        match self.setup.index {
            Index::Chain => {
                let rule = |((every, packet), slot)| NthRule { every, packet, slot: Slot::from_word(slot) }.to_words();
                words = RULES.into_iter().zip(usable).flat_map(rule).collect();
            }
            Index::Random | Index::Cursor if self.setup.is_weighted => {
                let weighted = (1..).zip(&usable).flat_map(|(weight, slot)| std::iter::repeat_n(*slot, weight));
                words = weighted.collect();
                (slots_count, others_count) = (words.len(), usable.len());
                words.extend(usable);
            }
            Index::Random | Index::Cursor => {}
        }
        let id = service_id(column, service);
        let start = SLOTS * id.0;
        assert!(words.len() <= SLOTS as usize, "a run is longer than its place");
        self.maps.write_slots(start, &words);
        let is_per_packet = self.schedules[column as usize][service as usize] == Schedule::PerPacket;
        let is_mixed = protocol(column) == Protocol::UDP && self.setup.schedules == BOTH;
        let policy = Policy {
            index: self.setup.index.to_word(),
            flags: if is_per_packet { Policy::PER_PACKET } else { 0 } | if is_mixed { Policy::MIXED } else { 0 },
            slots_chunk: 0,
            slots_start: start,
            slots_count: slots_count as u32,
            service: id,
            others_count: others_count as u32,
            zero: [0; 9],
        };
        self.maps.policies.insert(PolicyId(id.0), policy);
    }

    pub(super) fn state(&self, backend: BackendId) -> BackendState {
        BackendState::from_word(self.maps.backends[&backend].1.load() as u32)
    }

    /// Whether a service chooses for each packet now.
    pub(super) fn is_per_packet(&self, service: ServiceId) -> bool {
        self.maps.policies[&PolicyId(service.0)].is_per_packet()
    }

    pub(super) fn wait(&mut self, seconds: u32) {
        if self.seconds + seconds < CLOCK_ENDS {
            self.seconds += seconds;
            self.maps.wait_seconds(seconds);
        }
    }

    pub(super) fn set_state(&mut self, column: u8, service: u8, backend: u8, state: BackendState) {
        let (column, service, backend) = (column as u32, service as u32, backend as u32);
        if backend < BACKENDS[service as usize] {
            self.maps.set_state(backend_id(column, service, backend), state);
            self.program(column, service);
        }
    }

    pub(super) fn set_way(&mut self, way: Way) {
        self.way = way;
        self.maps.backends.keys().for_each(|id| self.maps.set_way(*id, way));
    }

    pub(super) fn set_route(&mut self, back: Back) {
        let link = Link { destination: [0x0102, 0x0304, 0x0506], source: [0x0708, 0x090a, 0x0b0c] };
        self.maps.routes_to_backends.clear();
        self.maps.route = match back {
            Back::Link => {
                // The way out is known as well then.
                self.maps.routes_to_backends.insert(OUT, Route::Link { ifindex: OUT, link, mtu: u32::MAX });
                Route::Link { ifindex: BACK, link, mtu: u32::MAX }
            }
            Back::Resolve => Route::Resolve { ifindex: BACK },
            Back::TooBig => Route::Link { ifindex: BACK, link, mtu: NARROW },
            Back::None => Route::None,
        };
    }

    /// Whether no packet fits where the routes lead.
    pub(super) fn is_narrow(&self) -> bool {
        matches!(self.maps.route, Route::Link { mtu: NARROW, .. })
    }

    /// A record of a frontend stays until no flow names it, so that replies find it.
    pub(super) fn set_frontend(&mut self, column: u8, frontend: u8, is_there: bool) {
        let Some(ends) = FRONTENDS.get(frontend as usize) else { return };
        let (column, frontend) = (column as u32, frontend as u32);
        let (key, id, service) =
            (key(column, *ends), frontend_id(column, frontend), service_id(column, service_of(frontend)));
        if is_there {
            self.maps.frontend_infos.insert(id, FrontendInfo { key, service });
            self.maps.frontends.insert(key, Frontend { frontend: id, service });
        } else {
            self.maps.frontends.remove(&key);
        }
    }

    /// Only where both services look into both tables already.
    pub(super) fn change_schedule(&mut self, column: u8, service: u8) {
        if protocol(column as u32) == Protocol::UDP && self.setup.schedules == BOTH {
            let schedule = &mut self.schedules[column as usize][service as usize];
            *schedule = match schedule {
                Schedule::PerFlow => Schedule::PerPacket,
                Schedule::PerPacket => Schedule::PerFlow,
            };
            self.program(column as u32, service as u32);
        }
    }
}
