//! What a row came to in each round, and what of that is told.

/// The figures of one row, one for each round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds the figure of another round.
    pub fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// All of them, in the order of the rounds.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// The least: of a time what others' work on the machine has added the least to.
    pub fn least(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::min)
    }

    /// The most: of a rate what others' work has taken the least from.
    pub fn most(&self) -> Option<f64> {
        self.0.iter().copied().reduce(f64::max)
    }

    /// The one in the middle, or what is between the two in the middle.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let is_odd = sorted.len() % 2 == 1;
        Some(if is_odd { upper } else { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) })
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(figures: I) -> Self {
        Self(figures.into_iter().collect())
    }
}

/// The value that `share` of `sorted`, between 0 and 1, is not above; the nearest rank.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        assert_eq!(Samples::from_iter([3.0, 1.0, 2.0]).median(), Some(2.0));
        assert_eq!(Samples::from_iter([4.0, 1.0, 2.0, 3.0]).median(), Some(2.5));
        assert_eq!(Samples::default().median(), None);
    }

    #[test]
    fn least_and_most_are_those_of_all_rounds() {
        let samples = Samples::from_iter([3.0, 1.0, 2.0]);
        assert_eq!((samples.least(), samples.most()), (Some(1.0), Some(3.0)));
        assert_eq!((Samples::default().least(), Samples::default().most()), (None, None));
    }

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let sorted: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), Some(50.0));
        assert_eq!(percentile(&sorted, 0.99), Some(99.0));
        assert_eq!(percentile(&sorted, 1.0), Some(100.0));
        assert_eq!(percentile(&sorted, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
