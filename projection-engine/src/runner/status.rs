//! The status of each partition that runs in this process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{desired_state::RunState, log::Partition};

/// The window of a partition's rate.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// The statuses of a process.
#[derive(Default)]
pub struct PartitionStatusRegistry {
    statuses: Mutex<Statuses>,
    changed: Notify,
}

#[derive(Default)]
struct Statuses {
    run_states: BTreeMap<&'static str, RunState>,
    partitions: BTreeMap<(&'static str, Partition), Entry>,
}

struct Entry {
    phase: Phase,
    /// The offset of the partition's task, and earlier ones, oldest first.
    next: i64,
    earlier: VecDeque<(Instant, i64)>,
    error: Option<(String, Instant)>,
}

/// Whether a partition has a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has no task yet, for this reason.
    Waiting(String),
    /// It has a task.
    Running,
}

/// The status of a partition.
#[derive(Debug)]
pub struct PartitionStatus {
    /// The projection's name.
    pub projection: &'static str,
    /// The partition.
    pub partition: Partition,
    /// Whether the partition has a task.
    pub phase: Phase,
    /// The run state that the runner has applied to the projection.
    pub run_state: RunState,
    /// Records folded per second, over the last 10 seconds.
    pub records_per_second: f64,
    /// The last error, and its age.
    pub error: Option<(String, Duration)>,
}

impl PartitionStatusRegistry {
    /// Waits for a change, other than of numbers.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Current status of every partition. Rates cover the time since earlier calls.
    pub fn snapshot(&self) -> Vec<PartitionStatus> {
        let now = Instant::now();
        let Statuses { run_states, partitions } = &mut *self.lock();
        let status =
            |(&(projection, partition), entry): (&(&'static str, Partition), &mut Entry)| PartitionStatus {
                projection,
                partition,
                phase: entry.phase.clone(),
                run_state: run_states.get(projection).cloned().unwrap_or(RunState::Run),
                records_per_second: entry.rate(now),
                error: entry.error.as_ref().map(|(error, at)| (error.clone(), now.duration_since(*at))),
            };
        partitions.iter_mut().map(status).collect()
    }

    /// Records the run state of a projection.
    pub(super) fn set_run_state(&self, projection: &'static str, run_state: &RunState) {
        self.lock().run_states.insert(projection, run_state.clone());
        self.changed.notify_one();
    }

    /// The handle of a partition.
    pub(super) fn handle(self: &Arc<Self>, projection: &'static str, partition: Partition) -> StatusHandle {
        StatusHandle { statuses: self.clone(), projection, partition }
    }

    fn lock(&self) -> MutexGuard<'_, Statuses> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Updates the status of one partition.
#[derive(Clone)]
pub(super) struct StatusHandle {
    statuses: Arc<PartitionStatusRegistry>,
    projection: &'static str,
    partition: Partition,
}

impl StatusHandle {
    /// The partition has no task, for this reason.
    pub(super) fn set_waiting(&self, why: &str) {
        self.change(|entry| entry.phase = Phase::Waiting(why.to_owned()));
    }

    /// The partition has a task, which starts at an offset.
    pub(super) fn set_running(&self, next: i64) {
        self.change(|entry| {
            entry.phase = Phase::Running;
            entry.next = next;
            entry.earlier = VecDeque::from([(Instant::now(), next)]);
        });
    }

    /// Removes the partition.
    pub(super) fn remove(&self) {
        self.statuses.lock().partitions.remove(&(self.projection, self.partition));
    }

    /// Records up to an offset were folded.
    pub(super) fn set_next(&self, next: i64) {
        if let Some(entry) = self.statuses.lock().partitions.get_mut(&(self.projection, self.partition)) {
            entry.next = next;
        }
    }

    /// Records an error.
    pub(super) fn record_error(&self, error: impl Into<String>) {
        if let Some(entry) = self.statuses.lock().partitions.get_mut(&(self.projection, self.partition)) {
            entry.error = Some((error.into(), Instant::now()));
        }
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut guard = self.statuses.lock();
        let entry = guard.partitions.entry((self.projection, self.partition)).or_insert_with(|| Entry {
            phase: Phase::Waiting(String::new()),
            next: 0,
            earlier: VecDeque::new(),
            error: None,
        });
        let before = entry.phase.clone();
        change(entry);
        if entry.phase != before {
            self.statuses.changed.notify_one();
        }
    }
}

impl Entry {
    /// Records per second over [`RATE_WINDOW`], or since the task started.
    fn rate(&mut self, now: Instant) -> f64 {
        if self.phase != Phase::Running {
            return 0.0;
        }
        while self.earlier.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RATE_WINDOW) {
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
    fn rate_covers_the_last_ten_seconds() {
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
