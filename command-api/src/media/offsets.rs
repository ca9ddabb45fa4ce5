//! Tracks which offset of a partition can be committed while its records complete out of order.

use std::collections::BTreeMap;

/// The offsets of a partition that can't be committed yet.
#[derive(Debug, Default)]
pub(super) struct OffsetTracker {
    offsets: BTreeMap<i64, State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InProgress,
    Completed,
}

impl OffsetTracker {
    /// Starts a record. Records start in offset order.
    pub(super) fn start(&mut self, offset: i64) {
        self.offsets.insert(offset, State::InProgress);
    }

    /// Completes a record. Returns the next offset to commit, if it advanced: all earlier records are complete.
    ///
    /// Ignores a record that was not started here, which belongs to an earlier assignment of the partition.
    pub(super) fn complete(&mut self, offset: i64) -> Option<i64> {
        *self.offsets.get_mut(&offset)? = State::Completed;
        let mut next = None;
        while let Some(first) = self.offsets.first_entry() {
            if *first.get() == State::InProgress {
                break;
            }
            next = Some(first.key() + 1);
            first.remove();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(offsets: &[i64]) -> OffsetTracker {
        let mut tracker = OffsetTracker::default();
        for offset in offsets {
            tracker.start(*offset);
        }
        tracker
    }

    #[test]
    fn offset_is_committed_after_all_earlier_records() {
        // Offsets have gaps, such as 5.
        let mut offsets = started(&[3, 4, 6, 7]);
        assert_eq!(offsets.complete(4), None);
        assert_eq!(offsets.complete(7), None);
        assert_eq!(offsets.complete(3), Some(5));
        assert_eq!(offsets.complete(6), Some(8));
    }

    #[test]
    fn record_of_an_earlier_assignment_is_ignored() {
        let mut offsets = started(&[3]);
        assert_eq!(offsets.complete(2), None);
        assert_eq!(offsets.complete(3), Some(4));
        assert_eq!(offsets.complete(3), None);
    }
}
