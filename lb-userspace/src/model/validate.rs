//! From a draft to [`Desired`]: what the parts of a configuration, each readable, cannot be together.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use lb_common::{
    addr::{Addr, Family, Port, Protocol},
    limits::{NTH_RULES_MAX, SLOTS_PER_CHUNK, WEIGHT_MAX},
    selector::Selector,
    service::SocketKey,
};

use super::{
    At, Chain, Choice, Desired, Listen, Rule, Schedule, Service, Target, Weighted,
    draft::{BackendDraft, Draft, Host, List, Place, Placed, RuleDraft, ServiceDraft},
    fault::{Fault, What},
};
use crate::{
    capacity::Capacity,
    selector::{nth, slots_needed},
    settings::{Limit, Limits},
};

/// Judges a whole draft. What is wanted is of use only if every fault is a warning.
pub fn validate(draft: &Draft, host: &Host) -> (Desired, Vec<Fault>) {
    let mut faults = Vec::new();
    let judged = |service| Some((judge(service, &mut faults)?, service));
    let services: Vec<(Service, &ServiceDraft)> = draft.services.iter().filter_map(judged).collect();
    names(draft, &mut faults);
    claims(draft, &mut faults);
    mixed_endpoints(draft, &mut faults);
    interfaces(draft, host, &mut faults);
    room(draft, &services, host, &mut faults);
    (Desired { services: services.into_iter().map(|(service, _)| service).collect() }, faults)
}

/// The name in a list that is so near to what was written that it was probably meant.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(written, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len().min(written.len()) / 3))
        .min()
        .map(|(_, name)| name)
}

/// Collects the faults of one service.
struct Judge<'a> {
    label: &'a str,
    faults: &'a mut Vec<Fault>,
}

impl Judge<'_> {
    fn blame(&mut self, place: Place, what: What) {
        self.faults.push(Fault { place, service: Some(self.label.to_owned()), what });
    }
}

/// Judges a service by itself, and makes one of it that is good as far as its parts are.
fn judge(draft: &ServiceDraft, faults: &mut Vec<Fault>) -> Option<Service> {
    let mut judge = Judge { label: &draft.label, faults };
    let name = name(draft, &mut judge);
    let listens = listens(draft, &mut judge);
    let choice = choice(draft, &mut judge);
    backends_beside_frontends(draft, &mut judge);
    families(draft, &mut judge);
    per_packet(draft, &mut judge);
    Some(Service { name: name?, listens, schedule: draft.schedule?.value, choice: choice? })
}

fn name(draft: &ServiceDraft, judge: &mut Judge<'_>) -> Option<String> {
    let name = draft.name.as_ref()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if name.value.is_empty() || name.value.len() > 63 || !name.value.chars().all(fits) {
        judge.blame(name.place, What::BadName { name: name.value.clone() });
        return None;
    }
    Some(name.value.clone())
}

fn listens(draft: &ServiceDraft, judge: &mut Judge<'_>) -> Vec<Listen> {
    let example = "listen = [{ address = \"192.0.2.53\", port = 53, protocols = [\"udp\", \"tcp\"] }]";
    match &draft.listens {
        None => judge.blame(draft.place, What::Missing { key: "listen", example }),
        Some(list) if list.items.is_empty() && list.is_whole => {
            judge.blame(list.place, What::Empty { key: "listen", example });
        }
        Some(_) => {}
    }
    draft.listens.iter().flat_map(|list| &list.items).map(|item| item.value.listen.clone()).collect()
}

fn choice(draft: &ServiceDraft, judge: &mut Judge<'_>) -> Option<Choice<Target>> {
    match (&draft.backends, &draft.rules) {
        (Some(_), Some(rules)) => {
            judge.blame(rules.place, What::BackendsAndRules);
            None
        }
        (None, Some(rules)) => rule_chain(draft, rules, judge),
        (Some(backends), None) => among_backends(draft, backends, judge),
        (None, None) => {
            judge.blame(draft.place, What::Missing { key: "backends", example: BACKENDS_EXAMPLE });
            None
        }
    }
}

const BACKENDS_EXAMPLE: &str = "backends = [\"10.0.0.2\", \"10.0.0.3\"]";

fn among_backends(
    draft: &ServiceDraft,
    backends: &List<BackendDraft>,
    judge: &mut Judge<'_>,
) -> Option<Choice<Target>> {
    if backends.items.is_empty() && backends.is_whole {
        judge.blame(backends.place, What::Empty { key: "backends", example: BACKENDS_EXAMPLE });
        return None;
    }
    let selector = draft.selector.map(|selector| selector.value);
    let weighted: Vec<_> = backends.items.iter().map(|item| weigh(&item.value, selector, judge)).collect();
    let plain = || weighted.iter().map(|one| one.backend).collect();
    match selector? {
        Selector::Random => Some(Choice::Random(weighted)),
        Selector::RoundRobin => Some(Choice::RoundRobin(plain())),
        Selector::WeightedRoundRobin => Some(Choice::WeightedRoundRobin(weighted)),
        Selector::Nth => {
            let count = |family| weighted.iter().filter(|one| one.backend.family() == family).count();
            judge_length(Family::ALL.map(count), backends.place, judge);
            Some(Choice::Nth(Chain::Even(plain())))
        }
    }
}

fn weigh(draft: &BackendDraft, selector: Option<Selector>, judge: &mut Judge<'_>) -> Weighted<Target> {
    let mut weight = 1;
    if let Some(written) = draft.weight {
        match (selector, u32::try_from(written.value)) {
            (Some(selector), _) if !selector.takes_weights() => {
                judge.blame(written.place, What::WeightNotTaken { selector });
            }
            (_, Ok(value @ 1..=WEIGHT_MAX)) => weight = value,
            _ => judge.blame(written.place, What::BadWeight { weight: written.value }),
        }
    }
    Weighted { backend: draft.target, weight }
}

fn rule_chain(draft: &ServiceDraft, rules: &List<RuleDraft>, judge: &mut Judge<'_>) -> Option<Choice<Target>> {
    if let Some(selector) = draft.selector.map(|selector| selector.value)
        && selector != Selector::Nth
    {
        judge.blame(rules.place, What::RulesNotTaken { selector });
        return None;
    }
    if rules.items.is_empty() && rules.is_whole {
        let example = "rules = [{ every = 2, packet = 0, backend = \"10.0.0.2\" }, { every = 1, packet = 0, backend = \"10.0.0.3\" }]";
        judge.blame(rules.place, What::Empty { key: "rules", example });
        return None;
    }
    let good: Vec<_> = rules.items.iter().filter_map(|item| Some((item.place, rule(&item.value, judge)?))).collect();
    let of_family = |family| good.iter().filter(move |(_, rule)| rule.backend.family() == family);
    judge_length(Family::ALL.map(|family| of_family(family).count()), rules.place, judge);
    if rules.is_whole && good.len() == rules.items.len() {
        let both = Family::ALL.iter().all(|family| of_family(*family).count() > 0);
        for family in Family::ALL {
            // Each family has its chain: the rules for backends of the other one are not in it.
            let chain: Vec<_> = of_family(family).copied().collect();
            judge_chain(&chain, both.then_some(family), rules.place, judge);
        }
    }
    Some(Choice::Nth(Chain::Rules(good.into_iter().map(|(_, rule)| rule).collect())))
}

fn rule(draft: &RuleDraft, judge: &mut Judge<'_>) -> Option<Rule<Target>> {
    let Ok(every @ 1..) = u32::try_from(draft.every.value) else {
        judge.blame(draft.every.place, What::BadEvery { every: draft.every.value });
        return None;
    };
    match u32::try_from(draft.packet.value) {
        Ok(packet) if packet < every => Some(Rule { every, packet, backend: draft.target.value }),
        Ok(_) | Err(_) => {
            let what = What::BadPacket { packet: draft.packet.value, every: draft.every.value };
            judge.blame(draft.packet.place, what);
            None
        }
    }
}

/// A chain for each family, neither longer than the kernel follows.
fn judge_length(counts: [usize; 2], place: Place, judge: &mut Judge<'_>) {
    let count = counts[0].max(counts[1]);
    if count > NTH_RULES_MAX as usize {
        judge.blame(place, What::TooManyRules { count });
    }
}

fn judge_chain(chain: &[(Place, Rule<Target>)], family: Option<Family>, place: Place, judge: &mut Judge<'_>) {
    if chain.is_empty() {
        return;
    }
    let rules: Vec<Rule<Target>> = chain.iter().map(|(_, rule)| *rule).collect();
    if let Some(share) = nth::unmatched(&rules) {
        let of = family.map(|family| format!(" over {family}")).unwrap_or_default();
        judge.blame(place, What::Unmatched { share: format!("{share}{of}") });
    }
    for (place, _) in chain.iter().skip_while(|(_, rule)| rule.every != 1).skip(1) {
        judge.blame(*place, What::UnreachableRule);
    }
}

/// Whether [`ServiceDraft::targets`] are all.
fn targets_are_whole(draft: &ServiceDraft) -> bool {
    draft.backends.as_ref().is_none_or(|list| list.is_whole) && draft.rules.as_ref().is_none_or(|list| list.is_whole)
}

fn listens_of(draft: &ServiceDraft) -> impl Iterator<Item = &Listen> {
    draft.listens.iter().flat_map(|list| &list.items).map(|item| &item.value.listen)
}

/// No backend twice in a list, none that is its own frontend. A backend may be in several rules.
fn backends_beside_frontends(draft: &ServiceDraft, judge: &mut Judge<'_>) {
    let ports: BTreeSet<u16> = listens_of(draft).map(|listen| listen.port).collect();
    let mut seen = BTreeSet::new();
    for item in draft.backends.iter().flat_map(|list| &list.items) {
        let target = item.value.target;
        let mut sockets: Vec<_> = ports.iter().map(|port| (*port, target.port_behind(*port))).collect();
        if sockets.is_empty() {
            sockets.push((0, target.port_behind(0)));
        }
        let mut twice = None;
        for (frontend_port, port) in sockets {
            if !seen.insert((frontend_port, target.address, port)) {
                twice.get_or_insert(port);
            }
        }
        if let Some(port) = twice {
            let backend = match port {
                0 => target.to_string(),
                port => SocketAddr::new(target.address, port).to_string(),
            };
            judge.blame(item.place, What::BackendTwice { backend });
        }
    }
    for target in draft.targets() {
        let is_frontend = |listen: &&Listen| {
            listen.at == At::Address(target.value.address) && target.value.port_behind(listen.port) == listen.port
        };
        if let Some(listen) = listens_of(draft).find(is_frontend) {
            let backend = SocketAddr::new(target.value.address, listen.port);
            judge.blame(target.place, What::BackendIsFrontend { backend });
        }
    }
}

fn families(draft: &ServiceDraft, judge: &mut Judge<'_>) {
    let Some(list) = &draft.listens else { return };
    let family_of = |listen: &Listen| match &listen.at {
        At::Address(address) => Some(Addr::from(*address).family()),
        At::Interface(_) => None,
    };
    let frontends: Option<BTreeSet<Family>> = listens_of(draft).map(family_of).collect();
    // An interface may have addresses of both families, now or later.
    if let Some(frontends) = frontends
        && list.is_whole
        && !frontends.is_empty()
    {
        for target in draft.targets() {
            let family = target.value.family();
            if !frontends.contains(&family) {
                judge.blame(target.place, What::NoFrontendOfFamily { backend: target.value, family });
            }
        }
    }
    let backends: BTreeSet<Family> = draft.targets().iter().map(|target| target.value.family()).collect();
    if targets_are_whole(draft) && !backends.is_empty() {
        for item in &list.items {
            if let At::Address(address) = item.value.listen.at
                && let family = Addr::from(address).family()
                && !backends.contains(&family)
            {
                judge.blame(item.value.at_place, What::NoBackendOfFamily { address, family });
            }
        }
    }
}

fn per_packet(draft: &ServiceDraft, judge: &mut Judge<'_>) {
    if let (Some(Placed { value: Schedule::PerPacket, place }), Some(list)) = (draft.schedule, &draft.listens)
        && list.is_whole
        && !listens_of(draft).any(|listen| listen.protocols.contains(&Protocol::UDP))
    {
        judge.blame(place, What::PerPacketWithoutUdp);
    }
}

fn names(draft: &Draft, faults: &mut Vec<Fault>) {
    let mut seen = BTreeSet::new();
    for service in &draft.services {
        if let Some(name) = &service.name
            && !seen.insert(&name.value)
        {
            faults.push(Fault { place: name.place, service: Some(service.label.clone()), what: What::NameTaken });
        }
    }
}

/// No frontend twice, in one service or two.
fn claims(draft: &Draft, faults: &mut Vec<Fault>) {
    let mut taken: BTreeMap<(&At, u16, Protocol), (usize, &str)> = BTreeMap::new();
    for (number, service) in draft.services.iter().enumerate() {
        for item in service.listens.iter().flat_map(|list| &list.items) {
            let listen = &item.value.listen;
            for protocol in &listen.protocols {
                let frontend = match &listen.at {
                    At::Address(address) => format!("{}/{protocol}", SocketAddr::new(*address, listen.port)),
                    At::Interface(name) => format!("{name}:{}/{protocol}", listen.port),
                };
                let what = match taken.entry((&listen.at, listen.port, *protocol)) {
                    Entry::Vacant(free) => {
                        free.insert((number, &service.label));
                        continue;
                    }
                    Entry::Occupied(claim) if claim.get().0 == number => What::FrontendTwice { frontend },
                    Entry::Occupied(claim) => What::FrontendTaken { frontend, other: claim.get().1.to_owned() },
                };
                faults.push(Fault { place: item.place, service: Some(service.label.clone()), what });
            }
        }
    }
}

/// No endpoint that is asked per packet by one service and keeps flows of another.
fn mixed_endpoints(draft: &Draft, faults: &mut Vec<Fault>) {
    let mut users: BTreeMap<SocketKey, (Schedule, &str)> = BTreeMap::new();
    for service in &draft.services {
        let Some(schedule) = service.schedule else { continue };
        let is_udp = |listen: &&Listen| listen.protocols.contains(&Protocol::UDP);
        let ports: BTreeSet<u16> = listens_of(service).filter(is_udp).map(|listen| listen.port).collect();
        for target in service.targets() {
            for port in &ports {
                let port = Port::new(target.value.port_behind(*port));
                let key = SocketKey::new(target.value.address.into(), port, Protocol::UDP);
                let (other_schedule, other) = *users.entry(key).or_insert((schedule.value, &service.label));
                if other_schedule != schedule.value {
                    let (own, other) = (service.label.clone(), other.to_owned());
                    let (per_packet, per_flow) = match schedule.value {
                        Schedule::PerPacket => (own, other),
                        Schedule::PerFlow => (other, own),
                    };
                    let what = What::EndpointMixed { backend: key, per_packet, per_flow };
                    faults.push(Fault { place: target.place, service: Some(service.label.clone()), what });
                }
            }
        }
    }
}

fn interfaces(draft: &Draft, host: &Host, faults: &mut Vec<Fault>) {
    let Some(present) = &host.interfaces else { return };
    let mut look_for = |name: &str, place, service: Option<&String>| {
        if present.contains(name) {
            return;
        }
        // `eth3:1`, as ifconfig and `ip address add … label` have it.
        let labelled = name.split_once(':').map(|(interface, _)| interface).filter(|one| present.contains(*one));
        let what = match (labelled, nearest(name, present.iter().map(String::as_str))) {
            (Some(interface), _) => What::LabelledInterface {
                name: name.to_owned(),
                interface: interface.to_owned(),
                is_listener: service.is_some(),
            },
            (None, Some(nearest)) => What::MisspeltInterface { name: name.to_owned(), nearest: nearest.to_owned() },
            (None, None) => {
                let known: Vec<&str> = present.iter().map(String::as_str).collect();
                What::UnknownInterface { name: name.to_owned(), known: known.join(", ") }
            }
        };
        faults.push(Fault { place, service: service.cloned(), what });
    };
    for interface in &draft.interfaces {
        look_for(&interface.value, interface.place, None);
    }
    for service in &draft.services {
        for item in service.listens.iter().flat_map(|list| &list.items) {
            if let At::Interface(name) = &item.value.listen.at {
                look_for(name, item.value.at_place, Some(&service.label));
            }
        }
    }
}

/// Enough room for all of it, as far as is known before interfaces have addresses.
fn room(draft: &Draft, services: &[(Service, &ServiceDraft)], host: &Host, faults: &mut Vec<Fault>) {
    let mut service_count = 0;
    let mut backend_count = 0;
    let mut slot_count = 0;
    for (service, read) in services {
        let interface_families = service.choice.backends().iter().map(|target| target.family()).collect();
        let mut kernel_services = BTreeSet::new();
        for listen in &service.listens {
            let families: BTreeSet<Family> = match &listen.at {
                At::Address(address) => [Addr::from(*address).family()].into(),
                At::Interface(_) => BTreeSet::clone(&interface_families),
            };
            let of_protocol = |protocol: &Protocol| {
                families.iter().map(|family| (*family, *protocol, listen.port)).collect::<Vec<_>>()
            };
            kernel_services.extend(listen.protocols.iter().flat_map(of_protocol));
        }
        for (family, _, _) in kernel_services {
            let choice = service.choice.filter_map(|target| (target.family() == family).then_some(*target));
            let backends: BTreeSet<&Target> = choice.backends().into_iter().collect();
            let slots = slots_needed(&choice);
            if slots > u64::from(SLOTS_PER_CHUNK) {
                let place = read.backends.as_ref().map_or(read.place, |list| list.place);
                let what = What::TooManySlots { needed: slots, most: SLOTS_PER_CHUNK };
                faults.push(Fault { place, service: Some(read.label.clone()), what });
                break;
            }
            service_count += u64::from(!backends.is_empty());
            backend_count += backends.len() as u64;
            // In size classes, and twice while the old and the new exist side by side.
            slot_count += slots.next_power_of_two().max(8) * 2;
        }
    }
    let capacity = Capacity::from(&draft.limits);
    let slots = u64::from(capacity.slot_chunks) * u64::from(SLOTS_PER_CHUNK);
    let mut judge = |limit: Limit, needed: u64, most: u64, things| {
        if needed > most {
            let place = draft.limit_places.iter().find(|(key, _)| *key == limit).map_or(Place(0), |(_, place)| *place);
            let enough = u32::try_from(needed).unwrap_or(u32::MAX);
            let limits: Limits = draft.limits.with(limit, enough);
            let bytes = Capacity::from(&limits).total_bytes(host.cpus);
            let value = draft.limits.get(limit);
            let what = match limit.max() {
                max if needed > u64::from(max) => What::BeyondLayout { needed, things, max, bytes },
                _ => What::OverLimit { needed, things, limit: limit.name(), value, bytes },
            };
            faults.push(Fault { place, service: None, what });
        }
    };
    judge(
        Limit::Services,
        service_count,
        u64::from(draft.limits.services),
        "services (one for each family, protocol and port)",
    );
    judge(Limit::Backends, backend_count, u64::from(draft.limits.backends), "backends (counted in each service)");
    judge(Limit::Slots, slot_count, slots, "words of slots");
}
