//! When an upload is tried again, and when its failures amount to a rejection.

use std::time::Duration;

use thiserror::Error;

use super::{config::Limits, probe::RejectReason};

pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Why a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A dependency is unavailable: tried again without limit.
    Unavailable,
    /// The log refuses the outcome: tried again without limit.
    Refused,
    /// The original is not in the object store.
    Missing,
    /// A tool or the try itself crashed.
    Crashed,
    /// The try used its share of the upload's budget.
    TimedOut,
    /// The worker vanished during the try.
    Interrupted,
}

/// A failed try.
#[derive(Clone, Debug, Error)]
#[error("{error}")]
pub struct Failure {
    /// The kind.
    pub reason: Reason,
    /// Cause, for operators.
    pub error: String,
    /// Time that the try used of the upload's budget.
    pub spent: Duration,
}

/// How the tries of an upload ended so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Tries that have begun.
    pub tries: u32,
    /// Tries that have begun and not ended, including the current one.
    pub interruptions: u32,
    /// Tries in which a tool crashed.
    pub crashes: u32,
    /// Tries that timed out.
    pub timeouts: u32,
    /// Tries that did not find the original.
    pub missing: u32,
    /// Time that failed tries used of the budget.
    pub spent: Duration,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Unavailable, Self::Refused, Self::Missing, Self::Crashed, Self::TimedOut, Self::Interrupted];

    /// Name in the table and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Refused => "refused",
            Self::Missing => "missing",
            Self::Crashed => "crashed",
            Self::TimedOut => "timed_out",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Failure {
    /// A failure that used nothing of the budget.
    pub fn new(reason: Reason, error: &(impl ToString + ?Sized)) -> Self {
        Self { reason, error: error.to_string(), spent: Duration::ZERO }
    }
}

impl History {
    /// The history after the current try has failed.
    #[must_use]
    pub fn after(self, failure: &Failure) -> Self {
        let count = |reason| u32::from(failure.reason == reason);
        Self {
            tries: self.tries,
            interruptions: self.interruptions.saturating_sub(1),
            crashes: self.crashes + count(Reason::Crashed),
            timeouts: self.timeouts + count(Reason::TimedOut),
            missing: self.missing + count(Reason::Missing),
            spent: self.spent + failure.spent,
        }
    }

    /// The reason to reject the upload, once it has failed too often.
    ///
    /// Unavailable dependencies never reject an upload.
    pub(super) fn verdict(&self, limits: &Limits) -> Option<RejectReason> {
        // Of the current try it is not known yet whether it interrupts its worker.
        let interruptions = self.interruptions.saturating_sub(1);
        if self.missing >= limits.max_missing {
            Some(RejectReason::Lost)
        } else if self.crashes >= limits.max_crashes
            || self.timeouts >= limits.max_timeouts
            || interruptions >= limits.max_interruptions
        {
            Some(RejectReason::Unprocessable)
        } else {
            None
        }
    }

    /// Delay before the next try: none if it will be a verdict.
    pub(super) fn backoff(&self, limits: &Limits) -> Duration {
        if self.verdict(limits).is_some() {
            return Duration::ZERO;
        }
        let doublings = self.tries.saturating_sub(1).min(16);
        (limits.initial_backoff * 2_u32.pow(doublings)).min(MAX_BACKOFF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history_of(reasons: &[Reason]) -> History {
        reasons.iter().fold(History::default(), |history, reason| {
            let started =
                History { tries: history.tries + 1, interruptions: history.interruptions + 1, ..history };
            match reason {
                // The try never ends.
                Reason::Interrupted => started,
                reason => started.after(&Failure::new(*reason, "a cause")),
            }
        })
    }

    fn verdict(reasons: &[Reason]) -> Option<RejectReason> {
        let history = history_of(reasons);
        History { interruptions: history.interruptions + 1, ..history }.verdict(&Limits::default())
    }

    #[test]
    fn second_timeout_and_third_crash_are_verdicts() {
        use Reason::{Crashed, Missing, TimedOut};
        assert_eq!(verdict(&[TimedOut, Crashed, Crashed, Missing]), None);
        assert_eq!(verdict(&[TimedOut, TimedOut]), Some(RejectReason::Unprocessable));
        assert_eq!(verdict(&[Crashed; 3]), Some(RejectReason::Unprocessable));
        assert_eq!(verdict(&[Missing; 119]), None);
        assert_eq!(verdict(&[Missing; 120]), Some(RejectReason::Lost));
    }

    #[test]
    fn unavailable_dependency_never_rejects_an_upload() {
        assert_eq!(verdict(&[Reason::Unavailable; 999]), None);
        assert_eq!(verdict(&[Reason::Refused; 999]), None);
    }

    #[test]
    fn upload_that_interrupts_workers_is_rejected() {
        let max = Limits::default().max_interruptions as usize;
        assert_eq!(verdict(&vec![Reason::Interrupted; max - 1]), None);
        assert_eq!(verdict(&vec![Reason::Interrupted; max]), Some(RejectReason::Unprocessable));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let limits = Limits::default();
        let backoff = |tries| history_of(&vec![Reason::Missing; tries]).backoff(&limits).as_secs();
        assert_eq!([1, 2, 3, 5, 6, 119].map(backoff), [1, 2, 4, 16, 30, 30]);
        assert_eq!(backoff(120), 0, "the next try is the verdict");
    }
}
