//! Frontends, services and policies: from the address a client uses to the rule by which a backend is chosen.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::{Addr, Port, Protocol};

/// An entry of `FRONTEND_INFO`. Zero is no frontend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct FrontendId(pub u32);

impl FrontendId {
    /// The reply table keeps a frontend in 24 bits.
    pub const MAX: u32 = 0xff_ffff;
}

/// An entry of `SERVICES`, `CURSORS` and `SERVICE_STATS`. Zero is no service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// An entry of `POLICIES`. Zero is no policy: packets of such a service find no backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct PolicyId(pub u32);

/// Address, port and protocol of one end: the key of `FRONTENDS` and of `ENDPOINTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketKey {
    /// The address.
    pub address: Addr,
    /// The port.
    pub port: Port,
    /// The protocol.
    pub protocol: Protocol,
    /// Always zero.
    pub zero: u8,
}

impl SocketKey {
    /// The key of these three.
    #[inline(always)]
    pub const fn new(address: Addr, port: Port, protocol: Protocol) -> Self {
        Self { address, port, protocol, zero: 0 }
    }
}

impl core::fmt::Display for SocketKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", core::net::SocketAddr::new(self.address.to_ip(), self.port.number()), self.protocol)
    }
}

/// A value of `FRONTENDS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// Which frontend this is.
    pub frontend: FrontendId,
    /// The service it belongs to.
    pub service: ServiceId,
}

impl Frontend {
    /// Both in a word.
    #[inline(always)]
    pub const fn to_word(&self) -> u64 {
        (self.frontend.0 as u64) << 32 | self.service.0 as u64
    }

    /// What a word holds.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { frontend: FrontendId((word >> 32) as u32), service: ServiceId(word as u32) }
    }
}

/// A record of `FRONTEND_INFO`: what a reply is given as its source.
///
/// The kernel recycles an element of `FRONTENDS` without a grace period, so what that map gave counts only if this
/// record names the packet's own destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FrontendInfo {
    /// What clients connect to.
    pub key: SocketKey,
    /// The service it belongs to.
    pub service: ServiceId,
}

/// The word of `SERVICES`, swapped by one atomic store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceWord {
    /// The policy in force.
    pub policy: PolicyId,
    /// Counts the changes of this service, wrapping.
    pub change: u32,
}

impl ServiceWord {
    /// The word as it lies in the map.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.change as u64) << 32 | self.policy.0 as u64
    }

    /// The word taken apart.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { policy: PolicyId(word as u32), change: (word >> 32) as u32 }
    }
}

/// A record of `POLICIES`: how a service chooses. Immutable while any word of `SERVICES` names it, and for a grace
/// period after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Policy {
    /// How a ticket becomes a slot: a value of [`Index`].
    pub index: u32,
    /// Bits of [`Policy::PER_PACKET`] and [`Policy::MIXED`].
    pub flags: u32,
    /// Which large value of `SLOTS` the run lies in.
    pub slots_chunk: u32,
    /// First word of the run within that value.
    pub slots_start: u32,
    /// Slots in the run, or rules of an nth chain.
    pub slots_count: u32,
    /// The service this was made for: its cursor, its counters.
    pub service: ServiceId,
    /// Slots that follow the run, one for each backend: tried in turn when the chosen one clashes. Zero where the run
    /// itself has each backend once.
    pub others_count: u32,
    /// Always zero.
    pub zero: [u32; 9],
}

impl Policy {
    /// Each packet is a new choice and no flow is kept. UDP services only.
    pub const PER_PACKET: u32 = 1;

    /// An endpoint of the service had the other schedule lately, so that the other schedule's table may know the same
    /// client there for another frontend. Each choice looks there too.
    pub const MIXED: u32 = 2;

    /// How a ticket becomes a slot; `None` where the record holds no known value.
    #[inline(always)]
    pub const fn index(&self) -> Option<Index> {
        Index::from_word(self.index)
    }

    /// Whether the other schedule's table is looked into as well.
    #[inline(always)]
    pub const fn is_mixed(&self) -> bool {
        self.flags & Self::MIXED != 0
    }

    /// Whether each packet is a new choice.
    #[inline(always)]
    pub const fn is_per_packet(&self) -> bool {
        self.flags & Self::PER_PACKET != 0
    }
}

/// The kernel's index functions: how a new choice becomes a slot of the service's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// A random number scaled to the count of slots.
    Random,
    /// The service's cursor modulo the count of slots.
    Cursor,
    /// The service's cursor walked down a chain of rules.
    Chain,
}

impl Index {
    /// The value in a policy record.
    pub const fn to_word(self) -> u32 {
        match self {
            Self::Random => 1,
            Self::Cursor => 2,
            Self::Chain => 3,
        }
    }

    /// The function a policy record names.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            1 => Some(Self::Random),
            2 => Some(Self::Cursor),
            3 => Some(Self::Chain),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_sizes_the_maps_are_made_for() {
        assert_eq!(size_of::<SocketKey>(), 20);
        assert_eq!(size_of::<FrontendInfo>(), 24);
        assert_eq!(size_of::<Policy>(), 64);
    }

    #[test]
    fn index_functions_survive_the_map() {
        for index in [Index::Random, Index::Cursor, Index::Chain] {
            assert_eq!(Index::from_word(index.to_word()), Some(index));
        }
    }

    #[test]
    fn a_service_word_survives_the_map() {
        let word = ServiceWord { policy: PolicyId(7), change: u32::MAX };
        assert_eq!(ServiceWord::from_word(word.to_word()), word);
    }
}
