//! Pearson's χ² test: whether counts are as far from their shares as chance takes them, neither further nor nearer.

/// How likely counts are at least this far from shares that follow the weights: near 0 they are too far, near 1 too
/// near.
///
/// # Panics
/// When there are fewer than two counts, or not as many weights, or a weight of zero.
pub fn p_value(counts: &[u64], weights: &[u64]) -> f64 {
    assert!(counts.len() >= 2 && counts.len() == weights.len() && weights.iter().all(|weight| *weight > 0));
    let (all, sum) = (counts.iter().sum::<u64>() as f64, weights.iter().sum::<u64>() as f64);
    let term = |(count, weight): (&u64, &u64)| {
        let expected = all * *weight as f64 / sum;
        (*count as f64 - expected).powi(2) / expected
    };
    beyond(counts.iter().zip(weights).map(term).sum(), counts.len() - 1)
}

/// The part of the χ² distribution with so many degrees of freedom that lies beyond `value`.
fn beyond(value: f64, degrees: usize) -> f64 {
    let (a, z) = (degrees as f64 / 2.0, value / 2.0);
    if z > FAR {
        return 0.0;
    }
    // DLMF 8.11.4: γ(a, z) = zᵃ e⁻ᶻ Σ zᵏ / (a (a+1) … (a+k)).
    let (mut term, mut sum, mut k) = (1.0 / a, 1.0 / a, 0.0);
    while term > sum * f64::EPSILON / 4.0 {
        k += 1.0;
        term *= z / (a + k);
        sum += term;
    }
    (1.0 - sum * (a * z.ln() - z).exp() / gamma(degrees)).clamp(0.0, 1.0)
}

/// Where the sum would leave what a float can hold; with the few degrees of freedom here the answer is 0 long before.
const FAR: f64 = 300.0;

/// Γ(degrees / 2), up from Γ(1/2) = √π or Γ(1) = 1.
fn gamma(degrees: usize) -> f64 {
    let (mut at, mut value) = if degrees % 2 == 1 { (0.5, std::f64::consts::PI.sqrt()) } else { (1.0, 1.0) };
    while at < degrees as f64 / 2.0 {
        value *= at;
        at += 1.0;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    }

    #[test]
    fn the_distribution_has_its_known_values() {
        // Two degrees of freedom are an exponential distribution.
        for value in [1e-9, 0.5, 2.0, 13.0, 40.0] {
            close(beyond(value, 2), (-value / 2.0).exp());
        }
        // Quantiles of 1, 3 and 10 degrees, as every table has them.
        close(beyond(3.841_458_820_694_124, 1), 0.05);
        close(beyond(7.814_727_903_251_179, 3), 0.05);
        close(beyond(18.307_038_053_275_146, 10), 0.05);
        close(beyond(0.0, 3), 1.0);
    }

    #[test]
    fn the_bounds_of_the_scenarios_are_what_they_are_taken_for() {
        let far = beyond(30.664_849_706_213_6, 3);
        assert!((far / 1e-6 - 1.0).abs() < 1e-6, "{far}");
        let near = 1.0 - beyond(2.418_104_872_012e-4, 3);
        assert!((near / 1e-6 - 1.0).abs() < 1e-6, "{near}");
    }

    #[test]
    fn chance_passes_and_what_is_no_chance_does_not() {
        let by = |counts: &[u64]| p_value(counts, &[1; 4]);
        assert!((0.1..0.9).contains(&by(&[3041, 2967, 3010, 2982])));
        assert!(by(&[3300, 2900, 2900, 2900]) < 1e-6);
        assert!(by(&[3000, 3000, 3000, 3000]) > 1.0 - 1e-6);
        assert!(p_value(&[6000, 3000, 3000], &[1, 1, 1]) < 1e-6);
        assert!(by(&[1_000_000, 0, 0, 0]) == 0.0);
    }
}
