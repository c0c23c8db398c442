//! The data path as a pure library: the same source runs in the kernel and, with the in-memory packet and kernel of
//! `testing`, on the host. Modules stand in the order in which a packet meets them.
//! What touches BPF itself is the binary's: `main.rs` and `bpf/`.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "BPF has no stable atomics")
)]

pub mod pipeline;
pub mod too_big;
pub mod packet;
pub mod kernel;
pub mod parse;
pub mod wire;
pub mod lookup;
pub mod flow;
pub mod select;
pub mod reply;
pub mod hop;
pub mod rewrite;
pub mod fragment;
pub mod atomic;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
