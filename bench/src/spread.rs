//! The spread of repeated measurements.

use std::fmt;

/// Minimum, median and maximum of a measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    minimum: f64,
    /// The middle value, or the mean of the two in the middle.
    pub(crate) median: f64,
    maximum: f64,
}

impl Spread {
    /// The spread of at least one value.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let (minimum, maximum) = (*values.first()?, *values.last()?);
        let (lower, upper) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { minimum, median: f64::midpoint(lower, upper), maximum })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} / {:.2} / {:.2}", self.minimum, self.median, self.maximum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_the_mean_of_two() {
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).unwrap().to_string(), "1.00 / 2.00 / 3.00");
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().to_string(), "1.00 / 2.50 / 4.00");
    }
}
