use proptest::prelude::*;

use lb_common::addr::{Addr, Port, Protocol};

use super::{change::Change, tables::choice_words, *};
use crate::{
    dataplane::{Dataplane, memory::Memory},
    model::{At, Chain, Desired, Listen, Rule, Service, Target, Weighted, resolve::resolve},
};

/// One sitting of the controller: what is wanted, where backends are, and what the sweep before it found.
#[derive(Clone, Debug)]
struct Step {
    desired: Desired,
    ways: BTreeMap<IpAddr, Way>,
    sweep: Sweep,
    /// Whether the names were lost, so that services are recognised by their frontends.
    forgets_names: bool,
}

#[derive(Clone, Debug)]
enum Sweep {
    None,
    FindsNothing,
    FindsOddIds,
}

fn address(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn key(n: u8, port: u16, protocol: Protocol) -> SocketKey {
    SocketKey::new(Addr::from(address(n)), Port::new(port), protocol)
}

fn choice() -> impl Strategy<Value = Choice<Target>> {
    let targets = prop::collection::btree_set((10_u8..16, prop::option::of(5000_u16..5002)), 1..5);
    (0..5, targets, prop::collection::vec((1_u32..4, 1_u32..5), 5)).prop_map(|(selector, targets, numbers)| {
        let targets: Vec<_> = targets.into_iter().map(|(n, port)| Target { address: address(n), port }).collect();
        let targets = targets.iter().copied();
        let weighted =
            targets.clone().zip(&numbers).map(|(backend, (weight, _))| Weighted { backend, weight: *weight });
        let rules = targets.clone().zip(&numbers);
        let rules = rules.map(|(backend, (packet, every))| Rule { every: *every, packet: packet % every, backend });
        match selector {
            0 => Choice::Random(weighted.collect()),
            1 => Choice::WeightedRoundRobin(weighted.collect()),
            2 => Choice::RoundRobin(targets.collect()),
            3 => Choice::Nth(Chain::Even(targets.collect())),
            _ => Choice::Nth(Chain::Rules(rules.collect())),
        }
    })
}

fn service(name: &'static str) -> impl Strategy<Value = Service> {
    // Few addresses, so that frontends move between services.
    let listen =
        (1_u8..4, 53_u16..55, prop::collection::btree_set(prop_oneof![Just(Protocol::TCP), Just(Protocol::UDP)], 1..3));
    let schedule = prop_oneof![Just(Schedule::PerFlow), Just(Schedule::PerPacket)];
    (prop::collection::vec(listen, 1..3), schedule, choice()).prop_map(move |(listens, schedule, choice)| Service {
        name: name.to_owned(),
        listens: listens
            .into_iter()
            .map(|(n, port, protocols)| Listen { at: At::Address(address(n)), port, protocols })
            .collect(),
        schedule,
        choice,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let services = (prop::option::of(service("a")), prop::option::of(service("b")), prop::option::of(service("c")));
    let way = prop_oneof![Just(Way::Stack), Just(Way::Peer { ifindex: 7 }), Just(Way::Neighbour { ifindex: 3 })];
    let ways = prop::collection::btree_map((10_u8..16).prop_map(address), way, 0..4);
    let sweep = prop_oneof![Just(Sweep::None), Just(Sweep::FindsNothing), Just(Sweep::FindsOddIds)];
    (services, ways, sweep, any::<bool>()).prop_map(|((a, b, c), ways, sweep, forgets_names)| Step {
        desired: Desired { services: [a, b, c].into_iter().flatten().collect() },
        ways,
        sweep,
        forgets_names,
    })
}

fn found(sweep: &Sweep, tables: &Tables) -> Option<Named> {
    let odd = |id: u32| id % 2 == 1;
    match sweep {
        Sweep::None => None,
        Sweep::FindsNothing => Some(Named::default()),
        Sweep::FindsOddIds => Some(Named {
            backends: tables.backends.keys().copied().filter(|id| odd(id.0)).collect(),
            frontends: tables.frontend_infos.keys().copied().filter(|id| odd(id.0)).collect(),
        }),
    }
}

/// What no packet may ever find otherwise.
fn is_consistent(tables: &Tables) {
    for (key, frontend) in &tables.frontends {
        let info = FrontendInfo { key: *key, service: frontend.service };
        assert_eq!(tables.frontend_infos.get(&frontend.frontend), Some(&info), "the record of frontend {key}");
        let word = tables.services.get(&frontend.service).expect("a frontend leads to a service");
        assert!(word.policy != PolicyId(0), "frontend {key} leads to a service without a policy");
    }
    for (id, word) in tables.services.iter().filter(|(_, word)| word.policy != PolicyId(0)) {
        let policy = tables.policies.get(&word.policy).expect("a policy in force is written");
        assert_eq!(policy.service, *id);
        let words = tables.runs.get(&Run::of(policy)).expect("a run in force is written");
        assert_eq!(words.len(), choice_words(policy).expect("a known index function") + policy.others_count as usize);
        let (words, others) = words.split_at(words.len() - policy.others_count as usize);
        let slots: Vec<Slot> = match policy.index().expect("a known index function") {
            lb_common::service::Index::Chain => {
                words.chunks_exact(2).map(|rule| NthRule::from_words([rule[0], rule[1]]).slot).collect()
            }
            lb_common::service::Index::Random | lb_common::service::Index::Cursor => {
                words.iter().map(|word| Slot::from_word(*word)).collect()
            }
        };
        assert_eq!(slots.len(), policy.slots_count as usize);
        let others = others.iter().map(|word| Slot::from_word(*word));
        let slots = slots.into_iter().chain(others);
        for slot in slots {
            let record = tables.backends.get(&slot.backend).expect("a slot names a backend that exists");
            assert_eq!((record.service, record.state, record.endpoint), (*id, BackendState::Use, slot.endpoint));
            let endpoint = tables.endpoints.get(&record.key).expect("a backend has an endpoint");
            let flag = if policy.is_per_packet() { Endpoint::REPLIES } else { Endpoint::FLOWS };
            assert!(endpoint.flags & flag != 0, "replies from {} are looked for in the wrong table", record.key);
        }
    }
    for record in tables.backends.values() {
        assert_eq!(tables.endpoints.get(&record.key).map(|endpoint| endpoint.id), Some(record.endpoint));
    }
    let ids: BTreeSet<_> = tables.endpoints.values().map(|endpoint| endpoint.id).collect();
    assert_eq!(ids.len(), tables.endpoints.len(), "an endpoint's number is its own");
}

/// The policies and runs of slots that packets may be reading.
#[derive(Default)]
struct Visible {
    policies: BTreeSet<PolicyId>,
    runs: Vec<(Run, usize)>,
}

impl Visible {
    fn see(&mut self, tables: &Tables) {
        for word in tables.services.values() {
            if let Some(policy) = tables.policies.get(&word.policy) {
                self.policies.insert(word.policy);
                self.runs.push((Run::of(policy), tables.runs[&Run::of(policy)].len()));
            }
        }
    }

    fn is_untouched_by(&self, change: &Change) {
        if let Change::WritePolicy(id, _) = change {
            assert!(!self.policies.contains(id), "{change:?} is in force");
        }
        if let Change::WriteRun(run, words) = change {
            let overlaps = |(other, length): &(Run, usize)| {
                let (start, other_start) = (run.start as usize, other.start as usize);
                run.chunk == other.chunk && start < other_start + length && other_start < start + words.len()
            };
            assert!(!self.runs.iter().any(overlaps), "{run:?} is in force");
        }
    }
}

/// A wait that ends what packets may still see, even where nothing but that is left to be done.
fn waits_once_before_it_clears(changes: &[Change]) {
    let clears = |change: &Change| {
        matches!(
            change,
            Change::ClearBackend(_)
                | Change::RemoveEndpoint(_)
                | Change::ClearFrontendInfo(_)
                | Change::ClearService(_)
        )
    };
    let waits: Vec<_> = changes.iter().enumerate().filter(|(_, change)| **change == Change::Grace).collect();
    assert_eq!(waits.len(), usize::from(!changes.is_empty()), "{changes:?}");
    for (at, _) in waits {
        assert!(!changes[..at].iter().any(clears) && changes[at + 1..].iter().all(clears), "{changes:?}");
    }
}

/// Applies changes one by one and looks after each.
fn apply(memory: &mut Memory, changes: &[Change]) {
    let mut visible = Visible::default();
    visible.see(memory.written());
    for change in changes {
        visible.is_untouched_by(change);
        memory.apply(std::slice::from_ref(change)).expect("the change fits");
        is_consistent(memory.written());
        if *change == Change::Grace {
            visible = Visible::default();
        }
        visible.see(memory.written());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_prefix_of_any_history_is_consistent(steps in prop::collection::vec(step(), 1..8)) {
        let capacity = Capacity::default();
        let mut memory = Memory::new(capacity);
        let mut known = BTreeMap::new();
        for step in &steps {
            let current = memory.read().expect("memory can be read");
            let named = found(&step.sweep, &current);
            let compiled = resolve(&step.desired, &BTreeMap::new());
            let make = |current: &Tables, known: &BTreeMap<ServiceKey, ServiceId>, named: Option<&Named>| {
                plan(&compiled, &step.ways, current, known, named, &capacity, 7)
            };
            if step.forgets_names {
                known.clear();
            }
            let next = make(&current, &known, named.as_ref());
            prop_assert_eq!(&next, &make(&current, &known, named.as_ref()), "the same input gives the same output");
            prop_assert_eq!(&next.rejected, &compiled.rejected);

            // Ids that flows name stay who they are.
            for id in named.iter().flat_map(|named| &named.backends) {
                let identity = |tables: &Tables| tables.backends.get(id).map(|one| (one.service, one.key, one.endpoint));
                prop_assert_eq!(identity(&next.tables), identity(&current));
            }
            for id in named.iter().flat_map(|named| &named.frontends) {
                prop_assert_eq!(next.tables.frontend_infos.get(id), current.frontend_infos.get(id));
            }

            let changes = diff(&current, &next);
            waits_once_before_it_clears(&changes);
            apply(&mut memory, &changes);
            let applied = memory.read().expect("memory can be read");
            prop_assert_eq!(&applied, &next.tables, "all changes make what was planned");
            let has_service = |record: &BackendRecord| applied.services.contains_key(&record.service);
            prop_assert!(applied.backends.values().all(has_service), "a backend outlives its service");

            let again = make(&applied, &next.services, None);
            prop_assert_eq!(&again.tables, &next.tables);
            prop_assert_eq!(diff(&applied, &again), []);
            known = next.services;
        }
    }

    #[test]
    fn a_controller_that_dies_at_any_change_is_followed_by_one_that_finishes(
        first in step(), second in step(), at in 0_usize..60,
    ) {
        let capacity = Capacity::default();
        let mut memory = Memory::new(capacity);
        let known = BTreeMap::new();
        let make = |step: &Step, current: &Tables, known| {
            plan(&resolve(&step.desired, &BTreeMap::new()), &step.ways, current, known, None, &capacity, 7)
        };
        let before = make(&first, &Tables::default(), &known);
        memory.apply(&diff(&Tables::default(), &before)).expect("the changes fit");

        let next = make(&second, &before.tables, &before.services);
        let changes = diff(&before.tables, &next);
        let mut memory = memory.failing_after(at);
        let died = memory.apply(&changes).is_err();
        prop_assert_eq!(died, at < changes.len());
        let mut memory = Memory::with_tables(capacity, memory.written().clone());

        let current = memory.read().expect("memory can be read");
        let finished = make(&second, &current, &before.services);
        apply(&mut memory, &diff(&current, &finished));
        let wanted = |tables: &Tables| tables.frontends.keys().copied().collect::<Vec<_>>();
        prop_assert_eq!(wanted(memory.written()), wanted(&next.tables));
    }

    #[test]
    fn a_batch_of_many_plans_waits_once_and_overwrites_nothing_that_packets_see(
        steps in prop::collection::vec(step(), 1..10),
    ) {
        let capacity = Capacity::default();
        let mut memory = Memory::new(capacity);
        let mut batch = Batch::new(Tables::default());
        let mut known = BTreeMap::new();
        for step in &steps {
            let compiled = resolve(&step.desired, &BTreeMap::new());
            let next = plan(&compiled, &step.ways, batch.current(), &known, None, &capacity, 7);
            known = next.services.clone();
            batch.add(next);
        }
        let changes = batch.finish();
        prop_assert!(changes.iter().filter(|change| **change == Change::Grace).count() <= 1);
        apply(&mut memory, &changes);
    }
}

/// A service of one frontend and these backends, by udp.
fn dns(schedule: Schedule, backends: &[u8]) -> Compiled {
    let targets = backends.iter().map(|n| Target { address: address(*n), port: None }).collect();
    let listen = Listen { at: At::Address(address(1)), port: 53, protocols: [Protocol::UDP].into() };
    let service =
        Service { name: "dns".to_owned(), listens: vec![listen], schedule, choice: Choice::RoundRobin(targets) };
    resolve(&Desired { services: vec![service] }, &BTreeMap::new())
}

fn after(desired: &Compiled, before: &Plan, named: Option<&Named>) -> Plan {
    plan(desired, &BTreeMap::new(), &before.tables, &before.services, named, &Capacity::default(), 7)
}

fn backend_at(plan: &Plan, n: u8) -> Option<(BackendId, BackendState)> {
    let at = key(n, 53, Protocol::UDP);
    plan.tables.backends.iter().find(|(_, record)| record.key == at).map(|(id, record)| (*id, record.state))
}

#[test]
fn a_removed_backend_is_kept_until_no_flow_names_it_and_comes_back_as_itself() {
    let first = after(&dns(Schedule::PerFlow, &[10, 11]), &Plan::default(), None);
    let (id, _) = backend_at(&first, 11).expect("it was planned");
    let named = Named { backends: [id].into(), ..Named::default() };

    let removed = after(&dns(Schedule::PerFlow, &[10]), &first, Some(&Named::default()));
    assert_eq!(backend_at(&removed, 11), Some((id, BackendState::UdpGone)), "the sweep was before the removal");
    let kept = after(&dns(Schedule::PerFlow, &[10, 12]), &removed, Some(&named));
    assert_eq!(backend_at(&kept, 11), Some((id, BackendState::UdpGone)));
    assert_ne!(backend_at(&kept, 12).expect("it was planned").0, id);

    let back = after(&dns(Schedule::PerFlow, &[10, 11]), &kept, None);
    assert_eq!(backend_at(&back, 11), Some((id, BackendState::Use)));
    let forgotten = after(&dns(Schedule::PerFlow, &[10]), &kept, Some(&Named::default()));
    assert_eq!(backend_at(&forgotten, 11), None);
    let clears = diff(&kept.tables, &forgotten);
    assert!(clears.contains(&Change::ClearBackend(id)));
    assert!(clears.contains(&Change::RemoveEndpoint(key(11, 53, Protocol::UDP))));
}

#[test]
fn a_service_is_put_in_force_once_its_cursor_was_started() {
    let first = after(&dns(Schedule::PerFlow, &[10]), &Plan::default(), None);
    let changes = diff(&Tables::default(), &first);
    let at = |wanted: fn(&Change) -> bool| changes.iter().position(wanted).expect("a new service has one");
    let started = at(|change| matches!(change, Change::StartService(..)));
    assert!(started < at(|change| matches!(change, Change::SwapService(..))), "{changes:?}");
}

#[test]
fn a_service_that_comes_back_goes_on_with_its_cursor() {
    let first = after(&dns(Schedule::PerFlow, &[10]), &Plan::default(), None);
    assert_eq!(first.cursors.len(), 1);
    let gone = after(&Compiled::default(), &first, None);
    assert!(gone.tables.frontends.is_empty());
    let back = after(&dns(Schedule::PerFlow, &[10]), &gone, None);
    assert_eq!(back.services, first.services);
    assert!(back.cursors.is_empty());

    let forgotten = after(&Compiled::default(), &gone, Some(&Named::default()));
    assert_eq!(forgotten.tables, Tables::default());
    assert!(forgotten.services.is_empty());
}

#[test]
fn a_renamed_service_is_recognised_by_its_frontend() {
    let first = after(&dns(Schedule::PerFlow, &[10, 11]), &Plan::default(), None);
    let mut renamed = Compiled::default();
    for (key, service) in dns(Schedule::PerFlow, &[10, 11]).services {
        renamed.services.insert(ServiceKey { name: "resolver".to_owned(), ..key }, service);
    }
    let next = after(&renamed, &first, None);
    assert_eq!(next.tables, first.tables);
    assert_eq!(next.services.len(), 1);
}

#[test]
fn an_endpoint_keeps_the_flag_of_a_schedule_until_nothing_needs_it() {
    let flags = |plan: &Plan| plan.tables.endpoints[&key(10, 53, Protocol::UDP)].flags;
    let first = after(&dns(Schedule::PerFlow, &[10]), &Plan::default(), None);
    assert_eq!(flags(&first), Endpoint::FLOWS);
    let quiet = Named::default();
    let changed = after(&dns(Schedule::PerPacket, &[10]), &first, Some(&quiet));
    assert_eq!(flags(&changed), Endpoint::FLOWS | Endpoint::REPLIES, "flows could begin after that sweep");
    let (id, _) = backend_at(&changed, 10).expect("it was planned");
    assert_eq!(changed.tables.endpoints[&key(10, 53, Protocol::UDP)].backend, id);
    let busy = Named { backends: [id].into(), ..Named::default() };
    assert_eq!(flags(&after(&dns(Schedule::PerPacket, &[10]), &changed, Some(&busy))), flags(&changed));
    assert_eq!(flags(&after(&dns(Schedule::PerPacket, &[10]), &changed, Some(&quiet))), Endpoint::REPLIES);
}

#[test]
fn what_does_not_fit_is_rejected_by_name_and_the_rest_is_planned() {
    let target = |n| Target { address: address(n), port: None };
    let service = |name: &str, port, backends: &[u8]| Service {
        name: name.to_owned(),
        listens: vec![Listen { at: At::Address(address(1)), port, protocols: [Protocol::UDP].into() }],
        schedule: Schedule::PerFlow,
        choice: Choice::RoundRobin(backends.iter().copied().map(target).collect()),
    };
    let compile = |services| resolve(&Desired { services }, &BTreeMap::new());
    let capacity = Capacity { backends: 4, ..Capacity::default() };
    let make = |desired: &Compiled, before: &Plan| {
        plan(desired, &BTreeMap::new(), &before.tables, &before.services, None, &capacity, 7)
    };

    let first = make(&compile(vec![service("a", 53, &[10, 11])]), &Plan::default());
    assert_eq!(first.rejected, []);
    let next = make(&compile(vec![service("a", 53, &[10, 11, 12, 13]), service("b", 54, &[14])]), &first);
    let why = "no room for its backends; raise limits.backends".to_owned();
    assert_eq!(next.rejected, [Rejected { service: "a".to_owned(), part: Part::Whole, why }]);
    assert!(backend_at(&next, 11).is_some() && backend_at(&next, 12).is_none(), "a goes on as it was");
    assert_eq!(next.tables.services.len(), 2);
    is_consistent(&next.tables);
}

#[test]
fn one_service_changed_often_in_a_batch_always_takes_a_free_policy_and_run() {
    let capacity = Capacity::default();
    let mut memory = Memory::new(capacity);
    let mut plan = Plan::default();
    for _ in 0..3 {
        let mut batch = Batch::new(memory.read().expect("memory can be read"));
        for n in 0..256 {
            let backends: &[u8] = if n % 2 == 0 { &[10, 11] } else { &[11, 10] };
            let desired = dns(Schedule::PerFlow, backends);
            plan = super::plan(&desired, &BTreeMap::new(), batch.current(), &plan.services, None, &capacity, 7);
            batch.add(plan.clone());
        }
        let changes = batch.finish();
        assert_eq!(changes.iter().filter(|change| matches!(change, Change::SwapService(..))).count(), 256);
        apply(&mut memory, &changes);
        assert_eq!(memory.read().expect("memory can be read"), plan.tables);
    }
}

#[test]
fn ten_thousand_services_are_planned_in_moderate_time() {
    let targets = || (10..14).map(|n| Target { address: address(n), port: None }).collect();
    let service = |n: u16| Service {
        name: format!("service-{n}"),
        listens: vec![Listen { at: At::Address(address(1)), port: n, protocols: [Protocol::TCP].into() }],
        schedule: Schedule::PerFlow,
        choice: Choice::RoundRobin(targets()),
    };
    let desired = Desired { services: (1..=10_000).map(service).collect() };
    let limits = crate::settings::Limits { services: 10_000, backends: 40_000, ..Default::default() };
    let capacity = Capacity::from(&limits);
    let compiled = resolve(&desired, &BTreeMap::new());
    let first = plan(&compiled, &BTreeMap::new(), &Tables::default(), &BTreeMap::new(), None, &capacity, 7);
    assert_eq!(first.rejected, []);

    let started = std::time::Instant::now();
    let again = plan(&compiled, &BTreeMap::new(), &first.tables, &first.services, None, &capacity, 7);
    assert_eq!(diff(&first.tables, &again), []);
    // Unoptimised and beside other tests; optimised it is a tenth.
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
    println!("10,000 unchanged services: {:?}", started.elapsed());
}
