//! The status of each partition that runs in this process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use vidlog_service_kit::ops::Readiness;

use crate::{desired_state::RunState, log::Partition};

/// The window of a partition's rate.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Time without progress after which a partition is blocked: longer than a restart of a store or a failover takes most
/// often.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);

/// The statuses of a process. Also reports partitions without progress to its readiness.
pub struct PartitionStatusRegistry {
    readiness: Readiness,
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
    failure: Option<OngoingFailure>,
}

/// A failure that is retried.
struct OngoingFailure {
    since: Instant,
    reason: String,
    /// The offset that a later batch has to pass before the failure is over; `None` if any success ends it.
    at: Option<i64>,
}

/// Whether a partition has a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has no task yet, for this reason.
    Waiting(String),
    /// It has a task.
    Running,
    /// It has made no progress for seconds, for this reason: its task retries a batch, or cannot start.
    Blocked(String),
}

/// The status of a partition.
#[derive(Debug)]
pub struct PartitionStatus {
    /// The projection's name.
    pub projection: &'static str,
    /// The partition.
    pub partition: Partition,
    /// Whether the partition has a task, and whether that makes progress.
    pub phase: Phase,
    /// The run state that the runner has applied to the projection.
    pub run_state: RunState,
    /// Records folded per second, over the last 10 seconds.
    pub records_per_second: f64,
    /// The last error, and its age.
    pub error: Option<(String, Duration)>,
}

impl PartitionStatusRegistry {
    /// An empty registry that reports to a readiness.
    pub fn new(readiness: Readiness) -> Self {
        Self { readiness, statuses: Mutex::default(), changed: Notify::new() }
    }

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
                phase: entry.phase_at(now),
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
        self.record_success();
    }

    /// Removes the partition.
    pub(super) fn remove(&self) {
        self.statuses.lock().partitions.remove(&(self.projection, self.partition));
        self.statuses.readiness.ready(&self.component());
    }

    /// Records up to an offset were folded.
    pub(super) fn set_next(&self, next: i64) {
        self.update(|entry| entry.next = next);
    }

    /// The task cannot start, for this reason. The partition is not ready at once.
    pub(super) fn defer_start(&self, why: &str) {
        self.set_waiting(why);
        self.record_error(why);
        self.update(|entry| entry.record_failure(why, None));
        self.statuses.readiness.not_ready(&self.component(), why);
    }

    /// A batch failed and is retried. If no batch succeeds for [`BLOCKED_AFTER`], the partition is not ready.
    pub(super) fn record_failure(&self, reason: &str) {
        self.update(|entry| entry.record_failure(reason, None));
        self.report_blocked();
    }

    /// The task panicked, and starts again at the store's position. The failure is over once a batch has passed the
    /// offset of the panic.
    pub(super) fn record_panic(&self) {
        const REASON: &str = "partition task panicked";
        self.record_error(REASON);
        self.update(|entry| entry.record_failure(REASON, Some(entry.next)));
        self.report_blocked();
    }

    /// A batch was written, or the task started.
    pub(super) fn record_success(&self) {
        let mut is_over = true;
        self.update(|entry| {
            let at = entry.failure.as_ref().and_then(|failure| failure.at);
            is_over = at.is_none_or(|at| entry.next > at);
            if is_over {
                entry.failure = None;
            }
        });
        if is_over {
            self.report_ready();
        }
    }

    /// The operator or a hold stopped the projection, which is no fault.
    pub(super) fn clear_failure(&self) {
        self.update(|entry| entry.failure = None);
        self.report_ready();
    }

    fn report_blocked(&self) {
        let mut blocked = None;
        self.update(|entry| {
            if let Phase::Blocked(reason) = entry.phase_at(Instant::now()) {
                blocked = Some(reason);
            }
        });
        if let Some(reason) = blocked {
            let component = self.component();
            if self.statuses.readiness.reason(&component).as_ref() != Some(&reason) {
                self.statuses.readiness.not_ready(&component, reason);
                self.statuses.changed.notify_one();
            }
        }
    }

    fn report_ready(&self) {
        let component = self.component();
        if self.statuses.readiness.reason(&component).is_some() {
            self.statuses.readiness.ready(&component);
            self.statuses.changed.notify_one();
        }
    }

    /// The name of the partition in the readiness.
    fn component(&self) -> String {
        format!("{}/{}", self.projection, self.partition.id())
    }

    /// Records an error.
    pub(super) fn record_error(&self, error: impl Into<String>) {
        self.update(|entry| entry.error = Some((error.into(), Instant::now())));
    }

    fn update(&self, update: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.statuses.lock().partitions.get_mut(&(self.projection, self.partition)) {
            update(entry);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut guard = self.statuses.lock();
        let entry = guard.partitions.entry((self.projection, self.partition)).or_insert_with(|| Entry {
            phase: Phase::Waiting(String::new()),
            next: 0,
            earlier: VecDeque::new(),
            error: None,
            failure: None,
        });
        let before = entry.phase.clone();
        change(entry);
        if entry.phase != before {
            self.statuses.changed.notify_one();
        }
    }
}

impl Entry {
    fn phase_at(&self, now: Instant) -> Phase {
        match &self.failure {
            Some(failure) if now.duration_since(failure.since) >= BLOCKED_AFTER => {
                Phase::Blocked(failure.reason.clone())
            }
            _ => self.phase.clone(),
        }
    }

    fn record_failure(&mut self, reason: &str, at: Option<i64>) {
        let before = self.failure.take();
        self.failure = Some(OngoingFailure {
            since: before.as_ref().map_or_else(Instant::now, |before| before.since),
            reason: reason.to_owned(),
            at: before.and_then(|before| before.at).max(at),
        });
    }

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
    use vidlog_events::Stream;

    use super::*;

    #[test]
    fn rate_covers_the_last_ten_seconds() {
        let begun = Instant::now();
        let mut entry = Entry {
            phase: Phase::Running,
            next: 1000,
            earlier: VecDeque::from([(begun, 1000)]),
            error: None,
            failure: None,
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

    const PARTITION: Partition = Partition { stream: Stream::Likes, number: 3 };

    fn running() -> (Readiness, Arc<PartitionStatusRegistry>, StatusHandle) {
        let readiness = Readiness::new();
        let registry = Arc::new(PartitionStatusRegistry::new(readiness.clone()));
        let status = registry.handle("likes", PARTITION);
        status.set_waiting("about to start");
        status.set_running(10);
        (readiness, registry, status)
    }

    /// Makes the current failure older.
    fn age(registry: &PartitionStatusRegistry, age: Duration) {
        let mut statuses = registry.lock();
        let entry = statuses.partitions.get_mut(&("likes", PARTITION)).unwrap();
        entry.failure.as_mut().unwrap().since -= age;
    }

    fn phase(registry: &PartitionStatusRegistry) -> Phase {
        registry.snapshot().remove(0).phase
    }

    #[test]
    fn partition_is_blocked_while_a_batch_fails_for_long() {
        let (readiness, registry, status) = running();
        status.record_failure("Redis error OOM");
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
        age(&registry, BLOCKED_AFTER);
        status.record_failure("Redis error OOM");
        assert_eq!(phase(&registry), Phase::Blocked("Redis error OOM".to_owned()));
        assert_eq!(readiness.unready().unwrap(), "likes/likes:3: Redis error OOM");
        status.record_success();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
        status.record_failure("Redis error OOM");
        assert_eq!(phase(&registry), Phase::Running, "the time without progress starts again");
    }

    #[test]
    fn panicking_task_is_blocked_over_its_restarts() {
        let (readiness, registry, status) = running();
        status.set_next(20);
        status.record_panic();
        age(&registry, BLOCKED_AFTER);
        // Some parts of the view are behind the batch that panics, so earlier batches are folded again.
        status.set_running(10);
        status.set_next(20);
        status.record_success();
        status.record_panic();
        assert_eq!(phase(&registry), Phase::Blocked("partition task panicked".to_owned()));
        assert!(readiness.unready().is_some());
        status.set_next(21);
        status.record_success();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
    }

    #[test]
    fn deferred_start_is_not_ready_at_once() {
        let (readiness, registry, status) = running();
        status.defer_start("failed to seek");
        assert_eq!(phase(&registry), Phase::Waiting("failed to seek".to_owned()));
        assert_eq!(readiness.unready().unwrap(), "likes/likes:3: failed to seek");
        age(&registry, BLOCKED_AFTER);
        assert_eq!(phase(&registry), Phase::Blocked("failed to seek".to_owned()));
        status.set_running(10);
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
    }
}
