//! The redirect helpers.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use lb_ebpf::pipeline::Exit;

/// The TC verdict by which a packet leaves.
#[inline(always)]
pub(crate) fn send(exit: Exit) -> i32 {
    let verdict = match exit {
        Exit::Stack => return TC_ACT_UNSPEC,
        // SAFETY: a null parameter block of length zero lets the kernel look up route and neighbour itself.
        Exit::Neighbour { ifindex } => unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) },
        // SAFETY: the helper takes numbers only.
        Exit::Peer { ifindex } => unsafe { bpf_redirect_peer(ifindex, 0) },
        // SAFETY: the helper takes numbers only.
        Exit::Link { ifindex } => unsafe { bpf_redirect(ifindex, 0) },
    };
    if verdict < 0 { TC_ACT_SHOT } else { verdict as i32 }
}
