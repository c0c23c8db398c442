//! Which ids and which runs of slots are free: the lowest free one first, so that the same input takes the same ones.

use std::collections::BTreeMap;

use lb_common::limits::SLOTS_PER_CHUNK;

use super::tables::Run;

/// Hands out the ids of one map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ids {
    next: u32,
    left: u32,
    capacity: u32,
}

impl Ids {
    /// For a map of `capacity` entries, `taken` of which are in use. Entry 0 is nobody's.
    pub(super) fn new(capacity: u32, taken: usize) -> Self {
        let taken = u32::try_from(taken).unwrap_or(u32::MAX);
        Self { next: 1, left: capacity.saturating_sub(1).saturating_sub(taken), capacity }
    }

    /// Whether there are `wanted` more.
    pub(super) fn has(&self, wanted: usize) -> bool {
        wanted <= self.left as usize
    }

    /// The lowest id that is neither taken nor handed out before.
    pub(super) fn take(&mut self, is_taken: impl Fn(u32) -> bool) -> Option<u32> {
        while self.next < self.capacity && is_taken(self.next) {
            self.next += 1;
        }
        let id = (self.next < self.capacity).then_some(self.next)?;
        self.next += 1;
        self.left = self.left.saturating_sub(1);
        Some(id)
    }
}

/// Hands out runs of slots. Their sizes are powers of two and their places multiples of their sizes, so that what one
/// service leaves fits the next.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    /// For each chunk, which granules are taken.
    chunks: Vec<Vec<bool>>,
    /// For each size, below which chunk and granule nothing is free.
    lowest: BTreeMap<usize, (usize, usize)>,
}

/// A cache line: no run is smaller.
const GRANULE: usize = 8;

impl Runs {
    /// For this many chunks, in which these runs are taken.
    pub(super) fn new<'a>(chunk_count: u32, taken: impl Iterator<Item = (&'a Run, usize)>) -> Self {
        let chunk = vec![false; SLOTS_PER_CHUNK as usize / GRANULE];
        let mut chunks = vec![chunk; chunk_count as usize];
        for (run, length) in taken {
            let Some(chunk) = chunks.get_mut(run.chunk as usize) else { continue };
            let start = run.start as usize / GRANULE;
            let end = (start + granules(length)).min(chunk.len());
            chunk[start.min(end)..end].fill(true);
        }
        Self { chunks, lowest: BTreeMap::new() }
    }

    /// A free run for this many words.
    pub(super) fn take(&mut self, length: usize) -> Option<Run> {
        let size = granules(length);
        let (first_chunk, first_granule) = self.lowest.get(&size).copied().unwrap_or_default();
        let mut from = first_granule;
        for (number, chunk) in self.chunks.iter_mut().enumerate().skip(first_chunk) {
            for start in (from..chunk.len()).step_by(size) {
                if let Some(run) = chunk.get_mut(start..start + size)
                    && run.iter().all(|taken| !taken)
                {
                    run.fill(true);
                    self.lowest.insert(size, (number, start + size));
                    return Some(Run { chunk: number as u32, start: (start * GRANULE) as u32 });
                }
            }
            from = 0;
        }
        self.lowest.insert(size, (self.chunks.len(), 0));
        None
    }
}

/// Granules of the size class that holds `length` words.
fn granules(length: usize) -> usize {
    length.div_ceil(GRANULE).max(1).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_free_id_comes_first_and_none_twice() {
        let mut ids = Ids::new(6, 2);
        assert!(ids.has(3) && !ids.has(4));
        let is_taken = |id| id == 1 || id == 3;
        let taken: Vec<_> = std::iter::from_fn(|| ids.take(is_taken)).collect();
        assert_eq!(taken, [2, 4, 5]);
        assert!(!ids.has(1));
    }

    #[test]
    fn a_run_that_fills_a_chunk_is_found_where_one_is_free() {
        let taken = Run { chunk: 0, start: 4096 };
        let mut runs = Runs::new(2, [(&taken, 3)].into_iter());
        assert_eq!(runs.take(SLOTS_PER_CHUNK as usize), Some(Run { chunk: 1, start: 0 }));
        assert_eq!(runs.take(SLOTS_PER_CHUNK as usize), None);
        assert_eq!(runs.take(1), Some(Run { chunk: 0, start: 0 }));
    }

    proptest! {
        #[test]
        fn runs_do_not_overlap(lengths in prop::collection::vec(1_usize..5000, 1..60)) {
            let mut runs = Runs::new(1, std::iter::empty());
            let mut taken: Vec<(usize, usize)> = Vec::new();
            for length in lengths {
                let Some(run) = runs.take(length) else { continue };
                let (start, end) = (run.start as usize, run.start as usize + length);
                prop_assert!(end <= SLOTS_PER_CHUNK as usize);
                prop_assert!(taken.iter().all(|(other, other_end)| end <= *other || *other_end <= start));
                taken.push((start, end));
            }
        }
    }
}
