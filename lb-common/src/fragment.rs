//! What the first fragment of a datagram leaves behind for those that follow, which have no ports.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, backend::BackendId, service::FrontendId};

/// The key of `FRAGMENTS`: a datagram as RFC 791 and RFC 8200 identify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentKey {
    /// Who sent it.
    pub source: Addr,
    /// To whom, as the first fragment said before it was rewritten.
    pub destination: Addr,
    /// The identification field, as it lies in the packet.
    pub identification: u32,
    /// The protocol inside for IPv4; zero for IPv6, whose fragments need not agree on it. A whole word: single bytes of
    /// padding are cleared by a call of a loop in BPF.
    pub protocol: u32,
}

/// A value of `FRAGMENTS`: what was done with the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FragmentRecord {
    /// [`FragmentRecord::FORWARD`] or [`FragmentRecord::REPLY`].
    pub direction: u32,
    /// The frontend of the datagram.
    pub frontend: FrontendId,
    /// The backend it goes to; zero for a reply.
    pub backend: BackendId,
    /// The tick of the first fragment.
    pub seen: u32,
}

impl FragmentRecord {
    /// The datagram goes to a backend.
    pub const FORWARD: u32 = 1;
    /// The datagram goes to a client.
    pub const REPLY: u32 = 2;
}

/// Seconds in which the rest of a datagram may follow. Linux gives up reassembly after 30 (`ipfrag_time`).
pub const FRAGMENT_TIMEOUT_SECONDS: u32 = 30;
