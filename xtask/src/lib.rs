//! How the kernel half of Evenkeel is built, and with which tools.
//!
//! A library, because `lb-userspace`'s build script needs it too. It installs nothing unless asked to and needs no root;
//! the verbs that do are the binary beside it.

#![forbid(unsafe_code)]

pub mod bpf;
pub mod folders;
pub mod versions;
