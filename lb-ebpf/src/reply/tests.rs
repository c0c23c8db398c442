//! The reply table with real threads.

use std::{sync::atomic::AtomicU64, sync::atomic::Ordering, thread};

use lb_common::{
    addr::{Addr, Port, Protocol},
    backend::EndpointId,
    flow::Client,
    reply::{REPLY_SETTLED_SECONDS, REPLY_TIMEOUT_SECONDS, ReplyWord},
    service::FrontendId,
};

use super::{Asked, answer, ask, is_asked_by_another, take_back};
use crate::testing::{Cpu, Maps, TICKS_PER_SECOND};

const ENDPOINT: EndpointId = EndpointId(1);

fn client(n: u32) -> Client {
    Client {
        address: Addr::from_v4_word(n.wrapping_mul(0x9e37_79b1)),
        port: Port((n.wrapping_mul(0x85eb_ca6b) >> 16) as u16),
        protocol: Protocol::UDP,
    }
}

#[test]
fn every_answer_finds_the_frontend_that_was_asked() {
    let maps = Maps::new(2, 1 << 10);
    let cpu = Cpu::new(&maps, 1);
    for n in 0..2000 {
        assert_eq!(ask(&cpu, client(n), ENDPOINT, FrontendId(1 + n % 3)), Asked::Noted);
    }
    for n in 0..2000 {
        assert_eq!(answer(&cpu, client(n), ENDPOINT), Some(FrontendId(1 + n % 3)), "client {n}");
    }
}

#[test]
fn repeated_and_late_answers_find_it_too() {
    let maps = Maps::new(2, 16);
    let cpu = Cpu::new(&maps, 1);
    ask(&cpu, client(1), ENDPOINT, FrontendId(5));
    ask(&cpu, client(1), ENDPOINT, FrontendId(5));
    for _ in 0..2 {
        assert_eq!(answer(&cpu, client(1), ENDPOINT), Some(FrontendId(5)));
    }
    maps.wait_seconds(3);
    assert_eq!(answer(&cpu, client(1), ENDPOINT), Some(FrontendId(5)));
}

#[test]
fn a_foreign_packet_finds_nothing() {
    let maps = Maps::new(2, 1 << 6);
    let cpu = Cpu::new(&maps, 1);
    for n in 0..300 {
        ask(&cpu, client(n), ENDPOINT, FrontendId(1));
    }
    for n in 0..200_000 {
        assert_eq!(answer(&cpu, client(1_000_000 + n), ENDPOINT), None);
        assert_eq!(answer(&cpu, client(n % 300), EndpointId(2 + n)), None);
    }
}

#[test]
fn an_answer_after_the_time_out_is_foreign() {
    let maps = Maps::new(2, 16);
    let cpu = Cpu::new(&maps, 1);
    ask(&cpu, client(1), ENDPOINT, FrontendId(5));
    maps.wait_seconds(REPLY_TIMEOUT_SECONDS + 3);
    assert_eq!(answer(&cpu, client(1), ENDPOINT), None);
}

#[test]
fn a_note_that_was_taken_back_serves_no_answer_and_stands_in_no_one_s_way() {
    let maps = Maps::new(2, 16);
    let cpu = Cpu::new(&maps, 1);
    ask(&cpu, client(1), ENDPOINT, FrontendId(5));
    take_back(&cpu, client(1), ENDPOINT, FrontendId(6));
    assert_eq!(answer(&cpu, client(1), ENDPOINT), Some(FrontendId(5)), "another's note is left alone");
    take_back(&cpu, client(1), ENDPOINT, FrontendId(5));
    assert_eq!(answer(&cpu, client(1), ENDPOINT), None);
    assert_eq!(is_asked_by_another(&cpu, client(1), ENDPOINT, FrontendId(6)), Some(false));
}

#[test]
fn an_entry_that_is_not_confirmed_serves_no_answer_and_vouches_for_no_query() {
    let maps = Maps::new(2, 16);
    let cpu = Cpu::new(&maps, 1);
    assert_eq!(ask(&cpu, client(1), ENDPOINT, FrontendId(5)), Asked::Noted);
    // As it is while the CPU that wrote it looks for other frontends, and may yet take it back.
    for [_, word] in maps.replies.iter().flat_map(|bucket| &bucket.entries) {
        word.store(word.load() & !ReplyWord::CONFIRMED);
    }
    assert_eq!(answer(&cpu, client(1), ENDPOINT), None);
    assert_eq!(ask(&cpu, client(1), ENDPOINT, FrontendId(6)), Asked::Clash);
    assert_eq!(ask(&cpu, client(1), ENDPOINT, FrontendId(5)), Asked::Noted);
    assert_eq!(answer(&cpu, client(1), ENDPOINT), Some(FrontendId(5)));
}

#[test]
fn another_frontend_clashes_until_the_time_out_and_not_after() {
    let maps = Maps::new(2, 16);
    let cpu = Cpu::new(&maps, 1);
    ask(&cpu, client(1), ENDPOINT, FrontendId(5));
    assert_eq!(ask(&cpu, client(1), ENDPOINT, FrontendId(6)), Asked::Clash);
    assert_eq!(ask(&cpu, client(1), EndpointId(2), FrontendId(6)), Asked::Noted);
    maps.wait_seconds(REPLY_TIMEOUT_SECONDS + 3);
    assert_eq!(ask(&cpu, client(1), ENDPOINT, FrontendId(6)), Asked::Noted);
    assert_eq!(answer(&cpu, client(1), ENDPOINT), Some(FrontendId(6)));
}

#[test]
fn an_unanswered_query_is_never_evicted() {
    let maps = Maps::new(2, 2);
    let cpu = Cpu::new(&maps, 1);
    let noted = (0..100).filter(|n| ask(&cpu, client(*n), ENDPOINT, FrontendId(1)) == Asked::Noted).count();
    assert_eq!(noted, 16);
    let found = (0..100).filter(|n| answer(&cpu, client(*n), ENDPOINT).is_some()).count();
    assert_eq!(found, 16);
}

#[test]
fn an_answered_query_makes_room_once_it_is_settled() {
    let maps = Maps::new(2, 2);
    let cpu = Cpu::new(&maps, 1);
    for n in 0..16 {
        assert_eq!(ask(&cpu, client(n), ENDPOINT, FrontendId(1)), Asked::Noted);
        assert!(answer(&cpu, client(n), ENDPOINT).is_some());
    }
    assert_eq!(ask(&cpu, client(100), ENDPOINT, FrontendId(1)), Asked::NoRoom);
    maps.wait_seconds(5);
    assert_eq!(ask(&cpu, client(100), ENDPOINT, FrontendId(1)), Asked::Noted);
}

#[test]
fn an_answer_is_settled_a_while_after_the_last_query_of_its_pair() {
    let maps = Maps::new(2, 2);
    let cpu = Cpu::new(&maps, 1);
    for n in 0..16 {
        assert_eq!(ask(&cpu, client(n), ENDPOINT, FrontendId(1)), Asked::Noted);
    }
    // A query so soon after another does not write the time, and the answer to the first makes the pair evictable.
    maps.tick.fetch_add(3);
    for n in 0..16 {
        assert_eq!(ask(&cpu, client(n), ENDPOINT, FrontendId(1)), Asked::Noted);
        assert!(answer(&cpu, client(n), ENDPOINT).is_some());
    }
    maps.tick.fetch_add((REPLY_SETTLED_SECONDS * TICKS_PER_SECOND).into());
    assert_eq!(ask(&cpu, client(100), ENDPOINT, FrontendId(1)), Asked::NoRoom);
    assert!(answer(&cpu, client(0), ENDPOINT).is_some());
}

#[test]
fn two_cpus_never_note_two_frontends_for_one_pair() {
    const PAIRS: u32 = 100_000;
    let maps = Maps::new(2, 1 << 15);
    let turn = AtomicU64::new(0);
    let wrong = AtomicU64::new(0);
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (maps, turn, wrong) = (&maps, &turn, &wrong);
            scope.spawn(move || {
                let cpu = Cpu::new(maps, cpu);
                loop {
                    let turn = turn.fetch_add(1, Ordering::Relaxed) as u32;
                    if turn >= 2 * PAIRS {
                        break;
                    }
                    let (pair, frontend) = (turn / 2, FrontendId(1 + turn % 2));
                    if ask(&cpu, client(pair), ENDPOINT, frontend) == Asked::Noted
                        && answer(&cpu, client(pair), ENDPOINT).is_some_and(|found| found != frontend)
                    {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(wrong.into_inner(), 0);
}
