//! `wrr`: in turn by weight, in an order in which every backend is always within one choice of its due.
//!
//! R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980), 323–330: among the backends whose
//! due exceeds what they got by at least 1/(2k−2), the one that must be served soonest. With k backends of shares λ,
//! |count − n·λ| ≤ 1 − 1/(2k−2) after every n. Smooth weighted orders stray up to 1.8.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::random::reduced;
use crate::model::Weighted;

/// One cycle; it begins again at its end.
pub fn slots<T: Clone>(backends: &[Weighted<T>]) -> Vec<T> {
    let weights: Vec<u64> = reduced(backends).into_iter().map(u64::from).collect();
    order(&weights).into_iter().map(|backend| backends[backend].backend.clone()).collect()
}

/// The turns of one cycle, for weights that have no common divisor.
///
/// The same as choosing the earliest deadline among all eligible backends in each turn, by a queue of those that are
/// eligible and one of those that wait.
fn order(weights: &[u64]) -> Vec<usize> {
    if weights.len() < 2 {
        return vec![0; weights.len()];
    }
    let sum: u64 = weights.iter().sum();
    let grain = 2 * weights.len() as u64 - 2;
    // The first turn n in which n·w/W − count ≥ 1/grain, and the last one n that keeps n·w/W − count ≤ 1 − 1/grain
    // beforehand: Tijdeman's deadline.
    let release = |backend: usize, count: u64| (sum * (1 + count * grain)).div_ceil(weights[backend] * grain);
    let deadline = |backend: usize, count: u64| sum * ((count + 1) * grain - 1) / (weights[backend] * grain);

    let mut waiting: BinaryHeap<_> =
        (0..weights.len()).map(|backend| Reverse((release(backend, 0), backend))).collect();
    let mut eligible = BinaryHeap::new();
    let mut counts = vec![0; weights.len()];
    let mut turns = Vec::new();
    for turn in 1..=sum {
        while let Some(Reverse((from, backend))) = waiting.peek().copied()
            && from <= turn
        {
            waiting.pop();
            eligible.push(Reverse((deadline(backend, counts[backend]), backend)));
        }
        let Some(Reverse((_, backend))) = eligible.pop() else {
            unreachable!("Tijdeman's theorem: in every turn a backend is eligible")
        };
        counts[backend] += 1;
        waiting.push(Reverse((release(backend, counts[backend]), backend)));
        turns.push(backend);
    }
    turns
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Promise 1 for every n of three cycles, in integers: |count·W − n·w| < W.
    fn stays_within_one(weights: &[u32]) {
        let backends: Vec<_> =
            weights.iter().enumerate().map(|(backend, weight)| Weighted { backend, weight: *weight }).collect();
        let cycle = slots(&backends);
        let sum: i64 = weights.iter().copied().map(i64::from).sum();
        let mut counts = vec![0_i64; weights.len()];
        for (n, backend) in (1..).zip(cycle.iter().cycle().take(cycle.len() * 3)) {
            counts[*backend] += 1;
            for (count, weight) in counts.iter().zip(weights) {
                let off = count * sum - n * i64::from(*weight);
                assert!(off.abs() < sum, "{weights:?}: after {n} a backend of {weight} had {count}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_count_is_within_one_of_its_due_after_every_choice(
            weights in prop::collection::vec(1_u32..=256, 1..24),
        ) {
            stays_within_one(&weights);
        }

        #[test]
        fn few_backends_of_small_weights_are_within_one_as_well(weights in prop::collection::vec(1_u32..=8, 2..6)) {
            stays_within_one(&weights);
        }
    }

    #[test]
    fn a_heavy_backend_among_many_light_ones_is_within_one() {
        stays_within_one(&[256, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
        stays_within_one(&[1; 100]);
        stays_within_one(&[255, 256]);
        stays_within_one(&[7]);
    }

    #[test]
    fn turns_are_spread_and_not_in_a_row() {
        let backends = [("a", 2), ("b", 1), ("c", 1)].map(|(backend, weight)| Weighted { backend, weight });
        assert_eq!(slots(&backends), ["a", "b", "a", "c"]);
    }

    #[test]
    fn the_largest_table_is_ordered_in_moderate_time() {
        let backends: Vec<_> = (0..4000).map(|backend| Weighted { backend, weight: 129 + backend % 4 }).collect();
        let started = std::time::Instant::now();
        assert_eq!(slots(&backends).len(), (129 + 130 + 131 + 132) * 1000);
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }
}
