//! The names of the selectors, and the slots and rules that they compile to.

use core::{fmt, str::FromStr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::backend::{BackendId, EndpointId};

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Each backend with a probability of its weight, independently each time.
    Random,
    /// As `iptables -m statistic --mode nth`: a chain of rules, each of which takes every so many-th of what reaches it.
    Nth,
    /// Each backend in turn.
    RoundRobin,
    /// Each backend in turn, by its weight.
    WeightedRoundRobin,
}

impl Selector {
    /// Every selector.
    pub const ALL: [Self; 4] = [Self::Random, Self::Nth, Self::RoundRobin, Self::WeightedRoundRobin];

    /// The name in configurations, listings and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Nth => "nth",
            Self::RoundRobin => "rr",
            Self::WeightedRoundRobin => "wrr",
        }
    }

    /// Whether backends may carry weights.
    pub const fn takes_weights(self) -> bool {
        match self {
            Self::Random => true,
            Self::Nth => false,
            Self::RoundRobin => false,
            Self::WeightedRoundRobin => true,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No selector has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownSelector;

impl FromStr for Selector {
    type Err = UnknownSelector;

    fn from_str(name: &str) -> Result<Self, UnknownSelector> {
        Self::ALL.into_iter().find(|selector| selector.name() == name).ok_or(UnknownSelector)
    }
}

/// One slot: the backend it leads to, and the endpoint that backend is, because nothing can be looked up under the
/// flow table's lock. Two 32-bit halves of one word of `SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Slot {
    /// The backend.
    pub backend: BackendId,
    /// Where it is.
    pub endpoint: EndpointId,
}

impl Slot {
    /// The word as it lies in `SLOTS`.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        (self.endpoint.0 as u64) << 32 | self.backend.0 as u64
    }

    /// The word taken apart.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self { backend: BackendId(word as u32), endpoint: EndpointId((word >> 32) as u32) }
    }
}

/// One rule of an nth chain: two words of `SLOTS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NthRule {
    /// Takes one of this many choices that reach it; at least 1.
    pub every: u32,
    /// Which one of them, from 0.
    pub packet: u32,
    /// Where those go.
    pub slot: Slot,
}

impl NthRule {
    /// Words of `SLOTS` one rule takes.
    pub const WORDS: usize = 2;

    /// The words as they lie in `SLOTS`.
    pub const fn to_words(self) -> [u64; Self::WORDS] {
        [(self.packet as u64) << 32 | self.every as u64, self.slot.to_word()]
    }

    /// The words taken apart.
    #[inline(always)]
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self { every: words[0] as u32, packet: (words[0] >> 32) as u32, slot: Slot::from_word(words[1]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_parse_what_they_print() {
        for selector in Selector::ALL {
            assert_eq!(selector.name().parse(), Ok(selector));
        }
        assert_eq!("RR".parse::<Selector>(), Err(UnknownSelector));
    }

    #[test]
    fn slots_and_rules_survive_the_map() {
        let slot = Slot { backend: BackendId(3), endpoint: EndpointId(u32::MAX) };
        assert_eq!(Slot::from_word(slot.to_word()), slot);
        let rule = NthRule { every: 4, packet: 3, slot };
        assert_eq!(NthRule::from_words(rule.to_words()), rule);
    }
}
