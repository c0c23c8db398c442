//! `random`: each slot with the same probability, so that a backend has slots in proportion to its weight.

use crate::model::Weighted;

/// Each backend as often as its weight says, all weights divided by what they have in common.
pub fn slots<T: Clone>(backends: &[Weighted<T>]) -> Vec<T> {
    let weights = reduced(backends);
    let repeated = backends.iter().zip(weights).map(|(one, weight)| std::iter::repeat_n(&one.backend, weight as usize));
    repeated.flatten().cloned().collect()
}

/// The weights divided by their greatest common divisor.
pub fn reduced<T>(backends: &[Weighted<T>]) -> Vec<u32> {
    let divisor = backends.iter().fold(0, |divisor, one| gcd(divisor, one.weight)).max(1);
    backends.iter().map(|one| one.weight / divisor).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_weights_take_one_slot_each() {
        let backends = ["a", "b", "c"].map(|backend| Weighted { backend, weight: 200 });
        assert_eq!(slots(&backends), ["a", "b", "c"]);
    }

    proptest! {
        #[test]
        fn slots_are_in_exact_proportion_to_weights(weights in prop::collection::vec(1_u32..=256, 1..20)) {
            let backends: Vec<_> =
                weights.iter().enumerate().map(|(backend, weight)| Weighted { backend, weight: *weight }).collect();
            let slots = slots(&backends);
            let sum: usize = weights.iter().map(|weight| *weight as usize).sum();
            for (backend, weight) in weights.iter().enumerate() {
                let count = slots.iter().filter(|slot| **slot == backend).count();
                prop_assert_eq!(count * sum, *weight as usize * slots.len());
            }
        }
    }
}
