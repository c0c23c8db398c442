//! Fragments in their order: the first one leaves a record, the rest, which have no ports, follow it.

use lb_common::{backend::BackendId, flow::Tick, fragment::FragmentRecord, reason::Reason, service::FrontendId};

use crate::{
    kernel::Kernel,
    parse::{Fragment, Parsed},
};

/// Leaves a record, if `parsed` is a first fragment.
#[inline(always)]
pub fn remember(kernel: &impl Kernel, parsed: &Parsed, direction: u32, frontend: FrontendId, backend: BackendId) {
    if parsed.fragment == Fragment::First {
        let record = FragmentRecord { direction, frontend, backend, seen: kernel.now().0 };
        kernel.remember_fragment(&parsed.fragment_key(), &record);
    }
}

/// The record that the first fragment of this datagram left.
///
/// # Errors
/// [`Reason::FragmentUnknown`] when it left none, or long ago.
#[inline(always)]
pub fn follow(kernel: &impl Kernel, parsed: &Parsed) -> Result<FragmentRecord, Reason> {
    let record = kernel.fragment(&parsed.fragment_key()).ok_or(Reason::FragmentUnknown)?;
    let age = kernel.now().since_with_slack(Tick(record.seen)) as u64;
    if age > kernel.fragment_ticks() + Tick::SLACK as u64 { Err(Reason::FragmentUnknown) } else { Ok(record) }
}
