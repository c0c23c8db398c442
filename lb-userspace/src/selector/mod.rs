//! One file per selector: from backends to what the kernel's few index functions choose from.
#![forbid(unsafe_code)]

use lb_common::{selector::NthRule, service::Index};

use crate::model::{Chain, Choice, Rule};

pub mod nth;
pub mod random;
pub mod rr;
pub mod wrr;

/// What a choice compiles to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrangement<T> {
    /// A slot by chance.
    Random(Vec<T>),
    /// The slot at the cursor.
    Cursor(Vec<T>),
    /// The rule that takes the cursor.
    Chain(Vec<Rule<T>>),
}

impl<T> Arrangement<T> {
    /// The kernel's function for it.
    pub fn index(&self) -> Index {
        match self {
            Self::Random(_) => Index::Random,
            Self::Cursor(_) => Index::Cursor,
            Self::Chain(_) => Index::Chain,
        }
    }
}

/// Compiles a choice.
pub fn arrange<T: Clone>(choice: &Choice<T>) -> Arrangement<T> {
    match choice {
        Choice::Random(backends) => Arrangement::Random(random::slots(backends)),
        Choice::Nth(chain) => Arrangement::Chain(nth::rules(chain)),
        Choice::RoundRobin(backends) => Arrangement::Cursor(rr::slots(backends)),
        Choice::WeightedRoundRobin(backends) => Arrangement::Cursor(wrr::slots(backends)),
    }
}

/// Words of `SLOTS` that [`arrange`] will need.
pub fn slots_needed<T>(choice: &Choice<T>) -> u64 {
    match choice {
        Choice::Random(backends) | Choice::WeightedRoundRobin(backends) => {
            random::reduced(backends).into_iter().map(u64::from).sum()
        }
        Choice::Nth(Chain::Even(backends)) => (backends.len() * NthRule::WORDS) as u64,
        Choice::Nth(Chain::Rules(rules)) => (rules.len() * NthRule::WORDS) as u64,
        Choice::RoundRobin(backends) => backends.len() as u64,
    }
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
