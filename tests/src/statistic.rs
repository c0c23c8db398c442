//! `-m statistic --mode nth` of iptables, exactly: net/netfilter/xt_statistic.c as a pure function.

/// One rule of a chain, whose target ends the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nth {
    /// `--every`, at least 1.
    pub every: u32,
    /// `--packet`, less than `every`.
    pub packet: u32,
    /// The backend it sends to, counted from 0.
    pub backend: usize,
}

/// The chain that spreads evenly: every n, n−1, … 1.
pub fn cascade(backends: usize) -> Vec<Nth> {
    let every = |backend: usize| u32::try_from(backends - backend).expect("backends that are countable");
    (0..backends).map(|backend| Nth { every: every(backend), packet: 0, backend }).collect()
}

/// The chain that is often seen instead: every n, copied n times, which leaves some unmatched.
pub fn copied(backends: usize) -> Vec<Nth> {
    let every = u32::try_from(backends).expect("backends that are countable");
    (0..backends).map(|backend| Nth { every, packet: 0, backend }).collect()
}

/// The same with every rule's own packet number, which is no better, for a rule counts only what reaches it.
pub fn numbered(backends: usize) -> Vec<Nth> {
    let mut rules = copied(backends);
    for (packet, rule) in (0..).zip(&mut rules) {
        rule.packet = packet;
    }
    rules
}

/// A chain of rules with their counters.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Each rule, and its counter as the kernel holds it.
    rules: Vec<(Nth, u32)>,
}

impl Chain {
    /// A chain as it is right after `iptables -A`.
    pub fn new(rules: &[Nth]) -> Self {
        // libxt_statistic.c: every is stored less 1, and the counter starts at that less packet.
        Self { rules: rules.iter().map(|rule| (*rule, rule.every - 1 - rule.packet)).collect() }
    }

    /// Judges one new connection: the backend of the rule that takes it, or nothing if none does.
    pub fn judge(&mut self) -> Option<usize> {
        // statistic_mt: the counter goes round from 0 to every − 1, and it matches as it comes to 0.
        self.rules.iter_mut().find_map(|(rule, count)| {
            *count = if *count == rule.every - 1 { 0 } else { *count + 1 };
            (*count == 0).then_some(rule.backend)
        })
    }
}

impl Iterator for Chain {
    type Item = Option<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.judge())
    }
}

/// How many of the next `connections` each backend gets, and how many none.
pub fn counts(rules: &[Nth], connections: usize) -> (Vec<usize>, usize) {
    let backends = rules.iter().map(|rule| rule.backend + 1).max().unwrap_or(0);
    let (mut counts, mut unmatched) = (vec![0; backends], 0);
    for backend in Chain::new(rules).take(connections) {
        match backend {
            Some(backend) => counts[backend] += 1,
            None => unmatched += 1,
        }
    }
    (counts, unmatched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cascade_is_exact() {
        assert_eq!(counts(&cascade(4), 12_000), (vec![3000; 4], 0));
    }

    #[test]
    fn copied_rules_leave_a_third_unmatched() {
        assert_eq!(counts(&copied(4), 100), (vec![25, 19, 14, 11], 31));
        assert_eq!(counts(&copied(4), 1200), (vec![300, 225, 169, 127], 379));
        assert_eq!(counts(&copied(4), 12_000), (vec![3000, 2250, 1688, 1266], 3796));
    }

    #[test]
    fn numbered_rules_are_no_better() {
        assert_eq!(counts(&numbered(4), 12_000), (vec![3000, 2250, 1687, 1265], 3798));
    }

    #[test]
    fn a_lone_rule_matches_its_packet_of_every_round() {
        let mut chain = Chain::new(&[Nth { every: 3, packet: 2, backend: 0 }]);
        let matched: Vec<_> = (0..9).map(|_| chain.judge().is_some()).collect();
        assert_eq!(matched, [false, false, true, false, false, true, false, false, true]);
    }
}
