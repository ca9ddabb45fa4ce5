//! Failure limits: a projection stops instead of diverting records when too many of them fail, because then the cause
//! is the program or the store, not the records.

use std::collections::VecDeque;

/// Consecutive failures at which a partition stops.
const RUN: usize = 25;
/// The window of the failure share, in records.
const WINDOW: usize = 500;
/// The share of failures in the window above which a partition stops, in percent, and the fewest failures for it.
const SHARE_PERCENT: usize = 20;
const SHARE_AT_LEAST: usize = 50;
/// Maximum of parked keys of a partition: memory and the store hold all of them.
pub(super) const PARKED_KEYS: usize = 10_000;

/// The results of the last records of a partition. Records that only wait behind another one do not count.
#[derive(Clone, Default)]
pub(super) struct Limits {
    run: usize,
    window: VecDeque<bool>,
    failed: usize,
}

impl Limits {
    /// Counts a folded record.
    pub(super) fn folded(&mut self) {
        self.run = 0;
        self.push(false);
    }

    /// Counts a failed record. Returns why to stop if a limit is exceeded.
    pub(super) fn failed(&mut self) -> Option<String> {
        self.run += 1;
        self.push(true);
        if self.run >= RUN {
            return Some(format!("{RUN} consecutive records could not be folded"));
        }
        let of = self.window.len();
        if self.failed >= SHARE_AT_LEAST && self.failed * 100 > of * SHARE_PERCENT {
            return Some(format!("{} of {of} records could not be folded", self.failed));
        }
        None
    }

    fn push(&mut self, failed: bool) {
        self.window.push_back(failed);
        self.failed += usize::from(failed);
        if self.window.len() > WINDOW {
            self.failed -= usize::from(self.window.pop_front() == Some(true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_failures_is_too_much_and_single_ones_are_not() {
        let mut limits = Limits::default();
        for _ in 0..1000 {
            (0..9).for_each(|_| limits.folded());
            assert_eq!(limits.failed(), None);
        }
        limits.folded();
        for _ in 1..RUN {
            assert_eq!(limits.failed(), None);
        }
        assert!(limits.failed().is_some());
    }

    #[test]
    fn a_share_of_failures_is_too_much_once_they_are_many() {
        let mut limits = Limits::default();
        let mut stopped = None;
        for round in 0..1000 {
            for _ in 0..3 {
                limits.folded();
            }
            if limits.failed().is_some() {
                stopped = Some(round + 1);
                break;
            }
        }
        assert_eq!(stopped, Some(SHARE_AT_LEAST));
    }
}
