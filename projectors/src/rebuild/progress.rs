//! Progress of a rebuild.

use std::{fmt, time::Duration};

/// The interval at which a rebuild publishes its progress.
pub(super) const PUBLISH_INTERVAL: Duration = Duration::from_millis(500);

/// Progress of a rebuild.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// Creates the next generation.
    Preparing,
    /// Folds the log.
    Folding {
        /// Records folded.
        folded: i64,
        /// Records to fold in total, by the current end; it grows with the log.
        of: i64,
        /// Time since folding began.
        elapsed: Duration,
    },
    /// Compares the two generations.
    Comparing {
        /// Number of keys or rows that were compared.
        lines: usize,
    },
    /// Holds the live generation to compare the rest and to switch.
    TakingOver,
    /// The next generation is live. The old one is kept until requests that read it have ended.
    Waiting,
    /// The rebuild has ended.
    Done,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preparing => write!(f, "preparing"),
            Self::Folding { folded, of, elapsed } => {
                write!(f, "folded {folded} of {of} records")?;
                let seconds = elapsed.as_secs_f64();
                let rate = i64::try_from(elapsed.as_millis())
                    .ok()
                    .and_then(|ms| folded.saturating_mul(1000).checked_div(ms))
                    .filter(|rate| seconds >= 1.0 && *rate > 0);
                match rate {
                    Some(rate) => write!(f, ", {rate} records/s, {} s left", (of - folded).max(0) / rate),
                    None => Ok(()),
                }
            }
            Self::Comparing { lines: 0 } => write!(f, "comparing the generations"),
            Self::Comparing { lines } => write!(f, "comparing the generations, {lines} lines by now"),
            Self::TakingOver => write!(f, "holding the live generation, to switch"),
            Self::Waiting => write!(f, "switched; waiting for reads of the old generation to end"),
            Self::Done => write!(f, "done"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_and_the_time_left_are_told_once_they_are_known() {
        let folding = |folded, ms| {
            Progress::Folding { folded, of: 10_000, elapsed: Duration::from_millis(ms) }.to_string()
        };
        assert_eq!(folding(10, 20), "folded 10 of 10000 records");
        assert_eq!(folding(4000, 2000), "folded 4000 of 10000 records, 2000 records/s, 3 s left");
    }
}
