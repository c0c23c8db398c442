//! Whose packet is this? From addresses to a frontend and its policy.

use lb_common::{
    reason::Reason,
    service::{Frontend, Policy},
};

use crate::{kernel::Kernel, parse::Parsed};

/// The frontend a packet goes to.
///
/// # Errors
/// [`Reason::NotOurs`] when there is none.
#[inline(always)]
pub fn frontend(kernel: &impl Kernel, parsed: &Parsed) -> Result<Frontend, Reason> {
    let key = parsed.destination_key();
    let found = kernel.frontend(&key).ok_or(Reason::NotOurs)?;
    // The map's element may have been recycled for another key while it was read.
    match kernel.frontend_info(found.frontend) {
        Some(info) if info.key == key => Ok(found),
        Some(_) | None => Err(Reason::NotOurs),
    }
}

/// Whether each query to the frontend is a choice of its own. A service without a backend to choose says so as well: its
/// flows go on.
///
/// # Errors
/// [`Reason::Inconsistent`] when a record is missing.
#[inline(always)]
pub fn is_per_packet(kernel: &impl Kernel, frontend: &Frontend) -> Result<bool, Reason> {
    let word = kernel.service(frontend.service).ok_or(Reason::Inconsistent)?;
    Ok(kernel.policy(word.policy).is_some_and(Policy::is_per_packet))
}

/// How the frontend's service chooses now.
///
/// # Errors
/// [`Reason::NoBackend`] when it has nothing to choose from.
#[inline(always)]
pub fn policy<'k>(kernel: &'k impl Kernel, frontend: &Frontend) -> Result<&'k Policy, Reason> {
    let word = kernel.service(frontend.service).ok_or(Reason::Inconsistent)?;
    match kernel.policy(word.policy) {
        Some(policy) if policy.slots_count > 0 => Ok(policy),
        Some(_) | None => Err(Reason::NoBackend),
    }
}
