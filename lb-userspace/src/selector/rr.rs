//! `rr`: one slot each, taken in turn.

/// The backends in their order.
pub fn slots<T: Clone>(backends: &[T]) -> Vec<T> {
    backends.to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_differ_by_at_most_one_over_any_stretch_of_tickets(
            count in 1_usize..40, start in any::<u32>(), tickets in 1_usize..500,
        ) {
            let slots = slots(&(0..count).collect::<Vec<_>>());
            let mut counts = vec![0_u32; count];
            for ticket in 0..tickets {
                counts[slots[(start as usize + ticket) % slots.len()]] += 1;
            }
            let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
            prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
        }
    }
}
