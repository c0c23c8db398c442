//! Backends, the endpoints they are, and the way packets take to them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::service::{ServiceId, SocketKey};

/// An entry of `BACKENDS`, `ACTIVE` and `TRAFFIC`: one endpoint of one service. Zero is no backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct BackendId(pub u32);

/// A value of `ENDPOINTS`: one address, port and protocol, whichever services use it. Zero is no endpoint.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct EndpointId(pub u32);

/// A value of `ENDPOINTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Endpoint {
    /// Which endpoint this is.
    pub id: EndpointId,
    /// Bits of [`Endpoint::FLOWS`] and [`Endpoint::REPLIES`]: where a reply's frontend is to be looked for.
    pub flags: u32,
    /// The backend that a per-packet service has here, whose counters a reply moves; zero where there is none.
    pub backend: BackendId,
    /// Always zero.
    pub zero: u32,
}

impl Endpoint {
    /// A service that keeps flows uses this endpoint.
    pub const FLOWS: u32 = 1;
    /// A per-packet service uses this endpoint.
    pub const REPLIES: u32 = 2;
}

/// What may still be sent to a backend; decided for each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendState {
    /// Nothing: the entry is free or its backend is down.
    Dead,
    /// New flows and old.
    Use,
    /// Old flows only.
    Drain,
    /// Old TCP flows only: the backend was removed, and what is asked by UDP is asked of another.
    UdpGone,
}

impl BackendState {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Dead, Self::Use, Self::Drain, Self::UdpGone];

    /// The value in a backend's record.
    pub const fn to_word(self) -> u32 {
        match self {
            Self::Dead => 0,
            Self::Use => 1,
            Self::Drain => 2,
            Self::UdpGone => 3,
        }
    }

    /// The state a record names. What is not known counts as dead.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        match word {
            1 => Self::Use,
            2 => Self::Drain,
            3 => Self::UdpGone,
            _ => Self::Dead,
        }
    }

    /// The name in listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Use => "use",
            Self::Drain => "drain",
            Self::UdpGone => "removed",
        }
    }
}

/// How packets leave towards a backend, and how its replies come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Through the host's stack in both directions; replies are rewritten where they leave towards the client.
    Stack,
    /// `bpf_redirect_neigh` out of a device with a link-layer address.
    Neighbour {
        /// The device.
        ifindex: u32,
    },
    /// `bpf_redirect_peer` through a veth straight into the container behind it.
    Peer {
        /// This end of the veth.
        ifindex: u32,
    },
}

impl Way {
    /// The word in a backend's record, swapped by one atomic store.
    pub const fn to_word(self) -> u64 {
        match self {
            Self::Stack => 0,
            Self::Neighbour { ifindex } => 1 << 32 | ifindex as u64,
            Self::Peer { ifindex } => 2 << 32 | ifindex as u64,
        }
    }

    /// The way a record names. What is not known goes through the stack.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let ifindex = word as u32;
        match word >> 32 {
            1 => Self::Neighbour { ifindex },
            2 => Self::Peer { ifindex },
            _ => Self::Stack,
        }
    }

    /// The name in listings and configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Neighbour { .. } => "redirect-neigh",
            Self::Peer { .. } => "redirect-peer",
        }
    }
}

/// A record of `BACKENDS`, one cache line. Written whole while no slot and no flow names it; afterwards only `state`
/// and `way` change, each by one atomic store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Backend {
    /// A [`Way`].
    pub way: u64,
    /// A [`BackendState`].
    pub state: u32,
    /// The endpoint it is.
    pub endpoint: EndpointId,
    /// Where it listens.
    pub key: SocketKey,
    /// The service that uses it.
    pub service: ServiceId,
    /// Always zero.
    pub zero: [u32; 6],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_one_cache_line() {
        assert_eq!(size_of::<Backend>(), 64);
    }

    #[test]
    fn ways_and_states_survive_the_map() {
        for way in [Way::Stack, Way::Neighbour { ifindex: 7 }, Way::Peer { ifindex: u32::MAX }] {
            assert_eq!(Way::from_word(way.to_word()), way);
        }
        for state in [BackendState::Dead, BackendState::Use, BackendState::Drain, BackendState::UdpGone] {
            assert_eq!(BackendState::from_word(state.to_word()), state);
        }
    }
}
