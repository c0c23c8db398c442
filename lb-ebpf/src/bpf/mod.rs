//! Everything that is BPF: the maps, the bounds check, the helpers. All unsafe code of the data path but the atomics.

use core::ffi::c_void;

pub(crate) mod kernel;
pub(crate) mod maps;
pub(crate) mod note;
pub(crate) mod tc;
#[cfg_attr(not(feature = "trace"), path = "no_trace.rs")]
pub(crate) mod trace;
pub(crate) mod xdp;

/// What a program is run with, at whichever hook.
pub(crate) trait Context {
    /// What the helpers take.
    fn pointer(&self) -> *mut c_void;

    /// The device that the packet came in by, or goes out of.
    fn ifindex(&self) -> u32;
}
