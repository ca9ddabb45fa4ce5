//! What the runners of a process tell about their partitions, for whoever reports it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{desired_state::Wish, log::Partition};

/// How far the rate of a partition looks back.
const RATE_OVER: Duration = Duration::from_secs(10);

/// The board of a process.
#[derive(Default)]
pub struct Board {
    told: Mutex<Told>,
    changed: Notify,
}

#[derive(Default)]
struct Told {
    followed: BTreeMap<&'static str, Wish>,
    partitions: BTreeMap<(&'static str, Partition), Entry>,
}

struct Entry {
    phase: Phase,
    /// Where the partition's task is, with earlier places, oldest first.
    next: i64,
    earlier: VecDeque<(Instant, i64)>,
    error: Option<(String, Instant)>,
}

/// Whether a partition has a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has none yet, for this reason.
    Waiting(String),
    /// It has one.
    Running,
}

/// What is told of a partition.
#[derive(Debug)]
pub struct Line {
    /// The projection's name.
    pub projection: &'static str,
    /// The partition.
    pub partition: Partition,
    /// Whether the partition has a task.
    pub phase: Phase,
    /// What is wanted of the projection, as far as it is followed.
    pub followed: Wish,
    /// Records folded per second, over the last 10 seconds.
    pub records_per_second: f64,
    /// The last error, and how long ago it was.
    pub error: Option<(String, Duration)>,
}

impl Board {
    /// Waits until there is something new to tell, other than numbers.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// All that is told now. Rates are counted from one reading to the next ones.
    pub fn lines(&self) -> Vec<Line> {
        let now = Instant::now();
        let Told { followed, partitions } = &mut *self.told();
        let line = |(&(projection, partition), entry): (&(&'static str, Partition), &mut Entry)| Line {
            projection,
            partition,
            phase: entry.phase.clone(),
            followed: followed.get(projection).cloned().unwrap_or(Wish::Run),
            records_per_second: entry.rate(now),
            error: entry.error.as_ref().map(|(error, at)| (error.clone(), now.duration_since(*at))),
        };
        partitions.iter_mut().map(line).collect()
    }

    /// Says what a projection follows.
    pub(super) fn follow(&self, projection: &'static str, wish: &Wish) {
        self.told().followed.insert(projection, wish.clone());
        self.changed.notify_one();
    }

    /// The place of a partition.
    pub(super) fn place(self: &Arc<Self>, projection: &'static str, partition: Partition) -> Place {
        Place { board: self.clone(), projection, partition }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a partition's runner writes.
#[derive(Clone)]
pub(super) struct Place {
    board: Arc<Board>,
    projection: &'static str,
    partition: Partition,
}

impl Place {
    /// The partition has no task, for this reason.
    pub(super) fn wait(&self, why: &str) {
        self.change(|entry| entry.phase = Phase::Waiting(why.to_owned()));
    }

    /// The partition has a task, which begins somewhere.
    pub(super) fn run(&self, next: i64) {
        self.change(|entry| {
            entry.phase = Phase::Running;
            entry.next = next;
            entry.earlier = VecDeque::from([(Instant::now(), next)]);
        });
    }

    /// The partition is gone.
    pub(super) fn leave(&self) {
        self.board.told().partitions.remove(&(self.projection, self.partition));
    }

    /// Records were folded.
    pub(super) fn folded(&self, next: i64) {
        if let Some(entry) = self.board.told().partitions.get_mut(&(self.projection, self.partition)) {
            entry.next = next;
        }
    }

    /// Something failed.
    pub(super) fn fail(&self, error: impl Into<String>) {
        if let Some(entry) = self.board.told().partitions.get_mut(&(self.projection, self.partition)) {
            entry.error = Some((error.into(), Instant::now()));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut told = self.board.told();
        let entry = told.partitions.entry((self.projection, self.partition)).or_insert_with(|| Entry {
            phase: Phase::Waiting(String::new()),
            next: 0,
            earlier: VecDeque::new(),
            error: None,
        });
        let before = entry.phase.clone();
        change(entry);
        if entry.phase != before {
            self.board.changed.notify_one();
        }
    }
}

impl Entry {
    /// Records a second since the last time that is [`RATE_OVER`] ago, or else since the task began.
    fn rate(&mut self, now: Instant) -> f64 {
        if self.phase != Phase::Running {
            return 0.0;
        }
        while self.earlier.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_OVER) {
            self.earlier.pop_front();
        }
        let rate = self.earlier.front().map_or(0.0, |(at, next)| {
            let records = u32::try_from(self.next - next).unwrap_or_default();
            let seconds = now.duration_since(*at).as_secs_f64();
            if seconds > 0.0 { f64::from(records) / seconds } else { 0.0 }
        });
        self.earlier.push_back((now, self.next));
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_last_ten_seconds() {
        let begun = Instant::now();
        let mut entry = Entry {
            phase: Phase::Running,
            next: 1000,
            earlier: VecDeque::from([(begun, 1000)]),
            error: None,
        };
        let mut rate = |next, seconds| {
            entry.next = next;
            let rate = entry.rate(begun + Duration::from_secs(seconds));
            assert!(entry.earlier.len() <= 7);
            format!("{rate:.0}")
        };
        assert_eq!([rate(1000, 0), rate(1200, 2), rate(1400, 4)], ["0", "100", "100"]);
        assert_eq!([rate(1400, 6), rate(1400, 8), rate(1400, 10)], ["67", "50", "40"]);
        assert_eq!([rate(1400, 12), rate(1400, 14), rate(1400, 16)], ["20", "0", "0"]);
    }
}
