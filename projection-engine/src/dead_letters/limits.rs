//! When to stop rather than go on diverting: where most of what comes fails, the fault is in the program or the store, not
//! in the records.

use std::collections::VecDeque;

/// Records of a partition that fail one after the other.
const RUN: usize = 25;
/// The records that a share is taken of.
const WINDOW: usize = 500;
/// A share of them that fails, in percent, and the fewest that count as a share.
const SHARE_PERCENT: usize = 20;
const SHARE_AT_LEAST: usize = 50;
/// Keys of a partition that may be parked: they are in memory, and in the store.
pub(super) const PARKED_KEYS: usize = 10_000;

/// What became of the last records of a partition. Those that only wait behind another say nothing, and are not here.
#[derive(Clone, Default)]
pub(super) struct Limits {
    run: usize,
    window: VecDeque<bool>,
    failed: usize,
}

impl Limits {
    /// Takes note of a record that was folded.
    pub(super) fn folded(&mut self) {
        self.run = 0;
        self.push(false);
    }

    /// Takes note of a record that failed; says why to stop, if it is too much.
    pub(super) fn failed(&mut self) -> Option<String> {
        self.run += 1;
        self.push(true);
        if self.run >= RUN {
            return Some(format!("{RUN} records one after the other could not be folded"));
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
