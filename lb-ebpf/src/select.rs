//! A ticket → a slot: the kernel's few index functions.

use core::num::NonZeroU64;

use lb_common::{
    limits::NTH_RULES_MAX,
    selector::{NthRule, Slot},
    service::{Index, Policy},
};

use crate::{
    atomic::{Hidden, Shared},
    kernel::{Kernel, SlotChunk, forget, slot_word},
};

/// Slots tried before a clash refuses a choice.
pub static TRIES: Hidden = Hidden(4);

/// Everything a choice needs, fetched beforehand: under the flow table's lock nothing can be looked up.
#[derive(Clone, Copy)]
pub struct Chooser<'k> {
    index: Index,
    cursor: &'k Shared,
    slots: &'k SlotChunk,
    run: Run,
    others: Run,
    random: u64,
    scratch: &'k Shared,
}

/// Where slots lie.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    count: NonZeroU64,
    /// Words from one slot to the next, and before the first: an nth rule has its numbers first.
    stride: u64,
    skip: u64,
}

/// A ticket drawn and what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// The position in the run of slots, or in the chain of rules, of the backend whose turn it is.
    Position(u64),
    /// No rule of the chain takes it.
    Unmatched,
}

impl<'k> Chooser<'k> {
    /// A chooser for `policy`; `None` where the record is not one this program knows.
    #[inline(always)]
    pub fn new(policy: &Policy, cursor: &'k Shared, slots: &'k SlotChunk, kernel: &'k impl Kernel) -> Option<Self> {
        let count = NonZeroU64::new(policy.slots_count as u64)?;
        let index = policy.index()?;
        let scratch = kernel.scratch()?;
        let (stride, skip) = match index {
            Index::Random | Index::Cursor => (1, 0),
            Index::Chain => (NthRule::WORDS as u64, 1),
        };
        let start = policy.slots_start as u64;
        let run = Run { start, count, stride: forget(scratch, stride), skip: forget(scratch, skip) };
        let others = match NonZeroU64::new(policy.others_count as u64) {
            Some(others) => Run { start: start + count.get() * run.stride, count: others, stride: 1, skip: 0 },
            None => run,
        };
        Some(Self { index, cursor, slots, run, others, random: kernel.random() as u64, scratch })
    }

    /// Draws a ticket. The cursor moves here and nowhere else.
    #[inline(always)]
    pub fn draw(&self) -> Ticket {
        match self.index {
            // Multiply and shift: no bias beyond 2⁻³² · count, and no division.
            Index::Random => Ticket::Position((self.random * self.run.count.get()) >> 32),
            Index::Cursor => Ticket::Position(self.cursor.fetch_add(1) % self.run.count),
            Index::Chain => self.walk(self.cursor.fetch_add(1)),
        }
    }

    /// The slot at a position; after `tries` clashes one of the others, which hold each backend, in turn.
    #[inline(always)]
    pub fn slot(&self, position: u64, tries: u64) -> Slot {
        let run = if tries == 0 { &self.run } else { &self.others };
        let at = (position + tries) % run.count;
        Slot::from_word(slot_word(self.slots, run.start + at * run.stride + run.skip))
    }

    /// Which rule of the chain takes choice number `choice`: each rule sees only what the rules before it left.
    #[inline(always)]
    fn walk(&self, choice: u64) -> Ticket {
        let mut choice = choice;
        let mut rule = 0;
        // A constant bound, because the verifier must see that the loop ends.
        while rule < NTH_RULES_MAX as u64 {
            if rule >= self.run.count.get() {
                break;
            }
            let word = slot_word(self.slots, self.run.start + rule * NthRule::WORDS as u64);
            let (every, packet) = (word & 0xffff_ffff, word >> 32);
            if every == 0 {
                break;
            }
            if choice % every == packet {
                return Ticket::Position(forget(self.scratch, rule));
            }
            // Of the choices before this one, the rule took those numbered packet, packet + every, …
            choice -= (choice + every - 1 - packet) / every;
            rule += 1;
        }
        Ticket::Unmatched
    }
}
