//! What the corpus begins with: a run for each reason that can be met in memory, and some of what a life is made of.
//! `cargo run -p lb-ebpf --features testing --example fuzz-seeds` writes them into the corpus.

use std::{vec, vec::Vec};

use lb_common::{
    backend::{BackendState, Way},
    reason::Reason,
};

use super::{
    Back, Broken, Place, Step, Wait,
    frame::{FIRST, Frame, LAST_HOP, LATER, LONG, NO_SUM, TOO_MANY_EXTENSIONS, UDP, V6},
    world::setups,
};

/// A run, named by what it shows.
pub struct Seed {
    /// The name of its file.
    pub name: &'static str,
    /// The reason that it meets, of those that a seed is there for.
    pub meets: Option<Reason>,
    /// What a run is made of.
    pub bytes: Vec<u8>,
}

/// The reasons that cannot be met in memory by one packet after the other, with why.
pub const OUT_OF_REACH: [(Reason, &str); 2] = [
    (Reason::Contention, "it takes another CPU in the midst of a packet's way through the flow table"),
    (Reason::RewriteRefused, "a packet in memory can be changed wherever it can be read"),
];

const TCP4: u8 = 0;
const TCP6: u8 = V6;
const UDP4: u8 = UDP;
const UDP6: u8 = UDP | V6;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;

/// All of them.
pub fn all() -> Vec<Seed> {
    let mut seeds = reasons();
    seeds.extend(lives());
    seeds
}

fn reasons() -> Vec<Seed> {
    let ask = |column| asks(column, 0);
    let drain = |backend| state(TCP4, 0, backend, BackendState::Drain);
    vec![
        meets(Reason::NotOurs, setups::TURN, vec![asks(UDP4, 3), answers(UDP6, 0), answers(TCP4, 3)]),
        meets(Reason::Truncated, setups::TURN, vec![Step::Raw(Place::Clients, vec![0; 13])]),
        meets(Reason::Malformed, setups::TURN, vec![broken(UDP4, &[], 1), broken(TCP6, &[(18, 0)], 0)]),
        meets(Reason::ExtensionHeaders, setups::TURN, vec![shaped(UDP6, 0, TOO_MANY_EXTENSIONS)]),
        meets(Reason::FragmentUnknown, setups::TURN, vec![shaped(UDP4, 0, LATER), shaped(UDP6, 0, LATER)]),
        meets(Reason::NoFlow, setups::TURN, vec![segment(TCP4, 0, ACK), segment(TCP6, 0, RST)]),
        meets(Reason::SourceScope, setups::TURN, vec![from(3, ask(UDP4)), from(3, ask(UDP6))]),
        meets(Reason::NoRuleMatched, setups::CHAIN, vec![crowd(UDP4, 0, 12), crowd(TCP6, SYN, 12)]),
        meets(Reason::NoBackend, setups::TURN, vec![drain(0), drain(1), drain(2), segment(TCP4, 0, SYN)]),
        meets(Reason::FlowTableFull, setups::SMALL, vec![crowd(UDP4, 0, 40), crowd(UDP6, 0, 4)]),
        meets(Reason::ReplyTableFull, setups::SMALL_QUERIES, vec![crowd(UDP4, 0, 40), crowd(UDP6, 0, 4)]),
        meets(Reason::Clash, setups::TURN, vec![ask(UDP4), asks(UDP4, 1), asks(UDP4, 2)]),
        meets(Reason::HopLimit, setups::TURN, vec![shaped(UDP4, 0, LAST_HOP), shaped(UDP6, 0, LAST_HOP)]),
        meets(Reason::NoRoute, setups::TURN, vec![ask(UDP6), Step::Route(Back::None), answers(UDP6, 0)]),
        meets(Reason::TooBig, setups::TURN, vec![ask(UDP4), Step::Route(Back::TooBig), answers(UDP4, 0)]),
        meets(Reason::Inconsistent, setups::WITHOUT_CURSORS, vec![ask(UDP4), segment(TCP4, 0, SYN)]),
    ]
}

fn lives() -> Vec<Seed> {
    let life = |column| {
        vec![
            segment(column, 0, SYN),
            answer_segment(column, 0, SYN_ACK),
            segment(column, 0, ACK),
            segment(column, 0, FIN_ACK),
            answer_segment(column, 0, FIN_ACK),
            segment(column, 0, SYN),
            answer_segment(column, 0, ACK),
            answer_segment(column, 1, SYN_ACK),
        ]
    };
    let asked = |column| vec![asks(column, 0), answers(column, 0), asks(column, 0), answers(column, 0)];
    let fragments = |column| {
        vec![
            shaped(column, 0, FIRST),
            shaped(column, 0, LATER),
            answer_shaped(column, 0, FIRST),
            answer_shaped(column, 0, LATER),
            wait(32),
            shaped(column, 0, LATER),
        ]
    };
    let leaves = |column, state_then| {
        let mut steps = vec![segment(column, 0, SYN), state(column, 0, 0, state_then)];
        steps.extend([segment(column, 0, ACK), segment(column, 0, SYN), answers(column, 0), answers(column, 1)]);
        steps
    };
    let through = |way| [vec![Step::Way(way)], asked(UDP4), life(TCP6), vec![at(Place::Egress, answers(UDP4, 0))]];
    let stays = |steps: Vec<Step>| [vec![Step::Route(Back::Link)], steps].concat();
    vec![
        seed("tcp-life", setups::TURN, [life(TCP4), life(TCP6)].concat()),
        seed("udp-assured", setups::TURN, stays([asked(UDP4), asked(UDP6)].concat())),
        seed("fragments-of-flows", setups::TURN, [fragments(UDP4), fragments(UDP6)].concat()),
        seed("fragments-of-queries", setups::QUERIES, [fragments(UDP4), fragments(UDP6)].concat()),
        seed("stack", setups::TURN, through(Way::Stack).concat()),
        seed("peer", setups::TURN, through(Way::Peer { ifindex: 8 }).concat()),
        seed(
            "both-at-one-device",
            setups::TURN,
            [life(TCP4), asked(UDP6)].concat().into_iter().map(|step| at(Place::Both, step)).collect(),
        ),
        seed("xdp-in-front", setups::TURN, stays([life(TCP4), asked(UDP6)].concat()).into_iter().map(early).collect()),
        seed(
            "xdp-in-front-of-queries",
            setups::CHAIN_OF_QUERIES,
            stays([asked(UDP4), asked(UDP6), fragments(UDP4)].concat()).into_iter().map(early).collect(),
        ),
        seed("sums", setups::TURN, vec![shaped(UDP4, 0, NO_SUM), shaped(UDP6, 0, LONG), broken(UDP4, &[(40, 1)], 0)]),
        seed("another-host", setups::TURN, vec![broken(UDP4, &[(0, 2)], 0), broken(TCP6, &[(5, 2)], 0)]),
        seed("drained", setups::TURN, [UDP4, TCP6].map(|column| leaves(column, BackendState::Drain)).concat()),
        seed("removed", setups::TURN, [TCP4, UDP6].map(|column| leaves(column, BackendState::UdpGone)).concat()),
        seed(
            "drained-to-the-last",
            setups::TURN,
            [UDP4, TCP6]
                .map(|column| {
                    let drains = [0, 1, 2].map(|backend| state(column, 0, backend, BackendState::Drain));
                    let opens = segment(column, 0, SYN);
                    let goes_on = [opens.clone(), segment(column, 0, ACK)];
                    [&[opens][..], &drains, &goes_on].concat()
                })
                .concat(),
        ),
        seed("dead", setups::TURN, [TCP4, UDP4].map(|column| leaves(column, BackendState::Dead)).concat()),
        seed(
            "half-open-flood",
            setups::SMALL,
            [vec![crowd(TCP4, SYN, 40)], life(TCP4), vec![crowd(TCP4, SYN, 40), segment(TCP4, 0, ACK)]].concat(),
        ),
        seed(
            "expired-make-room",
            setups::SMALL,
            vec![crowd(UDP4, 0, 20), wait(61), crowd(UDP6, 0, 20), wait(24 * 60 * 60 + 2), crowd(TCP4, SYN, 20)],
        ),
        seed("diverted", setups::WEIGHTED, vec![crowd(UDP4, 0, 6), crowd_to(UDP4, 1, 6), crowd_to(UDP4, 2, 6)]),
        seed(
            "frontend-removed",
            setups::TURN,
            vec![
                asks(UDP4, 0),
                Step::Frontend { column: UDP4, frontend: 0, is_there: false },
                asks(UDP4, 0),
                answers(UDP4, 0),
                Step::Frontend { column: UDP4, frontend: 0, is_there: true },
                asks(UDP4, 0),
            ],
        ),
        seed("queries", setups::QUERIES, [asked(UDP4), asked(UDP6), vec![wait(29), answers(UDP4, 1)]].concat()),
        seed("queries-late", setups::QUERIES, vec![asks(UDP4, 0), wait(32), answers(UDP4, 0), asks(UDP4, 2)]),
        seed("queries-clash", setups::QUERIES, vec![crowd(UDP4, 0, 4), crowd_to(UDP4, 1, 4), crowd_to(UDP4, 2, 4)]),
        seed("queries-of-a-chain", setups::CHAIN_OF_QUERIES, vec![crowd(UDP6, 0, 12), answers(UDP6, 0)]),
        seed(
            "queries-beside-flows",
            setups::BOTH,
            vec![asks(UDP4, 2), asks(UDP4, 0), answers(UDP4, 0), answers(UDP4, 1), asks(UDP4, 1), asks(UDP4, 0)],
        ),
        seed(
            "flows-beside-queries",
            setups::BOTH,
            vec![asks(UDP6, 0), asks(UDP6, 1), asks(UDP6, 2), asks(UDP6, 2), answers(UDP6, 0), answers(UDP6, 1)],
        ),
        seed(
            "noted-where-it-was-not-sent",
            setups::BOTH,
            vec![asks(UDP4, 2), wait(29), asks(UDP4, 0), wait(3), from(1, crowd_to(UDP4, 2, 8)), answers(UDP4, 0)],
        ),
        seed(
            "schedule-changed",
            setups::BOTH,
            vec![
                asks(UDP4, 0),
                Step::Schedule { column: UDP4, service: 0 },
                asks(UDP4, 0),
                asks(UDP4, 0),
                Step::Schedule { column: UDP4, service: 1 },
                asks(UDP4, 2),
                answers(UDP4, 0),
                answers(UDP4, 1),
            ],
        ),
    ]
}

fn meets(reason: Reason, setup: u8, steps: Vec<Step>) -> Seed {
    Seed { meets: Some(reason), ..seed(reason.name(), setup, steps) }
}

fn seed(name: &'static str, setup: u8, steps: Vec<Step>) -> Seed {
    let bytes = [setup].into_iter().chain(steps.iter().flat_map(Step::to_bytes)).collect();
    Seed { name, meets: None, bytes }
}

fn asks(column: u8, frontend: u8) -> Step {
    Step::Packet(Place::Clients, Frame::asks(column, frontend, 0))
}

fn answers(column: u8, endpoint: u8) -> Step {
    Step::Packet(Place::Backends, Frame::answers(column, endpoint, 0))
}

fn segment(column: u8, frontend: u8, flags: u8) -> Step {
    Step::Packet(Place::Clients, Frame { flags, ..Frame::asks(column, frontend, 0) })
}

fn answer_segment(column: u8, endpoint: u8, flags: u8) -> Step {
    Step::Packet(Place::Backends, Frame { flags, ..Frame::answers(column, endpoint, 0) })
}

fn shaped(column: u8, frontend: u8, shape: u8) -> Step {
    Step::Packet(Place::Clients, Frame { shape, ..Frame::asks(column, frontend, 0) })
}

fn answer_shaped(column: u8, endpoint: u8, shape: u8) -> Step {
    Step::Packet(Place::Backends, Frame { shape, ..Frame::answers(column, endpoint, 0) })
}

fn broken(column: u8, changes: &[(u8, u8)], cut: u8) -> Step {
    Step::Broken(Place::Clients, Frame::asks(column, 0, 0), Broken { changes: changes.to_vec(), cut })
}

fn crowd(column: u8, flags: u8, count: u8) -> Step {
    Step::Crowd(Place::Clients, Frame { flags, ..Frame::asks(column, 0, 0) }, count)
}

fn crowd_to(column: u8, frontend: u8, count: u8) -> Step {
    Step::Crowd(Place::Clients, Frame::asks(column, frontend, 0), count)
}

fn state(column: u8, service: u8, backend: u8, state: BackendState) -> Step {
    Step::State { column, service, backend, state }
}

fn wait(seconds: u32) -> Step {
    let which = Wait::SECONDS.iter().position(|each| *each == seconds);
    Step::Wait(Wait(which.unwrap_or_else(|| unreachable!("no wait is of {seconds} s")) as u8))
}

fn from(client: u8, mut step: Step) -> Step {
    if let Step::Packet(_, frame) | Step::Crowd(_, frame, _) = &mut step {
        frame.client = client;
    }
    step
}

/// The same with XDP in front, where it is a packet.
fn early(mut step: Step) -> Step {
    if let Step::Packet(place, _) = &mut step {
        *place = match *place {
            Place::Clients => Place::ClientsEarly,
            Place::Backends => Place::BackendsEarly,
            Place::Both => Place::BothEarly,
            other @ (Place::Egress | Place::ClientsEarly | Place::BackendsEarly | Place::BothEarly) => other,
        };
    }
    step
}

fn at(place: Place, mut step: Step) -> Step {
    if let Step::Packet(old, _) = &mut step {
        *old = place;
    }
    step
}
