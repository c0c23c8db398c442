//! The reply table's layout: who asked which endpoint through which frontend, for services that keep no flows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{flow::Tick, service::FrontendId};

/// Entries in a bucket.
pub const REPLIES_PER_BUCKET: usize = 8;

/// A bucket of `REPLIES`: 128 bytes, 2 cache lines. Each entry is a check and a [`ReplyWord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ReplyBucket {
    /// `hash64 ^ frontend bits`, then the word.
    pub entries: [[u64; 2]; REPLIES_PER_BUCKET],
}

/// `frontend 24 | seen 24 | flags 16`.
///
/// Only the frontend takes part in the check, so that a refresh is one compare-and-swap of this word and never tears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyWord(pub u64);

const FRONTEND_SHIFT: u32 = 40;
const SEEN_SHIFT: u32 = 16;

impl ReplyWord {
    /// The backend has answered since this was written.
    pub const ANSWERED: u64 = 1;
    /// The entry is in use.
    pub const LIVE: u64 = 2;

    /// The one who wrote it has seen that no other frontend claims the pair. Until then no answer may use it.
    pub const CONFIRMED: u64 = 4;

    /// A live, unanswered, unconfirmed entry.
    #[inline(always)]
    pub const fn new(frontend: FrontendId, seen: Tick) -> Self {
        Self((frontend.0 as u64) << FRONTEND_SHIFT | (seen.0 as u64) << SEEN_SHIFT | Self::LIVE)
    }

    /// Through which frontend was asked.
    #[inline(always)]
    pub const fn frontend(self) -> FrontendId {
        FrontendId((self.0 >> FRONTEND_SHIFT) as u32)
    }

    /// The bits that take part in the check.
    #[inline(always)]
    pub const fn frontend_bits(self) -> u64 {
        self.0 & !0 << FRONTEND_SHIFT
    }

    /// When was last asked.
    #[inline(always)]
    pub const fn seen(self) -> Tick {
        Tick((self.0 >> SEEN_SHIFT) as u32 & Tick::MASK)
    }

    /// Whether the entry is in use.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        self.0 & Self::LIVE != 0
    }

    /// Whether it was answered since.
    #[inline(always)]
    pub const fn is_answered(self) -> bool {
        self.0 & Self::ANSWERED != 0
    }

    /// Whether answers may use it.
    #[inline(always)]
    pub const fn is_confirmed(self) -> bool {
        self.0 & Self::CONFIRMED != 0
    }

    /// The same entry, confirmed.
    #[inline(always)]
    #[must_use]
    pub const fn confirmed(self) -> Self {
        Self(self.0 | Self::CONFIRMED)
    }

    /// The same entry, answered.
    #[inline(always)]
    #[must_use]
    pub const fn answered(self) -> Self {
        Self(self.0 | Self::ANSWERED)
    }
}

/// Seconds after the last query in which an answer is still translated.
pub const REPLY_TIMEOUT_SECONDS: u32 = 30;

/// Seconds without a query after which an answered entry may be overwritten by another pair's.
///
/// Not at once: an answered entry was once evicted between a later query and its answer.
pub const REPLY_SETTLED_SECONDS: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_two_cache_lines() {
        assert_eq!(size_of::<ReplyBucket>(), 128);
    }

    #[test]
    fn words_survive_the_table() {
        let word = ReplyWord::new(FrontendId(FrontendId::MAX), Tick(Tick::MASK));
        assert_eq!((word.frontend().0, word.seen().0), (FrontendId::MAX, Tick::MASK));
        assert!(word.is_live() && !word.is_answered() && word.answered().is_answered());
        assert_eq!(word.answered().frontend_bits(), word.frontend_bits());
    }
}
