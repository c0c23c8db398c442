//! What the kernel side and the user side must agree on, and nothing else: the keys and values of the maps, the
//! names of selectors and reasons, and the keyed hashes that both compute.
//! No algorithm beyond those hashes lives here, no unsafe code and no BPF.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod service;
pub mod selector;
pub mod backend;
pub mod device;
pub mod flow;
pub mod reply;
pub mod fragment;
pub mod hash;
pub mod reason;
pub mod stats;
pub mod limits;
pub mod trace;
