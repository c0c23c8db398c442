//! One file per selector: from backends to what the kernel's few index functions choose from.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use lb_common::{selector::NthRule, service::Index};

use crate::model::{Chain, Choice, Rule};

pub mod nth;
pub mod random;
pub mod rr;
pub mod wrr;

/// What a choice compiles to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrangement<T> {
    /// What is chosen from.
    pub slots: Slots<T>,
    /// Each backend once, for a choice that clashes to try in turn; none where the slots themselves are that.
    pub others: Vec<T>,
}

/// What the kernel chooses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots<T> {
    /// A slot by chance.
    Random(Vec<T>),
    /// The slot at the cursor.
    Cursor(Vec<T>),
    /// The rule that takes the cursor.
    Chain(Vec<Rule<T>>),
}

impl<T> Arrangement<T> {
    /// Words of `SLOTS` that it takes.
    pub fn words(&self) -> usize {
        self.slots.count() * words_each(self.slots.index()) + self.others.len()
    }
}

impl<T> Slots<T> {
    /// How many there are, or how many rules.
    pub fn count(&self) -> usize {
        match self {
            Self::Random(slots) | Self::Cursor(slots) => slots.len(),
            Self::Chain(rules) => rules.len(),
        }
    }

    /// The kernel's function for it.
    pub fn index(&self) -> Index {
        match self {
            Self::Random(_) => Index::Random,
            Self::Cursor(_) => Index::Cursor,
            Self::Chain(_) => Index::Chain,
        }
    }
}

/// Words of `SLOTS` that a slot or rule takes.
pub fn words_each(index: Index) -> usize {
    match index {
        Index::Random => 1,
        Index::Cursor => 1,
        Index::Chain => NthRule::WORDS,
    }
}

/// Compiles a choice.
pub fn arrange<T: Clone + Ord>(choice: &Choice<T>) -> Arrangement<T> {
    let slots = match choice {
        Choice::Random(backends) => Slots::Random(random::slots(backends)),
        Choice::Nth(chain) => Slots::Chain(nth::rules(chain)),
        Choice::RoundRobin(backends) => Slots::Cursor(rr::slots(backends)),
        Choice::WeightedRoundRobin(backends) => Slots::Cursor(wrr::slots(backends)),
    };
    Arrangement { slots, others: others(choice).into_iter().cloned().collect() }
}

/// Each backend once, if the choice has any of them more often.
fn others<T: Ord>(choice: &Choice<T>) -> Vec<&T> {
    match choice {
        Choice::Random(backends) | Choice::WeightedRoundRobin(backends) => {
            let is_even = backends.windows(2).all(|two| two[0].weight == two[1].weight);
            if is_even { Vec::new() } else { backends.iter().map(|one| &one.backend).collect() }
        }
        Choice::Nth(Chain::Rules(rules)) => {
            let mut seen = BTreeSet::new();
            let once: Vec<&T> =
                rules.iter().map(|rule| &rule.backend).filter(|backend| seen.insert(*backend)).collect();
            if once.len() == rules.len() { Vec::new() } else { once }
        }
        Choice::Nth(Chain::Even(_)) | Choice::RoundRobin(_) => Vec::new(),
    }
}

/// Words of `SLOTS` that [`arrange`] will need.
pub fn slots_needed<T: Ord>(choice: &Choice<T>) -> u64 {
    let chosen_from = match choice {
        Choice::Random(backends) | Choice::WeightedRoundRobin(backends) => {
            random::reduced(backends).into_iter().map(u64::from).sum()
        }
        Choice::Nth(Chain::Even(backends)) => (backends.len() * NthRule::WORDS) as u64,
        Choice::Nth(Chain::Rules(rules)) => (rules.len() * NthRule::WORDS) as u64,
        Choice::RoundRobin(backends) => backends.len() as u64,
    };
    chosen_from + others(choice).len() as u64
}

/// The share of new choices that each backend gets in the long run.
pub fn shares<T>(choice: &Choice<T>) -> Vec<f64> {
    match choice {
        Choice::Random(backends) | Choice::WeightedRoundRobin(backends) => {
            let sum: u32 = backends.iter().map(|one| one.weight).sum();
            backends.iter().map(|one| f64::from(one.weight) / f64::from(sum)).collect()
        }
        Choice::Nth(Chain::Even(backends)) | Choice::RoundRobin(backends) => {
            vec![1.0 / backends.len() as f64; backends.len()]
        }
        Choice::Nth(Chain::Rules(rules)) => nth::shares(rules),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Weighted;

    #[test]
    fn each_backend_is_at_hand_once_where_the_slots_repeat_any() {
        let weighted = |weights: [u32; 2]| {
            let backends = ["a", "b"].into_iter().zip(weights);
            backends.map(|(backend, weight)| Weighted { backend, weight }).collect::<Vec<_>>()
        };
        let rules = |backends: &[&'static str]| {
            let rules = backends.iter().map(|backend| Rule { every: 4, packet: 0, backend: *backend });
            Choice::Nth(Chain::Rules(rules.collect()))
        };
        for (choice, expected) in [
            (Choice::Random(weighted([100, 99])), vec!["a", "b"]),
            (Choice::WeightedRoundRobin(weighted([1, 2])), vec!["a", "b"]),
            (rules(&["b", "a", "b"]), vec!["b", "a"]),
            (Choice::Random(weighted([7, 7])), vec![]),
            (rules(&["b", "a"]), vec![]),
            (Choice::RoundRobin(vec!["a", "b"]), vec![]),
            (Choice::Nth(Chain::Even(vec!["a", "b"])), vec![]),
        ] {
            let arrangement = arrange(&choice);
            assert_eq!(arrangement.others, expected, "{choice:?}");
            assert_eq!(slots_needed(&choice), arrangement.words() as u64, "{choice:?}");
        }
    }
}
