//! How far a partition is done, when its records are finished in any order.

use std::collections::BTreeMap;

/// The records of a partition that were begun and not yet committed.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    begun: BTreeMap<i64, State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Begun,
    Finished,
}

impl Offsets {
    /// Begins a record. They are begun in order.
    pub(super) fn begin(&mut self, offset: i64) {
        self.begun.insert(offset, State::Begun);
    }

    /// Finishes a record. Returns the offset up to which all are finished, if that moved: what may be committed.
    ///
    /// A record that is not known is ignored: it was begun before the partition was taken away.
    pub(super) fn finish(&mut self, offset: i64) -> Option<i64> {
        *self.begun.get_mut(&offset)? = State::Finished;
        let mut next = None;
        while let Some(first) = self.begun.first_entry() {
            if *first.get() == State::Begun {
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

    fn begun(offsets: &[i64]) -> Offsets {
        let mut tracked = Offsets::default();
        for offset in offsets {
            tracked.begin(*offset);
        }
        tracked
    }

    #[test]
    fn nothing_is_committed_before_all_that_is_earlier() {
        // There are gaps in a log: offset 5 is not a record of ours.
        let mut offsets = begun(&[3, 4, 6, 7]);
        assert_eq!(offsets.finish(4), None);
        assert_eq!(offsets.finish(7), None);
        assert_eq!(offsets.finish(3), Some(5));
        assert_eq!(offsets.finish(6), Some(8));
    }

    #[test]
    fn what_was_not_begun_here_is_ignored() {
        let mut offsets = begun(&[3]);
        assert_eq!(offsets.finish(2), None);
        assert_eq!(offsets.finish(3), Some(4));
        assert_eq!(offsets.finish(3), None);
    }
}
