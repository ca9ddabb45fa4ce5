//! The status of each partition that runs in this process.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{desired_state::RunState, log::Partition};

/// The window of a partition's rate.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Time without progress after which a partition is blocked: longer than a restart of a store or a failover takes most
/// often. The reasons of operations quote it.
const BLOCKED_AFTER: Duration = Duration::from_secs(5);
/// Interval between two checks for operations that take too long.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// The statuses of a process. Also reports partitions without progress to its readiness.
pub struct PartitionStatusRegistry {
    readiness: Readiness,
    statuses: Mutex<Statuses>,
    changed: Notify,
}

#[derive(Default)]
struct Statuses {
    run_states: BTreeMap<&'static str, RunState>,
    partitions: BTreeMap<Key, Entry>,
}

/// A projection and a partition.
type Key = (&'static str, Partition);

/// The name of a partition in the readiness.
fn component((projection, partition): Key) -> String {
    format!("{projection}/{}", partition.id())
}

struct Entry {
    phase: Phase,
    /// The offset of the partition's task, and earlier ones, oldest first.
    next: i64,
    earlier: VecDeque<(Instant, i64)>,
    error: Option<(String, Instant)>,
    failure: Option<OngoingFailure>,
    /// What the task does now, and since when.
    operation: Option<(Operation, Instant)>,
    /// Why the partition is not ready, as reported.
    unready: Option<String>,
}

/// An operation of a task, which a store or the dead-letter topic can make wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Reads the parked keys and the dead letters, before the first batch.
    Open,
    /// Writes a batch.
    Batch,
    /// Aligns the parts of the view.
    Align,
    /// Reloads the parked keys.
    Refresh,
}

impl Operation {
    /// Why the partition is blocked if the operation takes too long.
    const fn reason(self) -> &'static str {
        match self {
            Self::Open => "reading the parked keys and the dead letters takes more than 5 s",
            Self::Batch => "writing a batch takes more than 5 s",
            Self::Align => "aligning the view takes more than 5 s",
            Self::Refresh => "reading the parked keys takes more than 5 s",
        }
    }
}

/// A failure that is retried.
struct OngoingFailure {
    since: Instant,
    reason: String,
    /// The offset at which the failure is over; `None` if any success ends it. See [`StatusHandle::record_restart`].
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

    /// Reports partitions whose task waits for too long, and so cannot report it. Runs until shutdown.
    pub async fn watch(&self, shutdown: Shutdown) {
        while timeout(CHECK_INTERVAL, shutdown.wait()).await.is_err() {
            for (key, entry) in &mut self.lock().partitions {
                self.report(*key, entry);
            }
        }
    }

    /// Current status of every partition. Rates cover the time since earlier calls.
    pub fn snapshot(&self) -> Vec<PartitionStatus> {
        let now = Instant::now();
        let Statuses { run_states, partitions } = &mut *self.lock();
        let status = |(&(projection, partition), entry): (&Key, &mut Entry)| PartitionStatus {
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

    /// Reports to the readiness whether a partition is ready.
    fn report(&self, key: Key, entry: &mut Entry) {
        let unready = entry.unready_at(Instant::now());
        if unready == entry.unready {
            return;
        }
        match &unready {
            Some(reason) => self.readiness.not_ready(&component(key), reason),
            None => self.readiness.ready(&component(key)),
        }
        entry.unready = unready;
        self.changed.notify_one();
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
        self.change(|entry| {
            entry.phase = Phase::Waiting(why.to_owned());
            entry.operation = None;
        });
    }

    /// The partition has a task, which starts at an offset.
    pub(super) fn set_running(&self, next: i64) {
        self.change(|entry| {
            entry.phase = Phase::Running;
            entry.next = next;
            entry.earlier = VecDeque::from([(Instant::now(), next)]);
            entry.end_retries();
        });
    }

    /// Removes the partition.
    pub(super) fn remove(&self) {
        let mut statuses = self.statuses.lock();
        statuses.partitions.remove(&self.key());
        self.statuses.readiness.ready(&component(self.key()));
    }

    /// Records up to an offset were folded.
    pub(super) fn set_next(&self, next: i64) {
        self.update(|entry| entry.next = next);
    }

    /// The task cannot start, for this reason. The partition is not ready at once.
    pub(super) fn defer_start(&self, why: &str) {
        self.change(|entry| {
            entry.phase = Phase::Waiting(why.to_owned());
            entry.error = Some((why.to_owned(), Instant::now()));
            entry.operation = None;
            entry.record_failure(why, None);
        });
    }

    /// An operation begins. If it takes [`BLOCKED_AFTER`] with its retries, the partition is blocked.
    pub(super) fn begin(&self, operation: Operation) {
        self.update(|entry| entry.operation = Some((operation, Instant::now())));
    }

    /// The operation failed and is retried.
    pub(super) fn record_failure(&self, reason: &str) {
        self.update(|entry| entry.record_failure(reason, None));
    }

    /// The task panicked, and starts again at the store's position.
    pub(super) fn record_panic(&self) {
        const REASON: &str = "partition task panicked";
        self.update(|entry| {
            entry.error = Some((REASON.to_owned(), Instant::now()));
            let is_batch = matches!(entry.operation, Some((Operation::Batch, _)));
            entry.record_failure(REASON, Some(entry.next + i64::from(is_batch)));
        });
    }

    /// The task ends, and starts again at the store's position. That is no success: the failure is over once a batch has
    /// passed an offset, or the task has reached it and is idle.
    pub(super) fn record_restart(&self, reason: &str, at: i64) {
        self.update(|entry| entry.record_failure(reason, Some(at)));
    }

    /// The operation succeeded, which ends its retries.
    pub(super) fn record_response(&self) {
        self.update(Entry::end_retries);
    }

    /// A batch was written.
    pub(super) fn record_batch(&self) {
        self.update(|entry| entry.end_failure(entry.next - 1));
    }

    /// The task did all that it does without records.
    pub(super) fn record_idle(&self) {
        self.update(|entry| entry.end_failure(entry.next));
    }

    /// The operator or a hold stopped the projection, which is no fault.
    pub(super) fn clear_failure(&self) {
        self.update(|entry| entry.failure = None);
    }

    /// Records an error.
    pub(super) fn record_error(&self, error: impl Into<String>) {
        self.update(|entry| entry.error = Some((error.into(), Instant::now())));
    }

    fn key(&self) -> Key {
        (self.projection, self.partition)
    }

    fn update(&self, update: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.statuses.lock().partitions.get_mut(&self.key()) {
            update(entry);
            self.statuses.report(self.key(), entry);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut guard = self.statuses.lock();
        let entry = guard.partitions.entry(self.key()).or_insert_with(Entry::new);
        let before = entry.phase.clone();
        change(entry);
        if entry.phase != before {
            self.statuses.changed.notify_one();
        }
        self.statuses.report(self.key(), entry);
    }
}

impl Entry {
    const fn new() -> Self {
        Self {
            phase: Phase::Waiting(String::new()),
            next: 0,
            earlier: VecDeque::new(),
            error: None,
            failure: None,
            operation: None,
            unready: None,
        }
    }

    fn phase_at(&self, now: Instant) -> Phase {
        let is_long = |since: Instant| now.duration_since(since) >= BLOCKED_AFTER;
        match (&self.failure, self.operation) {
            (Some(failure), _) if is_long(failure.since) => Phase::Blocked(failure.reason.clone()),
            (_, Some((operation, since))) if is_long(since) => Phase::Blocked(operation.reason().to_owned()),
            _ => self.phase.clone(),
        }
    }

    /// Why the partition is not ready: it is blocked, or its start is deferred.
    fn unready_at(&self, now: Instant) -> Option<String> {
        match (self.phase_at(now), &self.failure) {
            (Phase::Blocked(reason), _) => Some(reason),
            (Phase::Waiting(why), Some(failure)) if failure.reason == why => Some(why),
            (Phase::Waiting(_) | Phase::Running, _) => None,
        }
    }

    /// Records a failure. It has lasted since the first one that no success followed, or since its operation began.
    fn record_failure(&mut self, reason: &str, at: Option<i64>) {
        let before = self.failure.take();
        let begun = self.operation.map_or_else(Instant::now, |(_, since)| since);
        self.failure = Some(OngoingFailure {
            since: before.as_ref().map_or(begun, |before| before.since),
            reason: reason.to_owned(),
            at: before.and_then(|before| before.at).max(at),
        });
    }

    /// Ends the operation, and a failure that any success ends.
    fn end_retries(&mut self) {
        self.operation = None;
        self.failure = self.failure.take().filter(|failure| failure.at.is_some());
    }

    /// Ends the operation, and a failure that is over at an offset.
    fn end_failure(&mut self, reached: i64) {
        self.end_retries();
        self.failure = self.failure.take().filter(|failure| failure.at > Some(reached));
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
            ..Entry::new()
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

    /// Makes the current failure and operation older, and checks them.
    fn age(registry: &PartitionStatusRegistry, age: Duration) {
        let mut statuses = registry.lock();
        for (key, entry) in &mut statuses.partitions {
            if let Some(failure) = &mut entry.failure {
                failure.since -= age;
            }
            if let Some((_, since)) = &mut entry.operation {
                *since -= age;
            }
            registry.report(*key, entry);
        }
    }

    fn phase(registry: &PartitionStatusRegistry) -> Phase {
        registry.snapshot().remove(0).phase
    }

    fn blocked(reason: &str) -> Phase {
        Phase::Blocked(reason.to_owned())
    }

    #[test]
    fn partition_is_blocked_while_a_batch_fails_for_long() {
        let (readiness, registry, status) = running();
        status.begin(Operation::Batch);
        status.record_failure("Redis error OOM");
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
        age(&registry, BLOCKED_AFTER);
        assert_eq!(phase(&registry), blocked("Redis error OOM"));
        assert_eq!(readiness.unready().unwrap(), "likes/likes:3: Redis error OOM");
        status.record_batch();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
        status.begin(Operation::Batch);
        status.record_failure("Redis error OOM");
        assert_eq!(phase(&registry), Phase::Running, "the time without progress starts again");
    }

    #[test]
    fn partition_is_blocked_while_an_operation_hangs() {
        let (readiness, registry, status) = running();
        status.begin(Operation::Batch);
        age(&registry, BLOCKED_AFTER);
        assert_eq!(phase(&registry), blocked("writing a batch takes more than 5 s"));
        assert!(readiness.unready().is_some());
        status.record_failure("no response within 10 s");
        assert_eq!(phase(&registry), blocked("no response within 10 s"));
        status.record_batch();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
    }

    #[test]
    fn panicking_batch_is_blocked_over_its_restarts() {
        let (readiness, registry, status) = running();
        status.set_next(20);
        status.begin(Operation::Batch);
        status.record_panic();
        age(&registry, BLOCKED_AFTER);
        // Some parts of the view are behind the batch that panics, so earlier batches are folded again.
        status.set_running(10);
        status.record_response();
        status.set_next(20);
        status.record_batch();
        status.record_idle();
        assert_eq!(phase(&registry), blocked("partition task panicked"));
        assert!(readiness.unready().is_some());
        status.set_next(21);
        status.record_batch();
        status.record_idle();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
    }

    #[test]
    fn panic_outside_a_batch_ends_without_a_record() {
        let (readiness, registry, status) = running();
        status.set_next(20);
        status.begin(Operation::Align);
        status.record_panic();
        age(&registry, BLOCKED_AFTER);
        status.set_running(10);
        status.set_next(20);
        status.record_batch();
        assert_eq!(phase(&registry), blocked("partition task panicked"), "not aligned again yet");
        status.record_response();
        status.record_idle();
        assert_eq!((phase(&registry), readiness.unready()), (Phase::Running, None));
    }

    #[test]
    fn task_that_restarts_without_progress_is_blocked() {
        let (readiness, registry, status) = running();
        for _ in 0..3 {
            status.begin(Operation::Batch);
            status.record_restart("another writer moved the store to 12", 12);
            age(&registry, BLOCKED_AFTER / 2);
            status.set_waiting("restarting at the store's position");
            status.set_running(12);
            status.record_response();
        }
        assert_eq!(phase(&registry), blocked("another writer moved the store to 12"));
        assert!(readiness.unready().is_some());
        status.record_idle();
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
