//! The geometric mean of ratios, and how far it can be trusted.

/// Of `new ÷ old` over pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Interval {
    /// Geometric mean.
    pub(super) ratio: f64,
    /// Lower end of the 95 % interval.
    pub(super) low: f64,
    /// Upper end.
    pub(super) high: f64,
    /// How many pairs.
    pub(super) pairs: usize,
}

impl Interval {
    /// Of the interval, as a share of the ratio.
    pub(super) fn half_width(&self) -> f64 {
        (self.high - self.low) / 2.0 / self.ratio
    }
}

/// `None` of fewer than three pairs of positive figures, given as `(old, new)`. Student's t on the logarithms, since ratios
/// multiply.
pub(super) fn interval(pairs: &[(f64, f64)]) -> Option<Interval> {
    let logs: Vec<f64> = pairs
        .iter()
        .filter(|(old, new)| *old > 0.0 && *new > 0.0)
        .map(|(old, new)| (new / old).ln())
        .collect();
    if logs.len() < 3 {
        return None;
    }
    let n = logs.len() as f64;
    let mean = logs.iter().sum::<f64>() / n;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let reach = student(n - 1.0) * (variance / n).sqrt();
    let [ratio, low, high] = [mean, mean - reach, mean + reach].map(f64::exp);
    Some(Interval { ratio, low, high, pairs: logs.len() })
}

/// The 97.5 % quantile of Student's t, by Hill's expansion of the normal one (Abramowitz and Stegun 26.7.5); two degrees of
/// freedom exactly, from three on within 0.5 %.
fn student(freedom: f64) -> f64 {
    const Z: f64 = 1.959_963_985;
    if freedom < 3.0 {
        return 4.302_653;
    }
    let (z3, z5, z7, z9) = (Z.powi(3), Z.powi(5), Z.powi(7), Z.powi(9));
    let terms = [
        (z3 + Z) / 4.0,
        (5.0 * z5 + 16.0 * z3 + 3.0 * Z) / 96.0,
        (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * Z) / 384.0,
        (79.0 * z9 + 776.0 * z7 + 1482.0 * z5 - 1920.0 * z3 - 945.0 * Z) / 92_160.0,
    ];
    terms.iter().rev().fold(0.0, |sum, term| (sum + term) / freedom) + Z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(2.0, 4.303), (4.0, 2.776), (9.0, 2.262), (14.0, 2.145), (29.0, 2.045)] {
            let value = student(freedom);
            assert!((value - expected).abs() < 0.005, "{freedom}: {value}");
        }
    }

    #[test]
    fn the_interval_of_known_ratios() {
        assert_eq!(interval(&[(1.0, 1.0), (1.0, 1.0)]), None);
        // Logarithms −0.1, 0, 0.1: mean 0, standard error 0.1/√3.
        let pairs = [(1.0, 0.904_837_4), (1.0, 1.0), (1.0, 1.105_170_9), (0.0, 1.0)];
        let found = interval(&pairs).expect("three pairs");
        assert!((found.ratio - 1.0).abs() < 1e-6 && found.pairs == 3, "{found:?}");
        assert!((found.high - (4.302_653_f64 * 0.1 / 3_f64.sqrt()).exp()).abs() < 1e-5, "{found:?}");
        assert!((found.low * found.high - 1.0).abs() < 1e-6, "{found:?}");
    }
}
