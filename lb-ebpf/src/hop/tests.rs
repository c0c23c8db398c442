use lb_common::{addr::Family, device::HOPS};

use super::*;
use crate::testing::{ARRIVED_BY, Cpu, Maps};

const MTU: u32 = 1400;

fn link(last: u16) -> Link {
    Link { destination: [2, 0, last], source: [2, 1, 0xffff] }
}

fn maps() -> Maps {
    let mut maps = Maps::new(2, 2);
    maps.route = Route::Link { ifindex: 7, link: link(1), mtu: MTU };
    maps.abilities.insert(7, Abilities::SENDS);
    maps
}

fn query(client: [u8; 4]) -> RouteQuery {
    let address = |bytes| Addr::from_v4_word(u32::from_ne_bytes(bytes));
    RouteQuery { family: Family::V4, source: address([192, 0, 2, 53]), destination: address(client), through: 0 }
}

fn hop(cpu: &Cpu<'_>, client: [u8; 4]) -> Hop {
    to_client(cpu, FrontendId(1), &query(client), false).expect("the routes name one")
}

#[test]
fn what_is_kept_says_what_was_asked() {
    let maps = maps();
    let cpu = Cpu::new(&maps, 1);
    let expected =
        Hop { ifindex: 7, mtu: MTU, is_resolved: true, is_reminder: false, link: link(1), abilities: Abilities::SENDS };
    assert_eq!(hop(&cpu, [10, 0, 0, 1]), expected, "asked");
    assert_eq!(hop(&cpu, [10, 0, 0, 1]), expected, "kept");
}

#[test]
fn what_is_kept_is_believed_until_its_time_is_over_or_the_network_has_changed() {
    let mut maps = maps();
    let cpu = Cpu::new(&maps, 1);
    hop(&cpu, [10, 0, 0, 1]);
    let record: [u64; 8] = std::array::from_fn(|at| {
        cpu.client_hop(Key::new(&query([10, 0, 0, 1]).destination, ARRIVED_BY, 1).place()).expect("a record")[at].load()
    });
    drop(cpu);
    maps.route = Route::Link { ifindex: 8, link: link(2), mtu: MTU };
    let again = |maps: &Maps, client| {
        let cpu = Cpu::new(maps, 1);
        let kept =
            cpu.client_hop(Key::new(&query([10, 0, 0, 1]).destination, ARRIVED_BY, 1).place()).expect("a record");
        kept.iter().zip(record).for_each(|(word, value)| word.store(value));
        hop(&cpu, client).ifindex
    };
    assert_eq!(again(&maps, [10, 0, 0, 1]), 7);
    assert_eq!(again(&maps, [10, 0, 0, 2]), 8, "someone else's");
    maps.network_version.store(2);
    assert_eq!(again(&maps, [10, 0, 0, 1]), 8, "the network has changed");
    maps.network_version.store(1);
    maps.tick.fetch_add(u64::from(KEPT_TICKS));
    assert_eq!(again(&maps, [10, 0, 0, 1]), 8, "its time is over");
}

#[test]
fn the_kernel_is_reminded_of_who_is_in_use_all_the_time() {
    let maps = maps();
    let cpu = Cpu::new(&maps, 1);
    let mut reminders = 0;
    for _ in 0..4 * REMINDER_TICKS {
        maps.tick.fetch_add(1);
        reminders += u32::from(hop(&cpu, [10, 0, 0, 1]).is_reminder);
    }
    assert!((3..=4).contains(&reminders), "{reminders}");
}

#[test]
fn a_reminder_that_is_due_at_an_early_hook_is_left_to_the_later_one() {
    let maps = maps();
    let cpu = Cpu::new(&maps, 1);
    hop(&cpu, [10, 0, 0, 1]);
    maps.tick.fetch_add(u64::from(REMINDER_TICKS));
    let early = to_client(&cpu, FrontendId(1), &query([10, 0, 0, 1]), true).expect("the routes name one");
    assert!(early.is_reminder);
    assert!(hop(&cpu, [10, 0, 0, 1]).is_reminder, "not yet done");
    assert!(!hop(&cpu, [10, 0, 0, 1]).is_reminder, "done");
}

#[test]
fn an_address_that_the_kernel_has_still_to_learn_is_asked_for_each_time() {
    let mut maps = maps();
    maps.route = Route::Resolve { ifindex: 7 };
    let cpu = Cpu::new(&maps, 1);
    for _ in 0..2 {
        let unresolved = hop(&cpu, [10, 0, 0, 1]);
        assert_eq!((unresolved.is_resolved, unresolved.mtu), (false, u32::MAX));
    }
    let key = Key::new(&query([10, 0, 0, 1]).destination, ARRIVED_BY, 1);
    assert_eq!(cpu.client_hop(key.place()).expect("a record")[0].load(), 0, "nothing is kept");
}

#[test]
fn another_device_than_was_asked_for_is_no_hop() {
    let mut maps = maps();
    let seven = Route::Link { ifindex: 7, link: link(1), mtu: MTU };
    maps.routes_to_backends = [(7, seven), (8, seven)].into();
    let cpu = Cpu::new(&maps, 1);
    let through = |through| RouteQuery { through, ..query([10, 0, 0, 1]) };
    assert_eq!(to_backend(&cpu, BackendId(1), &through(8), false), Err(Route::None));
    assert_eq!(to_backend(&cpu, BackendId(1), &through(7), false).map(|hop| hop.ifindex), Ok(7));
}

#[test]
fn neighbouring_clients_have_records_of_their_own() {
    let places: std::collections::BTreeSet<u32> =
        (0..=255).map(|last| Key::new(&query([10, 0, 0, last]).destination, 1, 1).place()).collect();
    assert!(places.len() > 220, "{}", places.len());
    assert!(places.iter().all(|place| *place < HOPS));
}
