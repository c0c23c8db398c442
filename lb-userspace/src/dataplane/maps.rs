//! The pinned maps, opened: what is read from them and each kind of write, without the order of anything.
//! A process that only looks opens them too and loads no programs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use lb_common::{
    backend::{Backend, BackendId, BackendState, Endpoint, Way},
    device::{DEVICES, Device},
    flow,
    limits::SLOTS_PER_CHUNK,
    reason::Reason,
    reply::ReplyBucket,
    service::{Frontend, FrontendId, FrontendInfo, Policy, PolicyId, ServiceId, ServiceWord, SocketKey},
    stats::{EarlyStats, ServiceStats, Traffic},
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, transmute};

use super::{
    Counters, DataplaneError,
    mmap::{Access, Mapping},
    pins::{Pins, PinsError},
    sys::Map,
};
use crate::plan::tables::{BackendRecord, Run, Tables, choice_words};

/// Entries of a hash that are read by one system call.
const AT_ONCE: usize = 4096;

/// The maps of one folder of pins.
#[derive(Debug)]
pub struct Maps {
    pub(super) frontends: Called<Map>,
    pub(super) endpoints: Called<Map>,
    pub(super) fragments: Called<Map>,
    pub(super) frontend_info: Called<Map>,
    traffic: Called<Map>,
    service_stats: Called<Map>,
    reasons: Called<Map>,
    early_stats: Called<Map>,
    services: Called<Mapping>,
    policies: Called<Mapping>,
    slots: Called<Mapping>,
    backends: Called<Mapping>,
    cursors: Called<Mapping>,
    pub(super) active: Called<Mapping>,
    pub(super) flows: Called<Mapping>,
    pub(super) replies: Called<Mapping>,
    devices: Called<Mapping>,
    network_version: Called<Mapping>,
}

/// Something with the name of its map, for errors.
#[derive(Debug)]
pub(super) struct Called<T> {
    pub(super) name: &'static str,
    pub(super) it: T,
}

impl Maps {
    /// Opens the maps of a running data path to look at them.
    ///
    /// # Errors
    /// When nothing is pinned there, or in a layout of another version.
    pub fn look(pins: &Pins) -> Result<Self, PinsError> {
        match pins.settings()? {
            Some(_) => Self::open(pins, Access::Read),
            None => Err(PinsError::Absent(pins.path().to_owned())),
        }
    }

    pub(super) fn open(pins: &Pins, access: Access) -> Result<Self, PinsError> {
        let open = |name: &'static str| -> Result<Called<Map>, PinsError> {
            let path = pins.map(name);
            Map::open(&path).map(|it| Called { name, it }).map_err(|source| PinsError::Io { path, source })
        };
        let map = |name: &'static str, value_size: usize| -> Result<Called<Mapping>, PinsError> {
            let path = pins.map(name);
            Map::open(&path)
                .and_then(|map| {
                    if map.value_bytes() == value_size {
                        Mapping::new(&map, access)
                    } else {
                        Err(io::Error::new(io::ErrorKind::InvalidData, "its values have another size"))
                    }
                })
                .map(|it| Called { name, it })
                .map_err(|source| PinsError::Io { path, source })
        };
        Ok(Self {
            frontends: open("FRONTENDS")?,
            endpoints: open("ENDPOINTS")?,
            fragments: open("FRAGMENTS")?,
            frontend_info: open("FRONTEND_INFO")?,
            traffic: open("TRAFFIC")?,
            service_stats: open("SERVICE_STATS")?,
            reasons: open("REASONS")?,
            early_stats: open("EARLY_STATS")?,
            services: map("SERVICES", size_of::<u64>())?,
            policies: map("POLICIES", size_of::<Policy>())?,
            slots: map("SLOTS", SLOTS_PER_CHUNK as usize * size_of::<u64>())?,
            backends: map("BACKENDS", size_of::<Backend>())?,
            cursors: map("CURSORS", size_of::<[u64; 8]>())?,
            active: map("ACTIVE", size_of::<u64>())?,
            flows: map("FLOWS", size_of::<flow::Bucket>())?,
            replies: map("REPLIES", size_of::<ReplyBucket>())?,
            devices: map("DEVICES", size_of::<Device>())?,
            network_version: map("NETWORK_VERSION", size_of::<u64>())?,
        })
    }

    /// What is programmed.
    ///
    /// # Errors
    /// When a map cannot be read, or holds what no controller of this version writes.
    pub fn read(&self) -> Result<Tables, DataplaneError> {
        let frontends: BTreeMap<SocketKey, Frontend> = self.frontends.entries()?;
        let services = self.services_now(&frontends);
        let policies = self.policies_of(services.values())?;
        Ok(Tables {
            runs: self.runs_of(&policies)?,
            frontends,
            frontend_infos: self.frontend_infos()?,
            services,
            policies,
            backends: self.backends_now().collect(),
            endpoints: self.endpoints.entries()?,
        })
    }

    /// What was counted for everything that is programmed.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn counters(&self) -> Result<Counters, DataplaneError> {
        let backends: BTreeSet<BackendId> = self.backends_now().map(|(id, _)| id).collect();
        let services = self.services_now(&self.frontends.entries()?);
        let mut counters = Counters::default();
        if let Some(last) = backends.last() {
            self.traffic.sums(1, last.0, Traffic::plus, |id, sum| {
                if backends.contains(&BackendId(id)) {
                    counters.traffic.insert(BackendId(id), sum);
                }
            })?;
        }
        if let Some((last, _)) = services.last_key_value() {
            self.service_stats.sums(1, last.0, ServiceStats::plus, |id, sum| {
                if services.contains_key(&ServiceId(id)) {
                    counters.services.insert(ServiceId(id), sum);
                }
            })?;
        }
        self.reasons.sums(0, Reason::ALL.len() as u32 - 1, u64::wrapping_add, |number, sum: u64| {
            counters.reasons.insert(Reason::ALL[number as usize], sum);
        })?;
        for id in backends {
            let count = self.active.it.entry(id.0).map_or(0, |words| words[0].load(Ordering::Relaxed));
            counters.active.insert(id, count);
        }
        // Few places have a device, and each that is read costs a system call.
        for device in (0..DEVICES).filter_map(|place| self.device(place)) {
            let place = Device::place(device.ifindex);
            self.early_stats.sums(place, place, EarlyStats::plus, |_, sum| {
                counters.early.insert(device.ifindex, sum);
            })?;
        }
        Ok(counters)
    }

    /// The next ticket of a service.
    pub fn cursor(&self, service: ServiceId) -> Option<u64> {
        self.cursors.it.entry(service.0).map(|words| words[0].load(Ordering::Relaxed))
    }

    /// Every backend that has a record.
    pub(super) fn backends_now(&self) -> impl Iterator<Item = (BackendId, BackendRecord)> {
        (0..).zip(self.backends.it.all()).filter_map(|(id, words)| {
            let record: Backend = transmute!(load::<8>(words));
            let record = BackendRecord {
                service: record.service,
                key: record.key,
                endpoint: record.endpoint,
                state: BackendState::from_word(record.state),
                way: Way::from_word(record.way),
            };
            (record.endpoint.0 != 0).then_some((BackendId(id), record))
        })
    }

    /// The flags of an endpoint; none where it is not known.
    pub(super) fn endpoint_flags(&self, key: SocketKey) -> Result<u32, DataplaneError> {
        let mut endpoint = Endpoint::new_zeroed();
        let map = &self.endpoints;
        map.it
            .lookup(key.as_bytes(), endpoint.as_mut_bytes())
            .map_err(|error| map.error(&format!("look up {key}"), error))?;
        Ok(endpoint.flags)
    }

    /// Services with a policy, or to which a frontend leads; the word of all others is zero.
    fn services_now(&self, frontends: &BTreeMap<SocketKey, Frontend>) -> BTreeMap<ServiceId, ServiceWord> {
        let named: BTreeSet<ServiceId> = frontends.values().map(|frontend| frontend.service).collect();
        (0..)
            .zip(self.services.it.all())
            .map(|(id, words)| (ServiceId(id), words[0].load(Ordering::Acquire)))
            .filter(|(id, word)| *word != 0 || named.contains(id))
            .map(|(id, word)| (id, ServiceWord::from_word(word)))
            .collect()
    }

    fn policies_of<'a>(
        &self,
        services: impl Iterator<Item = &'a ServiceWord>,
    ) -> Result<BTreeMap<PolicyId, Policy>, DataplaneError> {
        services
            .map(|word| word.policy)
            .filter(|id| id.0 != 0)
            .map(|id| match self.policies.it.entry(id.0) {
                Some(words) => Ok((id, transmute!(load::<8>(words)))),
                None => Err(self.policies.unreadable(format!("a service names entry {}, which is not there", id.0))),
            })
            .collect()
    }

    fn runs_of(&self, policies: &BTreeMap<PolicyId, Policy>) -> Result<BTreeMap<Run, Vec<u64>>, DataplaneError> {
        let run_of = |(id, policy): (&PolicyId, &Policy)| {
            let run = Run::of(policy);
            let length = choice_words(policy)
                .ok_or_else(|| self.policies.unreadable(format!("entry {} has index {}", id.0, policy.index)))?
                + policy.others_count as usize;
            let words = self
                .slots
                .it
                .entry(run.chunk)
                .and_then(|chunk| chunk.get(run.start as usize..run.start as usize + length))
                .ok_or_else(|| self.slots.unreadable(format!("the run of policy {} lies outside", id.0)))?;
            Ok((run, words.iter().map(|word| word.load(Ordering::Relaxed)).collect()))
        };
        policies.iter().map(run_of).collect()
    }

    fn frontend_infos(&self) -> Result<BTreeMap<FrontendId, FrontendInfo>, DataplaneError> {
        let mut infos = BTreeMap::new();
        let map = &self.frontend_info;
        map.it
            .for_range(1, u32::MAX, |id, value| {
                let info = FrontendInfo::read_from_bytes(value).expect("the map's shape was compared");
                if info.service.0 != 0 {
                    infos.insert(FrontendId(id), info);
                }
            })
            .map_err(|error| map.error("read", error))?;
        Ok(infos)
    }
}

/// The writes.
impl Maps {
    pub(super) fn write_frontend_infos(&self, ids: &[u32], infos: &[FrontendInfo]) -> Result<(), DataplaneError> {
        let map = &self.frontend_info;
        if let Some(id) = ids.iter().find(|id| **id >= map.it.shape().max_entries) {
            return Err(full(map.name, format!("frontend {id}"), map.it.shape().max_entries, "services"));
        }
        map.it.update_many(ids.as_bytes(), infos.as_bytes()).map_err(|error| map.error("write", error))
    }

    pub(super) fn put_frontends(&self, keys: &[SocketKey], values: &[Frontend]) -> Result<(), DataplaneError> {
        put(&self.frontends, keys, values, "services")
    }

    pub(super) fn put_endpoints(&self, keys: &[SocketKey], values: &[Endpoint]) -> Result<(), DataplaneError> {
        put(&self.endpoints, keys, values, "backends")
    }

    pub(super) fn write_backend(&self, id: BackendId, record: &BackendRecord) -> Result<(), DataplaneError> {
        let words = self.backend(id)?;
        let record = Backend {
            way: record.way.to_word(),
            state: record.state.to_word(),
            endpoint: record.endpoint,
            key: record.key,
            service: record.service,
            zero: [0; 6],
        };
        let active =
            self.active.it.entry(id.0).ok_or_else(|| self.active.full(format!("backend {}", id.0), "backends"))?;
        self.traffic.zero(id.0)?;
        active[0].store(0, Ordering::Relaxed);
        store::<8>(words, transmute!(record));
        Ok(())
    }

    pub(super) fn clear_backend(&self, id: BackendId) -> Result<(), DataplaneError> {
        store::<8>(self.backend(id)?, [0; 8]);
        Ok(())
    }

    pub(super) fn set_backend_state(&self, id: BackendId, state: BackendState) -> Result<(), DataplaneError> {
        // The state shares its word with the endpoint, which stays.
        const WORD: usize = std::mem::offset_of!(Backend, state) / size_of::<u64>();
        let words = self.backend(id)?;
        let mut record: Backend = transmute!(load::<8>(words));
        record.state = state.to_word();
        let changed: [u64; 8] = transmute!(record);
        words[WORD].store(changed[WORD], Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn set_backend_way(&self, id: BackendId, way: Way) -> Result<(), DataplaneError> {
        const WORD: usize = std::mem::offset_of!(Backend, way) / size_of::<u64>();
        self.backend(id)?[WORD].store(way.to_word(), Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn write_run(&self, run: Run, words: &[u64]) -> Result<(), DataplaneError> {
        let place = self
            .slots
            .it
            .entry(run.chunk)
            .and_then(|chunk| chunk.get(run.start as usize..run.start as usize + words.len()))
            .ok_or_else(|| self.slots.full(format!("a run at {}/{}", run.chunk, run.start), "slots"))?;
        for (place, word) in place.iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(super) fn write_policy(&self, id: PolicyId, policy: Policy) -> Result<(), DataplaneError> {
        let words =
            self.policies.it.entry(id.0).ok_or_else(|| self.policies.full(format!("policy {}", id.0), "services"))?;
        store::<8>(words, transmute!(policy));
        Ok(())
    }

    pub(super) fn start_service(&self, id: ServiceId, cursor: u64) -> Result<(), DataplaneError> {
        let words =
            self.cursors.it.entry(id.0).ok_or_else(|| self.cursors.full(format!("service {}", id.0), "services"))?;
        self.service_stats.zero(id.0)?;
        words[0].store(cursor, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn swap_service(&self, id: ServiceId, word: ServiceWord) -> Result<(), DataplaneError> {
        let words =
            self.services.it.entry(id.0).ok_or_else(|| self.services.full(format!("service {}", id.0), "services"))?;
        words[0].store(word.to_word(), Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn remove_frontend(&self, key: SocketKey) -> Result<(), DataplaneError> {
        remove(&self.frontends, key)
    }

    pub(super) fn remove_endpoint(&self, key: SocketKey) -> Result<(), DataplaneError> {
        remove(&self.endpoints, key)
    }

    pub(super) fn clear_frontend_info(&self, id: FrontendId) -> Result<(), DataplaneError> {
        self.write_frontend_infos(&[id.0], &[FrontendInfo::new_zeroed()])
    }

    /// The device at a place, if there is one.
    fn device(&self, place: u32) -> Option<Device> {
        let device: Device = transmute!(load::<2>(self.devices.it.entry(place)?));
        (device.ifindex != 0).then_some(device)
    }

    /// Makes the devices these, each at its place. One that is another than before is none while it is written.
    pub(super) fn write_devices(&self, devices: &BTreeMap<u32, Device>) {
        for (place, words) in (0..).zip(self.devices.it.all()) {
            let device = devices.get(&place).copied().unwrap_or_default();
            let [number, address]: [u64; 2] = transmute!(device);
            if load::<2>(words) != [number, address] {
                words[0].store(0, Ordering::Release);
                words[1].store(address, Ordering::Release);
                words[0].store(number, Ordering::Release);
            }
        }
    }

    /// Has the packet path forget what it keeps of next hops.
    pub(super) fn count_network_change(&self) {
        if let Some([version]) = self.network_version.it.entry(0) {
            version.fetch_add(1, Ordering::Release);
        }
    }

    fn backend(&self, id: BackendId) -> Result<&[AtomicU64], DataplaneError> {
        self.backends.it.entry(id.0).ok_or_else(|| self.backends.full(format!("backend {}", id.0), "backends"))
    }
}

impl Called<Map> {
    pub(super) fn error(&self, operation: &str, source: io::Error) -> DataplaneError {
        DataplaneError::Map { map: self.name, operation: operation.to_owned(), source }
    }

    /// All entries of a hash.
    pub(super) fn entries<K, V>(&self) -> Result<BTreeMap<K, V>, DataplaneError>
    where
        K: FromBytes + Ord,
        V: FromBytes,
    {
        let mut entries = BTreeMap::new();
        let mut is_shaped = true;
        self.it
            .for_each(AT_ONCE, |key, value| match (K::read_from_bytes(key), V::read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(entries.insert(key, value)),
                (Err(_), _) | (_, Err(_)) => is_shaped = false,
            })
            .map_err(|error| self.error("read", error))?;
        if is_shaped {
            Ok(entries)
        } else {
            Err(DataplaneError::Unreadable { map: self.name, what: "its keys or values have another size".to_owned() })
        }
    }

    /// Adds up the CPUs' values of each index from `first` to `last`.
    fn sums<T: FromBytes + FromZeros>(
        &self,
        first: u32,
        last: u32,
        add: impl Fn(T, T) -> T,
        mut each: impl FnMut(u32, T),
    ) -> Result<(), DataplaneError> {
        let place = size_of::<T>().next_multiple_of(8);
        self.it
            .for_range(first, last, |index, values| {
                let sum = values
                    .chunks_exact(place)
                    .filter_map(|value| T::read_from_prefix(value).ok())
                    .fold(T::new_zeroed(), |sum, (value, _)| add(sum, value));
                each(index, sum);
            })
            .map_err(|error| self.error("read", error))
    }

    /// Zeroes the value of an index on every CPU.
    fn zero(&self, index: u32) -> Result<(), DataplaneError> {
        self.it.update(index.as_bytes(), &vec![0; self.it.value_bytes()]).map_err(|error| self.error("zero", error))
    }
}

impl Called<Mapping> {
    fn full(&self, what: String, limit: &'static str) -> DataplaneError {
        full(self.name, what, self.it.entries(), limit)
    }

    fn unreadable(&self, what: String) -> DataplaneError {
        DataplaneError::Unreadable { map: self.name, what }
    }
}

fn full(map: &'static str, what: String, capacity: u32, limit: &'static str) -> DataplaneError {
    DataplaneError::Full { map, what, capacity, limit }
}

fn put<V: IntoBytes + Immutable + KnownLayout>(
    map: &Called<Map>,
    keys: &[SocketKey],
    values: &[V],
    limit: &'static str,
) -> Result<(), DataplaneError> {
    let what = || match keys {
        [key] => key.to_string(),
        keys => format!("one of {} entries", keys.len()),
    };
    map.it.update_many(keys.as_bytes(), values.as_bytes()).map_err(|error| match error.raw_os_error() {
        Some(libc::E2BIG) => full(map.name, what(), map.it.shape().max_entries, limit),
        Some(_) | None => map.error(&format!("put {}", what()), error),
    })
}

fn remove(map: &Called<Map>, key: SocketKey) -> Result<(), DataplaneError> {
    map.it.delete(key.as_bytes()).map(drop).map_err(|error| map.error(&format!("remove {key}"), error))
}

fn load<const N: usize>(words: &[AtomicU64]) -> [u64; N] {
    std::array::from_fn(|i| words[i].load(Ordering::Acquire))
}

fn store<const N: usize>(words: &[AtomicU64], values: [u64; N]) {
    for (word, value) in words.iter().zip(values) {
        word.store(value, Ordering::Release);
    }
}
