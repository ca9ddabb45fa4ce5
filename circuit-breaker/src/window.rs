//! The outcomes of the calls of the last seconds.

use tokio::time::Instant;

/// Length of the window in seconds. Failures that are further apart are unrelated.
const SECONDS: usize = 10;

/// Counts of calls, per second.
#[derive(Debug)]
pub(crate) struct Window {
    start: Instant,
    seconds: [Second; SECONDS],
}

/// The calls that ended in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Second {
    number: u64,
    pub(crate) answered: u32,
    pub(crate) failed: u32,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), seconds: [Second::default(); SECONDS] }
    }

    pub(crate) fn add(&mut self, answered: u32, failed: u32) {
        let number = self.current();
        let index = usize::try_from(number % SECONDS as u64).unwrap_or_default();
        let Some(second) = self.seconds.get_mut(index) else { return };
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second.answered = second.answered.saturating_add(answered);
        second.failed = second.failed.saturating_add(failed);
    }

    /// Returns the sum over the window: the answered and the failed calls.
    pub(crate) fn totals(&self) -> (u32, u32) {
        let now = self.current();
        let recent = self.seconds.iter().filter(|second| now - second.number.min(now) < SECONDS as u64);
        recent.fold((0, 0), |(answered, failed), second| {
            (second.answered.saturating_add(answered), second.failed.saturating_add(failed))
        })
    }

    fn current(&self) -> u64 {
        self.start.elapsed().as_secs()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn window_forgets_calls_after_its_length() {
        let mut window = Window::new();
        window.add(2, 1);
        tokio::time::advance(Duration::from_secs(9)).await;
        window.add(1, 3);
        assert_eq!(window.totals(), (3, 4));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(window.totals(), (1, 3));
        // The bucket of the first second is used again.
        window.add(0, 1);
        assert_eq!(window.totals(), (1, 4));
        tokio::time::advance(Duration::from_mins(10)).await;
        assert_eq!(window.totals(), (0, 0));
    }
}
