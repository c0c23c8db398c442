//! Any bytes → a world and what happens in it: the whole data path, held against what it promises after each packet.
//!
//! One source for the fuzz target and for the test that replays its corpus. What the bytes stand for is here; how the
//! maps are filled, what is promised, and the seeds of the corpus are below.

use std::{boxed::Box, cell::RefCell, collections::BTreeSet, env, vec::Vec};

use lb_common::{
    backend::{BackendState, Way},
    reason::Reason,
};

use super::no_slots;
use crate::kernel::SlotChunk;

mod world;
mod frame;
mod layout;
mod promises;
pub mod seeds;

use frame::Frame;
use world::{SETUPS, World};

/// What one run may send, so that each takes a millisecond at most.
const PACKETS_MAX: usize = 200;

/// The environment variable that has each step told before it happens.
pub const TELLS: &str = "EVENKEEL_FUZZ_TELLS";

/// Lets happen what the bytes stand for, and returns why packets were not balanced.
///
/// # Panics
/// When the data path breaks a promise, with the step at which it did.
pub fn run(bytes: &[u8]) -> BTreeSet<Reason> {
    // Four mebibytes, which would take longer to make than most runs take.
    std::thread_local! { static SLOTS: RefCell<Option<Box<SlotChunk>>> = const { RefCell::new(None) }; }
    let mut input = Input { rest: bytes };
    let Some(setup) = input.byte() else { return BTreeSet::new() };
    let slots = SLOTS.take().unwrap_or_else(no_slots);
    let mut world = World::new(&SETUPS[setup as usize % SETUPS.len()], slots);
    let is_told = env::var_os(TELLS).is_some();
    let mut reasons = BTreeSet::new();
    let mut packets = 0;
    while let Some(step) = Step::read(&mut input) {
        packets += step.packets();
        if packets > PACKETS_MAX {
            break;
        }
        if is_told {
            eprintln!("{step:?}");
        }
        let met = step.happen(&mut world);
        if is_told && !met.is_empty() {
            eprintln!("    {met:?}");
        }
        reasons.extend(met);
    }
    SLOTS.set(Some(world.maps.slots));
    reasons
}

/// What is left of the bytes.
struct Input<'b> {
    rest: &'b [u8],
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn bytes(&mut self, count: usize) -> Option<&[u8]> {
        let (these, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(these)
    }
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// A packet comes by.
    Packet(Place, Frame),
    /// A packet of which bytes are changed, and the end is cut off.
    Broken(Place, Frame, Broken),
    /// Bytes come by.
    Raw(Place, Vec<u8>),
    /// The same packet from so many ports, one after the other.
    Crowd(Place, Frame, u8),
    /// Time passes.
    Wait(Wait),
    /// A backend of one column and service changes its state, and the service chooses by that from now on.
    State { column: u8, service: u8, backend: u8, state: BackendState },
    /// All backends are reached another way.
    Way(Way),
    /// Replies find another way back.
    Route(Back),
    /// A frontend is removed or comes back.
    Frontend { column: u8, frontend: u8, is_there: bool },
    /// A UDP service changes its schedule, in a setup that has both.
    Schedule { column: u8, service: u8 },
}

/// At which program a packet comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Clients,
    Backends,
    Both,
    Egress,
    /// As the three of ingress, with XDP in front of traffic control.
    ClientsEarly,
    BackendsEarly,
    BothEarly,
}

impl Place {
    const ALL: [Self; 7] = [
        Self::Clients,
        Self::Backends,
        Self::Both,
        Self::Egress,
        Self::ClientsEarly,
        Self::BackendsEarly,
        Self::BothEarly,
    ];

    /// Without what stands in front of traffic control; and whether something does.
    const fn split(self) -> (Self, bool) {
        match self {
            Self::Clients | Self::Backends | Self::Both | Self::Egress => (self, false),
            Self::ClientsEarly => (Self::Clients, true),
            Self::BackendsEarly => (Self::Backends, true),
            Self::BothEarly => (Self::Both, true),
        }
    }
}

/// How a packet is broken: bytes at offsets, which wrap at its end, and how much of its end is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Broken {
    changes: Vec<(u8, u8)>,
    cut: u8,
}

/// How long is waited: around what flows, replies and fragments live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait(u8);

impl Wait {
    const SECONDS: [u32; 8] = [1, 3, 29, 32, 61, 121, 3600, 24 * 60 * 60 + 2];

    fn seconds(self) -> u32 {
        Self::SECONDS[self.0 as usize % Self::SECONDS.len()]
    }
}

/// How replies leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    Link,
    Resolve,
    TooBig,
    None,
}

impl Back {
    const ALL: [Self; 4] = [Self::Link, Self::Resolve, Self::TooBig, Self::None];
}

const WAYS: [Way; 3] = [Way::Stack, Way::Neighbour { ifindex: world::OUT }, Way::Peer { ifindex: 8 }];

/// Changes of one packet.
const CHANGES_MAX: u8 = 7;

impl Step {
    fn read(input: &mut Input<'_>) -> Option<Self> {
        Some(match input.byte()? % 10 {
            0 => Self::Packet(pick(&Place::ALL, input.byte()?), Frame::read(input)?),
            1 => {
                let (place, frame) = (pick(&Place::ALL, input.byte()?), Frame::read(input)?);
                let count = input.byte()? & CHANGES_MAX;
                let mut changes = Vec::new();
                for _ in 0..count {
                    changes.push((input.byte()?, input.byte()?));
                }
                Self::Broken(place, frame, Broken { changes, cut: input.byte()? })
            }
            2 => {
                let (place, length) = (pick(&Place::ALL, input.byte()?), input.byte()?);
                Self::Raw(place, input.bytes(length as usize)?.to_vec())
            }
            3 => Self::Crowd(pick(&Place::ALL, input.byte()?), Frame::read(input)?, input.byte()?),
            4 => Self::Wait(Wait(input.byte()?)),
            5 => {
                let (which, state) = (input.byte()?, pick(&BackendState::ALL, input.byte()?));
                Self::State { column: which & 3, service: which >> 2 & 1, backend: which >> 3 & 3, state }
            }
            6 => Self::Way(pick(&WAYS, input.byte()?)),
            7 => Self::Route(pick(&Back::ALL, input.byte()?)),
            8 => {
                let which = input.byte()?;
                Self::Frontend { column: which & 3, frontend: which >> 2 & 3, is_there: which >> 4 & 1 != 0 }
            }
            _ => {
                let which = input.byte()?;
                Self::Schedule { column: which & 3, service: which >> 2 & 1 }
            }
        })
    }

    /// The bytes that [`Step::read`] makes this of.
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Packet(place, frame) => [&[0, *place as u8], &frame.to_bytes()[..]].concat(),
            Self::Broken(place, frame, Broken { changes, cut }) => {
                let mut bytes = [&[1, *place as u8], &frame.to_bytes()[..], &[changes.len() as u8]].concat();
                bytes.extend(changes.iter().flat_map(|(offset, value)| [*offset, *value]));
                bytes.push(*cut);
                bytes
            }
            Self::Raw(place, raw) => [&[2, *place as u8, raw.len() as u8], &raw[..]].concat(),
            Self::Crowd(place, frame, count) => [&[3, *place as u8], &frame.to_bytes()[..], &[*count]].concat(),
            Self::Wait(Wait(which)) => Vec::from([4, *which]),
            Self::State { column, service, backend, state } => {
                Vec::from([5, column | service << 2 | backend << 3, state.to_word() as u8])
            }
            Self::Way(way) => Vec::from([6, (way.to_word() >> 32) as u8]),
            Self::Route(back) => Vec::from([7, *back as u8]),
            Self::Frontend { column, frontend, is_there } => {
                Vec::from([8, column | frontend << 2 | u8::from(*is_there) << 4])
            }
            Self::Schedule { column, service } => Vec::from([9, column | service << 2]),
        }
    }

    fn packets(&self) -> usize {
        match self {
            Self::Packet(..) | Self::Broken(..) | Self::Raw(..) => 1,
            Self::Crowd(_, _, count) => *count as usize,
            Self::Wait(_)
            | Self::State { .. }
            | Self::Way(_)
            | Self::Route(_)
            | Self::Frontend { .. }
            | Self::Schedule { .. } => 0,
        }
    }

    /// Why its packets were not balanced.
    fn happen(&self, world: &mut World) -> Vec<Reason> {
        match self {
            Self::Packet(place, frame) => {
                let datagram = frame.datagram(0);
                return world.pass(*place, &datagram.bytes(), Some(&datagram)).into_iter().collect();
            }
            Self::Broken(place, frame, broken) => {
                return world.pass(*place, &broken.of(frame.datagram(0).bytes()), None).into_iter().collect();
            }
            Self::Raw(place, raw) => return world.pass(*place, raw, None).into_iter().collect(),
            Self::Crowd(place, frame, count) => {
                let datagrams = (0..*count).map(|n| frame.datagram(n));
                return datagrams.filter_map(|each| world.pass(*place, &each.bytes(), Some(&each))).collect();
            }
            Self::Wait(wait) => world.wait(wait.seconds()),
            Self::State { column, service, backend, state } => world.set_state(*column, *service, *backend, *state),
            Self::Way(way) => world.set_way(*way),
            Self::Route(back) => world.set_route(*back),
            Self::Frontend { column, frontend, is_there } => world.set_frontend(*column, *frontend, *is_there),
            Self::Schedule { column, service } => world.change_schedule(*column, *service),
        }
        Vec::new()
    }
}

impl Broken {
    fn of(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (offset, value) in &self.changes {
            let length = bytes.len();
            bytes[*offset as usize % length] = *value;
        }
        bytes.truncate(bytes.len().saturating_sub(self.cut as usize));
        bytes
    }
}

fn pick<T: Copy>(of: &[T], by: u8) -> T {
    of[by as usize % of.len()]
}

#[cfg(test)]
mod tests;
