//! What stands for the decision trace in the object without it: nothing.

use lb_common::{
    reason::Reason,
    trace::{Outcome, Program},
};
use lb_ebpf::packet::Packet;

use super::Context;

/// Keeps nothing.
pub(crate) struct Decision;

impl Decision {
    #[inline(always)]
    pub(crate) const fn pending() -> Self {
        Self
    }

    #[inline(always)]
    pub(crate) const fn is(&mut self, _outcome: Outcome, _number: u32) {}

    #[inline(always)]
    pub(crate) const fn is_refusal(&mut self, _reason: Reason) {}
}

/// Tells nothing.
#[inline(always)]
pub(crate) const fn tell<P: Packet, C: Context>(_: &C, _: &P, _: Program, _: &Decision) {}
