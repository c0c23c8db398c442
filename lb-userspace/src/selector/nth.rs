//! `nth`: a chain of rules as iptables' `-m statistic --mode nth` has them, each of which counts only what reaches it.

use std::fmt;

use crate::model::{Chain, Rule};

/// The rules of a chain.
pub fn rules<T: Clone>(chain: &Chain<T>) -> Vec<Rule<T>> {
    match chain {
        Chain::Even(backends) => {
            let every = (1..=backends.len() as u32).rev();
            every.zip(backends).map(|(every, backend)| Rule { every, packet: 0, backend: backend.clone() }).collect()
        }
        Chain::Rules(rules) => rules.clone(),
    }
}

/// Which rule takes ticket `ticket`, counted from 0: what the kernel does.
///
/// No counters: of `t` tickets that came to a rule before, it took those equal to `packet` modulo `every`, so that the
/// next rule has seen that many fewer.
pub fn takes<T>(rules: &[Rule<T>], ticket: u64) -> Option<usize> {
    let mut t = ticket;
    for (number, rule) in rules.iter().enumerate() {
        let (every, packet) = (u64::from(rule.every), u64::from(rule.packet));
        if t % every == packet {
            return Some(number);
        }
        t -= (t + every - 1 - packet) / every;
    }
    None
}

/// The part of all choices that no rule takes; nothing where there is none.
pub fn unmatched<T>(rules: &[Rule<T>]) -> Option<Share> {
    let share = rules.iter().fold(Share::ALL, |share, rule| share.times(u64::from(rule.every) - 1, rule.every.into()));
    (share.percent > 0.0).then_some(share)
}

/// The part of all choices that each rule takes.
pub fn shares<T>(rules: &[Rule<T>]) -> Vec<f64> {
    let mut reaching = 1.0;
    let mut shares = Vec::new();
    for rule in rules {
        let share = reaching / f64::from(rule.every);
        shares.push(share);
        reaching -= share;
    }
    shares
}

/// A part of all choices: exactly, as far as 64 bits go, and in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    fraction: Option<(u64, u64)>,
    percent: f64,
}

impl Share {
    const ALL: Self = Self { fraction: Some((1, 1)), percent: 100.0 };

    fn times(self, numerator: u64, denominator: u64) -> Self {
        let exact = |(n, d): (u64, u64)| {
            let (n, d) = (u128::from(n) * u128::from(numerator), u128::from(d) * u128::from(denominator));
            let divisor = gcd(n, d);
            Some((u64::try_from(n / divisor).ok()?, u64::try_from(d / divisor).ok()?))
        };
        Self { fraction: self.fraction.and_then(exact), percent: self.percent * numerator as f64 / denominator as f64 }
    }
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fraction {
            Some((n, d)) => write!(f, "{n} of {d} ({:.2} %)", self.percent),
            None => write!(f, "{:.4} %", self.percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// iptables' own counters (xt_statistic.c): one per rule, which starts at `every − 1 − packet`, and each packet
    /// that reaches the rule moves it on; the rule takes the packet with which it comes back to 0.
    struct Counters(Vec<u32>);

    impl Counters {
        fn new(rules: &[Rule<usize>]) -> Self {
            Self(rules.iter().map(|rule| rule.every - 1 - rule.packet).collect())
        }

        fn next(&mut self, rules: &[Rule<usize>]) -> Option<usize> {
            rules.iter().zip(&mut self.0).position(|(rule, counter)| {
                *counter = if *counter == rule.every - 1 { 0 } else { *counter + 1 };
                *counter == 0
            })
        }
    }

    fn chain(rules: &[(u32, u32)]) -> Vec<Rule<usize>> {
        rules
            .iter()
            .enumerate()
            .map(|(backend, (every, packet))| Rule { every: *every, packet: *packet, backend })
            .collect()
    }

    fn rule() -> impl Strategy<Value = (u32, u32)> {
        (1_u32..=12).prop_flat_map(|every| (Just(every), 0..every))
    }

    proptest! {
        #[test]
        fn tickets_go_where_the_counters_of_iptables_send_them(
            rules in prop::collection::vec(rule(), 1..=32), tickets in 1_u64..3000,
        ) {
            let rules = chain(&rules);
            let mut counters = Counters::new(&rules);
            for ticket in 0..tickets {
                prop_assert_eq!(takes(&rules, ticket), counters.next(&rules), "ticket {}", ticket);
            }
        }

        #[test]
        fn the_default_chain_is_even_over_any_stretch(count in 1_usize..=32, start in 0_u64..1 << 48, tickets in 1_u64..500) {
            let rules = rules(&Chain::Even((0..count).collect()));
            let mut counts = vec![0_u32; count];
            for ticket in start..start + tickets {
                counts[takes(&rules, ticket).expect("the last rule takes everything")] += 1;
            }
            let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
            prop_assert!(most.unwrap_or(0) - least.unwrap_or(0) <= 1);
        }

        #[test]
        fn a_chain_takes_and_leaves_the_shares_it_is_said_to(rules in prop::collection::vec(rule(), 1..=3)) {
            let rules = chain(&rules);
            // A whole period of three rules of up to 12.
            let period = rules.iter().map(|rule| u64::from(rule.every)).product::<u64>();
            let mut counts = vec![0_u64; rules.len()];
            let mut left = 0;
            for ticket in 0..period {
                takes(&rules, ticket).map_or_else(|| left += 1, |rule| counts[rule] += 1);
            }
            for (count, share) in counts.iter().zip(shares(&rules)) {
                prop_assert!((*count as f64 - share * period as f64).abs() < 1e-6);
            }
            let unmatched = unmatched(&rules).map_or(0.0, |share| share.percent);
            prop_assert!((left as f64 - unmatched / 100.0 * period as f64).abs() < 1e-6);
        }
    }

    #[test]
    fn four_copies_of_every_4_leave_what_iptables_leaves() {
        let rules = chain(&[(4, 0); 4]);
        let count = |tickets| {
            let mut counts = [0; 4];
            (0..tickets).filter_map(|ticket| takes(&rules, ticket)).for_each(|rule| counts[rule] += 1);
            counts
        };
        assert_eq!(count(100), [25, 19, 14, 11]);
        assert_eq!(count(1200), [300, 225, 169, 127]);
        assert_eq!(count(12_000), [3000, 2250, 1688, 1266]);
        assert_eq!(unmatched(&rules).expect("some are left").to_string(), "81 of 256 (31.64 %)");
    }

    #[test]
    fn a_chain_that_ends_with_every_1_leaves_nothing() {
        assert_eq!(unmatched(&chain(&[(4, 0), (3, 1), (1, 0)])), None);
    }

    #[test]
    fn a_share_beyond_64_bits_is_told_in_percent() {
        let share = unmatched(&chain(&[(1_000_003, 0); 32])).expect("nearly all are left");
        assert_eq!(share.to_string(), "99.9968 %");
    }
}
