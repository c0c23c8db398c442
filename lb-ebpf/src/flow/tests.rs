//! The flow table with real threads.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
    vec::Vec,
};

use lb_common::{
    addr::{Addr, Port, Protocol},
    backend::{Backend, BackendId, BackendState, EndpointId},
    flow::{Client, Entry, FlowState, Word},
    hash::flow_place,
    reason::Reason,
    selector::{NthRule, Slot},
    service::{FrontendId, Index, Policy, ServiceId, SocketKey},
};

use super::{Begun, begin, find_by_endpoint, find_by_frontend, state::From};
use crate::{
    atomic::Shared,
    kernel::Kernel,
    select::Chooser,
    testing::{Cpu, Maps},
    wire::TcpFlags,
};

const SERVICE: ServiceId = ServiceId(1);
const FRONTEND: FrontendId = FrontendId(1);
const OTHER_FRONTEND: FrontendId = FrontendId(2);

/// Maps with so many backends, each an endpoint of its own, and a policy over one slot each.
fn maps(buckets: usize, backends: u32) -> Maps {
    let mut maps = Maps::new(buckets, 2);
    let slots: Vec<u64> = (1..=backends).map(|n| slot(n).to_word()).collect();
    maps.write_slots(0, &slots);
    maps.cursors.insert(SERVICE, Shared::new(0));
    for n in 1..=backends {
        let key = SocketKey::new(Addr::from_v4_word(n), Port::new(53), Protocol::UDP);
        maps.put_backend(
            BackendId(n),
            Backend {
                way: 0,
                state: BackendState::Use.to_word(),
                endpoint: EndpointId(n),
                key,
                service: SERVICE,
                zero: [0; 6],
            },
        );
    }
    maps
}

fn slot(n: u32) -> Slot {
    Slot { backend: BackendId(n), endpoint: EndpointId(n) }
}

fn policy(index: Index, count: u32) -> Policy {
    Policy {
        index: index.to_word(),
        flags: 0,
        slots_chunk: 0,
        slots_start: 0,
        slots_count: count,
        service: SERVICE,
        others_count: 0,
        zero: [0; 9],
    }
}

/// Clients that are scattered, as real ones are.
fn client(n: u32) -> Client {
    Client {
        address: Addr::from_v4_word(n.wrapping_mul(0x9e37_79b1)),
        port: Port((n.wrapping_mul(0x85eb_ca6b) >> 16) as u16),
        protocol: Protocol::UDP,
    }
}

fn start(cpu: &Cpu<'_>, policy: &Policy, n: u32, frontend: FrontendId, state: FlowState) -> Result<Begun, Reason> {
    let chooser = Chooser::new(
        policy,
        cpu.cursor(SERVICE).expect("the service has a cursor"),
        cpu.slots(0).expect("there is one chunk"),
        cpu,
    )
    .expect("the policy is sound");
    begin(cpu, client(n), frontend, state, &chooser)
}

/// Every flow in the table.
fn flows(maps: &Maps) -> Vec<(FlowState, Entry)> {
    let mut flows = Vec::new();
    for bucket in &maps.flows {
        for (word, entry) in bucket.words.iter().zip(&bucket.entries) {
            let state = Word(word.load()).state();
            if state != FlowState::Free {
                flows.push((state, Entry::from_words(std::array::from_fn(|i| entry[i].load()))));
            }
        }
    }
    flows
}

fn assert_consistent(maps: &Maps) {
    let flows = flows(maps);
    let active: Vec<&Entry> = flows.iter().filter(|(state, _)| state.is_active()).map(|(_, entry)| entry).collect();
    let of_frontend: BTreeSet<_> = active.iter().map(|e| (e.client, e.frontend)).collect();
    assert_eq!(of_frontend.len(), active.len(), "a flow is in the table twice");
    // Moved ones too: whatever an endpoint answers, there is one frontend it can be from.
    let of_endpoint: BTreeSet<_> = flows.iter().map(|(_, e)| (e.client, e.endpoint)).collect();
    let with_frontend: BTreeSet<_> = flows.iter().map(|(_, e)| (e.client, e.endpoint, e.frontend)).collect();
    assert_eq!(of_endpoint.len(), with_frontend.len(), "an endpoint serves a client's port for two frontends");
    assert!(flows.iter().all(|(state, _)| *state != FlowState::Busy), "an entry stayed busy");
    for (id, counted) in &maps.active {
        let in_table = active.iter().filter(|e| e.backend == *id).count() as u64;
        assert_eq!(counted.load(), in_table, "active flows of backend {}", id.0);
    }
}

#[test]
fn the_same_new_flow_on_two_cpus_draws_one_ticket() {
    const FLOWS: u32 = 1_000_000;
    let maps = maps(1 << 18, 7);
    let policy = policy(Index::Cursor, 7);
    thread::scope(|scope| {
        for seed in 0..2 {
            let (maps, policy) = (&maps, &policy);
            scope.spawn(move || {
                let cpu = Cpu::new(maps, seed);
                for n in 0..FLOWS {
                    start(&cpu, policy, n, FRONTEND, FlowState::Udp).expect("there is room");
                }
            });
        }
    });
    assert_eq!(maps.cursors[&SERVICE].load(), FLOWS as u64);
    let counts: Vec<u64> = maps.active.values().map(Shared::load).collect();
    let (min, max) = (counts.iter().min(), counts.iter().max());
    assert!(max.zip(min).is_some_and(|(max, min)| max - min <= 1), "{counts:?}");
    assert_consistent(&maps);
}

#[test]
fn two_cpus_coming_and_going_leave_the_table_consistent() {
    let maps = maps(1 << 5, 7);
    let policy = policy(Index::Cursor, 7);
    thread::scope(|scope| {
        for seed in 1..=2 {
            let (maps, policy) = (&maps, &policy);
            scope.spawn(move || {
                let cpu = Cpu::new(maps, seed);
                for i in 0..5_000_000_u32 {
                    let n = cpu.random() % 512;
                    let frontend = FrontendId(1 + cpu.random() % 2);
                    let state = [FlowState::HalfOpen, FlowState::Established, FlowState::Udp, FlowState::Udp]
                        [(cpu.random() % 4) as usize];
                    match find_by_frontend(&cpu, client(n), frontend) {
                        Some(found) if cpu.random().is_multiple_of(8) => found.retire(&cpu, cpu.now()),
                        Some(found) => found.note(cpu.now(), From::Client, TcpFlags::ACK),
                        None => match start(&cpu, policy, n, frontend, state) {
                            Ok(_) | Err(Reason::FlowTableFull | Reason::Contention) => {}
                            Err(reason) => panic!("{reason:?}"),
                        },
                    }
                    if i.is_multiple_of(64) {
                        maps.tick.fetch_add(5);
                    }
                }
            });
        }
    });
    assert_consistent(&maps);
}

#[test]
fn a_flow_is_found_from_both_directions() {
    let maps = maps(16, 3);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 3);
    for n in 0..30 {
        let Ok(Begun::Made { backend, is_diverted: false }) = start(&cpu, &policy, n, FRONTEND, FlowState::Udp) else {
            panic!("flow {n} was not made");
        };
        let forward = find_by_frontend(&cpu, client(n), FRONTEND).expect("the forward look-up finds it");
        let reply = find_by_endpoint(&cpu, client(n), EndpointId(backend.0)).expect("the reply look-up finds it");
        assert_eq!((forward.backend, reply.backend, reply.frontend), (backend, backend, FRONTEND));
        assert!(find_by_frontend(&cpu, client(n), OTHER_FRONTEND).is_none());
        assert!(find_by_endpoint(&cpu, client(n), EndpointId(backend.0 % 3 + 1)).is_none());
    }
}

#[test]
fn a_client_whose_tag_is_another_s_does_not_find_its_flow() {
    let maps = maps(2, 1);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    let one_port = |n| Client { port: Port::new(4000), ..client(n) };
    let mut by_tag = BTreeMap::new();
    let (first, second) = (0..)
        .find_map(|n| {
            let tag = flow_place(cpu.secret(), cpu.flow_mask(), one_port(n)).tag;
            by_tag.insert(tag, n).map(|earlier| (one_port(earlier), one_port(n)))
        })
        .expect("there are more clients than tags");
    let chooser = Chooser::new(&policy, &maps.cursors[&SERVICE], &maps.slots, &cpu).expect("the policy is sound");
    begin(&cpu, first, FRONTEND, FlowState::Udp, &chooser).expect("there is room");
    assert!(find_by_frontend(&cpu, first, FRONTEND).is_some());
    assert!(find_by_frontend(&cpu, second, FRONTEND).is_none());
    assert!(find_by_endpoint(&cpu, second, EndpointId(1)).is_none());
}

#[test]
fn each_tenant_of_a_way_has_another_version() {
    let maps = maps(2, 1);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    let mut versions = BTreeSet::new();
    for n in 0..64 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("those before have expired");
        for (bucket, content) in maps.flows.iter().enumerate() {
            for (way, (word, entry)) in content.words.iter().zip(&content.entries).enumerate() {
                let word = Word(word.load());
                if word.state() == FlowState::Udp
                    && entry[0].load() == client(n).to_words()[0]
                    && entry[1].load() == client(n).to_words()[1]
                {
                    assert!(versions.insert((bucket, way, word.version())), "flow {n}");
                }
            }
        }
        maps.wait_seconds(60);
    }
    assert_eq!(versions.len(), 64);
}

#[test]
fn a_client_s_second_frontend_gets_another_backend() {
    let maps = maps(16, 4);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 4);
    let Ok(Begun::Made { backend, .. }) = start(&cpu, &policy, 1, FRONTEND, FlowState::Udp) else { panic!() };
    maps.cursors[&SERVICE].store(0); // it would be the first backend's turn again
    let second = start(&cpu, &policy, 1, OTHER_FRONTEND, FlowState::Udp);
    let other = BackendId(backend.0 + 1);
    assert_eq!(second, Ok(Begun::Made { backend: other, is_diverted: true }));
    assert_consistent(&maps);
}

#[test]
fn with_one_backend_a_client_s_second_frontend_is_refused() {
    let maps = maps(16, 1);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    start(&cpu, &policy, 1, FRONTEND, FlowState::Udp).expect("there is room");
    assert_eq!(start(&cpu, &policy, 1, OTHER_FRONTEND, FlowState::Udp), Ok(Begun::Clash));
    assert_consistent(&maps);
}

#[test]
fn a_retired_flow_is_found_by_late_answers_only() {
    let maps = maps(16, 2);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 2);
    start(&cpu, &policy, 1, FRONTEND, FlowState::Udp).expect("there is room");
    find_by_frontend(&cpu, client(1), FRONTEND).expect("it was just made").retire(&cpu, cpu.now());
    assert!(find_by_frontend(&cpu, client(1), FRONTEND).is_none());
    start(&cpu, &policy, 1, FRONTEND, FlowState::Udp).expect("there is room");
    for endpoint in [EndpointId(1), EndpointId(2)] {
        let found = find_by_endpoint(&cpu, client(1), endpoint).expect("its answer may be late");
        assert_eq!(found.frontend, FRONTEND);
    }
    // The old backend may serve the same frontend's client again, but no other frontend's.
    assert_eq!(start(&cpu, &policy, 1, OTHER_FRONTEND, FlowState::Udp), Ok(Begun::Clash));
    assert_consistent(&maps);
    maps.wait_seconds(40);
    for n in 0..16 {
        start(&cpu, &policy, 100 + n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    assert!(find_by_endpoint(&cpu, client(1), EndpointId(1)).is_none());
    assert_consistent(&maps);
}

#[test]
fn a_retired_flow_s_backend_may_be_chosen_again() {
    let maps = maps(16, 1);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    start(&cpu, &policy, 1, FRONTEND, FlowState::Udp).expect("there is room");
    find_by_frontend(&cpu, client(1), FRONTEND).expect("it was just made").retire(&cpu, cpu.now());
    let again = start(&cpu, &policy, 1, FRONTEND, FlowState::Udp);
    assert_eq!(again, Ok(Begun::Made { backend: BackendId(1), is_diverted: false }));
    assert_consistent(&maps);
    // Its answers belong to the flow that goes on.
    find_by_endpoint(&cpu, client(1), EndpointId(1)).expect("it was just made").note(
        cpu.now(),
        From::Backend,
        TcpFlags::default(),
    );
    let states: BTreeSet<FlowState> = flows(&maps).into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [FlowState::UdpAnswered, FlowState::Moved].into());
}

#[test]
fn a_flood_of_half_open_flows_evicts_no_established_one() {
    const LIVE: u32 = 10_000;
    let maps = maps(1 << 13, 4);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 4);
    for n in 0..LIVE {
        start(&cpu, &policy, n, FRONTEND, FlowState::Established).expect("there is room");
    }
    for n in LIVE..LIVE + 1_600_000 {
        start(&cpu, &policy, n, FRONTEND, FlowState::HalfOpen).expect("others of the flood make room");
    }
    for n in 0..LIVE {
        assert!(find_by_frontend(&cpu, client(n), FRONTEND).is_some(), "flow {n} was evicted");
    }
    assert_consistent(&maps);
}

#[test]
fn a_table_full_of_established_flows_refuses_and_draws_no_ticket() {
    let maps = maps(2, 4);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 4);
    for n in 0..16 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Established).expect("there is room");
    }
    assert_eq!(start(&cpu, &policy, 99, FRONTEND, FlowState::Established), Err(Reason::FlowTableFull));
    assert_eq!(maps.cursors[&SERVICE].load(), 16);
    assert_consistent(&maps);
}

#[test]
fn expired_flows_make_room_and_are_counted_down() {
    let maps = maps(2, 4);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 4);
    for n in 0..16 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    maps.wait_seconds(29);
    assert_eq!(start(&cpu, &policy, 50, FRONTEND, FlowState::Udp), Err(Reason::FlowTableFull));
    maps.wait_seconds(10);
    for n in 100..116 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("the old ones have expired");
    }
    assert_consistent(&maps);
    assert!((100..116).all(|n| find_by_frontend(&cpu, client(n), FRONTEND).is_some()));
}

#[test]
fn each_new_flow_sweeps_a_little() {
    let maps = maps(64, 4);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 4);
    for n in 0..200 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    maps.wait_seconds(60);
    for n in 1000..1064 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    // 64 inserts have looked at each of the 64 buckets once.
    assert_eq!(flows(&maps).len(), 64);
    assert_consistent(&maps);
}

#[test]
fn a_refreshed_flow_does_not_expire() {
    let maps = maps(2, 1);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    start(&cpu, &policy, 1, FRONTEND, FlowState::Udp).expect("there is room");
    for n in 0..10 {
        maps.wait_seconds(20);
        find_by_frontend(&cpu, client(1), FRONTEND).expect("it was seen 20 s ago").note(
            cpu.now(),
            From::Client,
            TcpFlags::default(),
        );
        start(&cpu, &policy, 100 + n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    assert!(find_by_frontend(&cpu, client(1), FRONTEND).is_some());
}

#[test]
fn the_clock_may_wrap_around() {
    let maps = maps(2, 1);
    maps.tick.store(lb_common::flow::Tick::MASK as u64 - 10);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Cursor, 1);
    start(&cpu, &policy, 1, FRONTEND, FlowState::Established).expect("there is room");
    maps.wait_seconds(60);
    for n in 0..200 {
        let _ = start(&cpu, &policy, 100 + n, FRONTEND, FlowState::HalfOpen);
    }
    assert!(find_by_frontend(&cpu, client(1), FRONTEND).is_some());
}

#[test]
fn an_unmatched_choice_draws_a_ticket_and_leaves_no_flow() {
    let maps = maps(16, 2);
    let rules: Vec<u64> =
        [1, 2].into_iter().flat_map(|n| NthRule { every: 4, packet: 0, slot: slot(n) }.to_words()).collect();
    maps.write_slots(0, &rules);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Chain, 2);
    let mut taken = Vec::new();
    for n in 0..16 {
        taken.push(match start(&cpu, &policy, n, FRONTEND, FlowState::Udp) {
            Ok(Begun::Made { backend, .. }) => backend.0,
            Ok(Begun::Unmatched) => 0,
            other => panic!("{other:?}"),
        });
    }
    // Rule one takes 0, 4, 8, 12; of the rest, numbered anew, rule two takes 0, 4, 8.
    assert_eq!(taken, [1, 2, 0, 0, 1, 0, 2, 0, 1, 0, 0, 2, 1, 0, 0, 0]);
    assert_eq!(maps.cursors[&SERVICE].load(), 16);
    assert_consistent(&maps);
}

#[test]
fn an_nth_chain_takes_what_the_counters_of_iptables_take() {
    let rules = [(4, 1), (3, 2), (5, 0), (2, 1)];
    let maps = maps(1 << 12, 4);
    let words: Vec<u64> =
        (1..).zip(rules).flat_map(|(n, (every, packet))| NthRule { every, packet, slot: slot(n) }.to_words()).collect();
    maps.write_slots(0, &words);
    let cpu = Cpu::new(&maps, 1);
    let policy = policy(Index::Chain, 4);
    // xt_statistic: a rule's counter moves with each packet that reaches the rule, which takes the one that brings it
    // back to zero.
    let mut counters = rules.map(|(every, packet)| every - 1 - packet);
    for n in 0..480 {
        let expected = rules.iter().zip(&mut counters).position(|((every, _), counter)| {
            *counter = (*counter + 1) % every;
            *counter == 0
        });
        let found = match start(&cpu, &policy, n, FRONTEND, FlowState::Udp) {
            Ok(Begun::Made { backend, .. }) => Some(backend.0 as usize - 1),
            Ok(Begun::Unmatched) => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "choice {n}");
    }
}

#[test]
fn random_choices_reach_every_slot() {
    let maps = maps(1 << 12, 5);
    let cpu = Cpu::new(&maps, 7);
    let policy = policy(Index::Random, 5);
    for n in 0..5000 {
        start(&cpu, &policy, n, FRONTEND, FlowState::Udp).expect("there is room");
    }
    for (id, active) in &maps.active {
        // 1000 expected; five standard deviations are 141.
        assert!((859..=1141).contains(&active.load()), "backend {}: {}", id.0, active.load());
    }
    assert_eq!(maps.cursors[&SERVICE].load(), 0);
}
