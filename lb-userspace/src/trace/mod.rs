//! The decision trace: a line in the log for each packet that was asked for, which says where it went and why.
//!
//! The programs write records ([`lb_common::trace`]), `dataplane` hands them out, and here they become sentences, with
//! names in the place of numbers.
#![forbid(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use lb_common::{
    addr::{Addr, Port, Protocol},
    backend::BackendId,
    reason::{Action, Reason},
    service::SocketKey,
    trace::{Change, Outcome, Program, Record, TARGET},
};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::dataplane::trace::Told;
pub use filter::{Filter, FilterError};

mod filter;

/// What is called how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The interfaces by their numbers.
    pub interfaces: BTreeMap<u32, String>,
    /// The services by their frontends.
    pub services: BTreeMap<SocketKey, String>,
    /// Where backends listen.
    pub backends: BTreeMap<BackendId, SocketKey>,
}

/// The names that the lines of a running trace are written with.
#[derive(Debug)]
pub(crate) struct Known(Option<Arc<Mutex<Names>>>);

impl Known {
    /// From now on the names are these; asked for only while something is traced.
    pub(crate) fn become_(&self, names: impl FnOnce() -> Names) {
        if let Some(known) = &self.0 {
            *known.lock().unwrap_or_else(PoisonError::into_inner) = names();
        }
    }
}

/// How often records are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// How often it is told what is missing.
const TELL_MISSING: Duration = Duration::from_secs(1);

/// Begins to write lines, if anything is traced.
pub(crate) fn follow(told: Option<Told>, names: impl FnOnce() -> Names) -> Known {
    let Some(told) = told else { return Known(None) };
    let known = Arc::new(Mutex::new(names()));
    tokio::spawn(write_lines(told, Arc::clone(&known)));
    Known(Some(known))
}

async fn write_lines(told: Told, known: Arc<Mutex<Names>>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Instant::now() + TELL_MISSING;
    loop {
        looks.tick().await;
        let records = told.records();
        {
            let names = known.lock().unwrap_or_else(PoisonError::into_inner);
            for record in &records {
                info!(target: TARGET, "{}", line(record, &names));
            }
        }
        if Instant::now() < next {
            continue;
        }
        next += TELL_MISSING;
        match told.missing() {
            Ok(missing) if missing.left_out + missing.lost == 0 => {}
            Ok(missing) => {
                let total = missing.left_out + missing.lost;
                warn!(target: TARGET, left_out = missing.left_out, lost = missing.lost, "{total} decisions are not shown");
            }
            Err(error) => warn!(target: TARGET, %error, "it is not known how much is not shown"),
        }
    }
}

/// What a record says.
fn line(record: &Record, names: &Names) -> String {
    let protocol = record.protocol;
    let (source, destination) =
        (end(record.source, record.source_port), end(record.destination, record.destination_port));
    let here = names.interface(record.here);
    let hook = if record.is_early == 0 { "tc" } else { "xdp" };
    let (Some(program), Some(change), Some(outcome)) = (
        Program::from_number(record.program),
        Change::from_number(record.change),
        Outcome::from_number(record.outcome),
    ) else {
        return format!("a record that is not understood: {record:?}");
    };
    let what = match change {
        Change::None => match outcome {
            Outcome::Later => names.left(record, program),
            Outcome::Refused => refused(record),
            Outcome::Stack | Outcome::Neighbour | Outcome::Peer | Outcome::Link => "unchanged, ".to_owned(),
        },
        Change::Destination => {
            let given = end(record.given, record.given_port);
            let service = names.service(record.destination, record.destination_port, protocol);
            let choice = if program.chooses() { "new choice" } else { "known flow" };
            format!("{service}, {choice}, backend {given}, ")
        }
        Change::Source => {
            let service = names.service(record.given, record.given_port, protocol);
            format!("answer of {service}, as from {}, ", end(record.given, record.given_port))
        }
    };
    let exit = names.interface(record.number);
    let way = match outcome {
        Outcome::Stack => "by the stack".to_owned(),
        Outcome::Neighbour => format!("by redirect-neigh out of {exit}"),
        Outcome::Peer => format!("by redirect-peer through {exit}"),
        Outcome::Link => format!("by redirect out of {exit}"),
        Outcome::Later => "left to traffic control".to_owned(),
        Outcome::Refused => String::new(),
    };
    format!("{protocol} {source} -> {destination} at {here}, {hook} {}: {what}{way}", program.name())
}

/// What is done with a packet that is not balanced, and why.
fn refused(record: &Record) -> String {
    let Some(reason) = Reason::ALL.get(record.number as usize) else {
        return format!("not balanced, reason {}", record.number);
    };
    let action = match (reason.action(), record.is_early) {
        (Action::Drop, _) => "dropped",
        (Action::Pass, 0) => "left to the stack",
        (Action::Pass, _) => "left to traffic control",
    };
    format!("{action}, {}: {}", reason.name(), reason.help().trim().trim_end_matches('.'))
}

fn end(address: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(address.to_ip(), port.number())
}

impl Names {
    fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }

    /// A later fragment has no port, so that its service is not known.
    fn service(&self, address: Addr, port: Port, protocol: Protocol) -> &str {
        self.services.get(&SocketKey::new(address, port, protocol)).map_or("a frontend", String::as_str)
    }

    /// What was decided for a packet that a later hook sends.
    fn left(&self, record: &Record, program: Program) -> String {
        let Some(backend) = self.backends.get(&BackendId(record.number)) else { return String::new() };
        let service = self.service(record.destination, record.destination_port, record.protocol);
        let choice = if program.chooses() { "new choice" } else { "known flow" };
        format!("{service}, {choice}, backend {}, ", end(backend.address, backend.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Addr {
        text.parse::<std::net::IpAddr>().expect("an address").into()
    }

    fn names() -> Names {
        let key = |text, port| SocketKey::new(address(text), Port::new(port), Protocol::UDP);
        Names {
            interfaces: [(3, "eth3"), (7, "v1")].map(|(ifindex, name)| (ifindex, name.to_owned())).into(),
            services: [(key("10.9.0.2", 53), "dns".to_owned())].into(),
            backends: [(BackendId(5), key("10.100.13.2", 53))].into(),
        }
    }

    fn query() -> Record {
        Record {
            source: address("10.9.0.1"),
            destination: address("10.9.0.2"),
            given: address("10.100.13.2"),
            source_port: Port::new(41000),
            destination_port: Port::new(53),
            given_port: Port::new(53),
            protocol: Protocol::UDP,
            change: Change::Destination as u8,
            outcome: Outcome::Peer as u8,
            program: Program::Query as u8,
            is_early: 0,
            zero: 0,
            here: 3,
            number: 7,
        }
    }

    #[track_caller]
    fn check(record: Record, expected: &str) {
        assert_eq!(line(&record, &names()), expected);
    }

    #[test]
    fn a_line_says_where_a_packet_went() {
        check(
            query(),
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at eth3, tc query: \
             dns, new choice, backend 10.100.13.2:53, by redirect-peer through v1",
        );
        check(
            Record { program: Program::Clients as u8, outcome: Outcome::Stack as u8, ..query() },
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at eth3, tc clients: \
             dns, known flow, backend 10.100.13.2:53, by the stack",
        );
    }

    #[test]
    fn a_line_says_for_whom_an_answer_is() {
        let answer = Record {
            source: address("10.100.13.2"),
            destination: address("10.9.0.1"),
            given: address("10.9.0.2"),
            source_port: Port::new(53),
            destination_port: Port::new(41000),
            change: Change::Source as u8,
            outcome: Outcome::Link as u8,
            program: Program::Backends as u8,
            here: 7,
            number: 3,
            ..query()
        };
        check(
            answer,
            "udp 10.100.13.2:53 -> 10.9.0.1:41000 at v1, tc backends: \
             answer of dns, as from 10.9.0.2:53, by redirect out of eth3",
        );
    }

    #[test]
    fn a_line_says_what_xdp_decided_and_left() {
        let left =
            Record { change: Change::None as u8, outcome: Outcome::Later as u8, is_early: 1, number: 5, ..query() };
        check(
            left,
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at eth3, xdp query: \
             dns, new choice, backend 10.100.13.2:53, left to traffic control",
        );
        check(
            Record { number: 0, ..left },
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at eth3, xdp query: left to traffic control",
        );
    }

    #[test]
    fn a_line_says_why_a_packet_is_not_balanced() {
        let refused = |reason: Reason| Record {
            change: Change::None as u8,
            outcome: Outcome::Refused as u8,
            number: reason as u32,
            here: 9,
            ..query()
        };
        check(
            refused(Reason::TooBig),
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at interface 9, tc query: \
             dropped, too_big: The packet does not fit the next link",
        );
        check(
            Record { is_early: 1, ..refused(Reason::NotOurs) },
            "udp 10.9.0.1:41000 -> 10.9.0.2:53 at interface 9, xdp query: \
             left to traffic control, not_ours: Neither to a frontend nor from a backend to one's client",
        );
    }
}
