//! The partitions assigned to this instance, each with its task. A task starts at the store's position.
//!
//! All methods run on the poller's thread, which may block.

mod store;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use metrics::counter;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};
use tokio::{runtime::Handle, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use vidlog_events::Topics;
use vidlog_service_kit::ops::Readiness;

use super::{
    partition::{Confirmed, Request, Worker},
    queue::{self, Queued, queue},
    settings::Settings,
    status::{PartitionStatusRegistry, StatusHandle},
};
use crate::{
    dead_letters::DeadLetterQueue,
    desired_state::DesiredState,
    log::Partition,
    metrics::REWINDS,
    store::{Position, SharedStore},
};

/// Delay before a deferred start is retried.
const START_RETRY: Duration = Duration::from_millis(500);
/// Time for all tasks that are stopped together, after which they are aborted: shorter than the longest time between two
/// polls. The store rejects a late write.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The delay before a task that panicked starts again.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// The result of routing a record.
pub(super) enum Routed {
    /// The task has the record. Without a task, the record is read again when the task starts.
    Done,
    /// The task's queue is full: pause the partition.
    Held,
}

/// The assignment of one projection.
pub(super) struct Assignment {
    name: &'static str,
    store: SharedStore,
    dead_letters: DeadLetterQueue,
    readiness: Readiness,
    statuses: Arc<PartitionStatusRegistry>,
    requests: Sender<Request>,
    runtime: Handle,
    partitions: Mutex<BTreeMap<Partition, State>>,
    /// Assigned partitions whose position the consumer group does not have yet.
    uncommitted: Mutex<BTreeSet<Partition>>,
    offset_committer: OnceLock<Arc<dyn Fn(Partition, i64) + Send + Sync>>,
}

/// The state of an assigned partition.
enum State {
    /// It has no task, and is paused.
    Waiting(Waiting),
    /// It has a task.
    Running(Active),
}

/// A partition without a task.
struct Waiting {
    /// When its task is due to start.
    due: Instant,
    /// The last written position of its last task.
    confirmed: Option<Confirmed>,
}

/// A partition's task.
struct Active {
    queue: queue::Sender,
    /// Records that did not fit into the queue. The partition is paused while there are any.
    held: VecDeque<Queued>,
    /// The offset after the last record passed to the task.
    next: i64,
    confirmed: Confirmed,
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Disconnected once the task has ended, or the runtime has dropped it.
    ended: Receiver<()>,
}

impl State {
    const fn new(due: Instant) -> Self {
        Self::Waiting(Waiting { due, confirmed: None })
    }

    /// Makes the partition wait. Returns its task, which the caller stops.
    fn wait_until(&mut self, due: Instant) -> Option<Active> {
        let confirmed = self.confirmed().cloned();
        match std::mem::replace(self, Self::Waiting(Waiting { due, confirmed })) {
            Self::Waiting(_) => None,
            Self::Running(active) => Some(active),
        }
    }

    /// The last written position.
    const fn confirmed(&self) -> Option<&Confirmed> {
        match self {
            Self::Waiting(waiting) => waiting.confirmed.as_ref(),
            Self::Running(active) => Some(&active.confirmed),
        }
    }

    /// Replaces the written position after a loss was handled.
    fn set_confirmed(&mut self, stored: &Position) {
        match self {
            Self::Waiting(waiting) => waiting.confirmed = Some(Arc::new(Mutex::new(stored.clone()))),
            Self::Running(active) => lock(&active.confirmed).clone_from(stored),
        }
    }

    /// Clears the written position, which belongs to another generation.
    fn forget_confirmed(&mut self) {
        if let Self::Waiting(waiting) = self {
            waiting.confirmed = None;
        }
    }
}

impl Assignment {
    /// An empty assignment, whose tasks run on a runtime.
    pub(super) fn new(
        store: SharedStore,
        settings: &Settings,
        readiness: Readiness,
        requests: Sender<Request>,
        runtime: Handle,
    ) -> Self {
        let (name, statuses, dead_letters) =
            (store.projection().name(), settings.statuses.clone(), settings.dead_letters.clone());
        let (partitions, uncommitted, offset_committer) =
            (Mutex::default(), Mutex::default(), OnceLock::new());
        Self {
            name,
            store,
            dead_letters,
            readiness,
            statuses,
            requests,
            runtime,
            partitions,
            uncommitted,
            offset_committer,
        }
    }

    /// Commits applied positions to the consumer group, for lag tools only.
    pub(super) fn set_offset_committer<C: ConsumerContext + 'static>(
        &self,
        consumer: &Arc<BaseConsumer<C>>,
        topics: &Topics,
    ) {
        let (consumer, topics) = (Arc::downgrade(consumer), topics.clone());
        let offset_committer = move |partition: Partition, next: i64| {
            if let Some(consumer) = consumer.upgrade() {
                let mut list = TopicPartitionList::new();
                let topic = topics.name(partition.stream);
                // Fails when the partition was just revoked; its next owner commits its position.
                _ = list
                    .add_partition_offset(&topic, partition.number, Offset::Offset(next))
                    .and_then(|()| consumer.store_offsets(&list));
            }
        };
        _ = self.offset_committer.set(Arc::new(offset_committer));
    }

    /// Adds partitions, whose tasks are due at once.
    pub(super) fn assign(&self, partitions: &[Partition]) {
        let now = Instant::now();
        self.partitions().extend(partitions.iter().map(|partition| (*partition, State::new(now))));
        self.uncommitted().extend(partitions);
        for partition in partitions {
            self.status_of(*partition).set_waiting("about to start");
        }
        info!(projection = self.name, partitions = partitions.len(), "partitions assigned");
        self.readiness.ready(self.name);
    }

    /// Removes partitions: stops their tasks, and waits for them.
    pub(super) fn revoke(&self, partitions: &[Partition]) {
        let now = Instant::now();
        let revoked: Vec<_> =
            partitions.iter().filter_map(|partition| self.partitions().remove(partition)).collect();
        self.stop(revoked.into_iter().filter_map(|mut state| state.wait_until(now)).collect());
        for partition in partitions {
            self.uncommitted().remove(partition);
            self.status_of(*partition).remove();
        }
    }

    /// Removes all partitions.
    pub(super) fn revoke_all(&self) {
        let all: Vec<_> = self.partitions().keys().copied().collect();
        self.revoke(&all);
    }

    /// The partitions whose tasks are due, those that have waited longest first.
    pub(super) fn due(&self) -> Vec<Partition> {
        let now = Instant::now();
        let due = |(partition, state): (&Partition, &State)| match state {
            State::Waiting(waiting) if waiting.due <= now => Some((waiting.due, *partition)),
            State::Waiting(_) | State::Running(_) => None,
        };
        let mut due: Vec<_> = self.partitions().iter().filter_map(due).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, partition)| partition).collect()
    }

    /// Starts a partition's task, to which the caller routes the records from an offset on.
    pub(super) fn start(&self, partition: Partition, position: Position, from: i64) {
        self.status_of(partition).set_running(from);
        let active = self.spawn(partition, position, from);
        self.partitions().insert(partition, State::Running(active));
        self.commit_start(partition, from);
    }

    /// Reports that the group and the client disagree about the partitions, until the next assignment.
    pub(super) fn report_failed_rebalance(&self, error: &KafkaError) {
        self.readiness.not_ready(self.name, format!("failed to apply a rebalance: {error}"));
    }

    /// The partitions whose position the consumer group does not have yet.
    pub(super) fn uncommitted_partitions(&self) -> Vec<Partition> {
        self.uncommitted().iter().copied().collect()
    }

    /// Commits the position of a partition that was assigned, so that lag tools see one before its first batch.
    pub(super) fn commit_start(&self, partition: Partition, next: i64) {
        if self.uncommitted().remove(&partition)
            && let Some(offset_committer) = self.offset_committer.get()
        {
            offset_committer(partition, next);
        }
    }

    /// Defers a start, for a reason that operators read.
    pub(super) fn defer_start(&self, partition: Partition, why: &str) {
        self.status_of(partition).defer_start(why);
        if let Some(state) = self.partitions().get_mut(&partition) {
            state.wait_until(Instant::now() + START_RETRY);
        }
    }

    /// Stops the tasks of some partitions, so that they start again at the store's position. Returns those that had one.
    pub(super) fn restart(&self, partitions: &[Partition]) -> Vec<Partition> {
        let now = Instant::now();
        let mut stopped = Vec::new();
        let mut active = Vec::new();
        for partition in partitions {
            if let Some(task) = self.partitions().get_mut(partition).and_then(|state| state.wait_until(now)) {
                stopped.push(*partition);
                active.push(task);
            }
        }
        for partition in &stopped {
            counter!(REWINDS, "projection" => self.name).increment(1);
            self.status_of(*partition).set_waiting("restarting at the store's position");
        }
        self.stop(active);
        stopped
    }

    /// Stops all tasks, and switches to the desired generation. They start again when they are due, if the projection runs.
    pub(super) fn stop_all(&self, desired: &DesiredState) {
        let now = Instant::now();
        let partitions: Vec<_> = self.partitions().keys().copied().collect();
        let active = self.partitions().values_mut().filter_map(|state| state.wait_until(now)).collect();
        self.stop(active);
        if self.store.generation() != desired.generation {
            self.partitions().values_mut().for_each(State::forget_confirmed);
            self.store.set_generation(desired.generation);
        }
        for partition in partitions {
            self.status_of(partition).set_waiting("about to start");
            self.status_of(partition).clear_failure();
        }
        self.statuses.set_run_state(self.name, &desired.run_state);
    }

    /// Sets whether the projection stopped itself, and why. A pause by an operator is no fault.
    pub(super) fn set_stopped(&self, why: Option<&str>) {
        let part = format!("{}/stopped", self.name);
        match why {
            Some(why) => self.readiness.not_ready(&part, why),
            None => self.readiness.ready(&part),
        }
    }

    /// The partitions with a task.
    pub(super) fn running(&self) -> Vec<Partition> {
        let running = |state: &State| matches!(state, State::Running(_));
        self.partitions()
            .iter()
            .filter(|(_, state)| running(state))
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// Passes a record to its task.
    pub(super) fn route(&self, partition: Partition, record: Queued) -> Routed {
        let mut partitions = self.partitions();
        let Some(State::Running(active)) = partitions.get_mut(&partition) else {
            return Routed::Done;
        };
        active.next = record.next;
        if !active.held.is_empty() {
            active.held.push_back(record);
            return Routed::Held;
        }
        match active.queue.offer(record) {
            None => Routed::Done,
            Some(record) => {
                active.held.push_back(record);
                Routed::Held
            }
        }
    }

    /// Moves a partition's task to an offset. The task already has all records before it.
    pub(super) fn pass_to(&self, partition: Partition, next: i64) -> Routed {
        let is_beyond = |state: &State| matches!(state, State::Running(active) if active.next < next);
        if self.partitions().get(&partition).is_some_and(is_beyond) {
            self.route(partition, Queued::gap(next))
        } else {
            Routed::Done
        }
    }

    /// Passes held records to the task. Returns true if there were some and all fit: resume the partition.
    pub(super) fn flush_held(&self, partition: Partition) -> bool {
        let mut partitions = self.partitions();
        let Some(State::Running(active)) = partitions.get_mut(&partition) else {
            return false;
        };
        if active.held.is_empty() {
            return false;
        }
        while let Some(record) = active.held.pop_front() {
            if let Some(record) = active.queue.offer(record) {
                active.held.push_front(record);
                return false;
            }
        }
        true
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<Partition, State>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status_of(&self, partition: Partition) -> StatusHandle {
        self.statuses.handle(self.name, partition)
    }

    fn uncommitted(&self) -> MutexGuard<'_, BTreeSet<Partition>> {
        self.uncommitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, running: Vec<Active>) {
        let aborted = stop(running);
        if aborted > 0 {
            warn!(projection = self.name, tasks = aborted, "partition tasks did not stop in time, aborted");
        }
    }

    fn spawn(&self, partition: Partition, position: Position, from: i64) -> Active {
        let (queue, records) = queue();
        let confirmed = Arc::new(Mutex::new(position.clone()));
        let stop = CancellationToken::new();
        let (offset_committer, status) = (self.offset_committer.get().cloned(), self.status_of(partition));
        let worker = Worker {
            name: self.name,
            partition,
            store: self.store.clone(),
            dead_letters: self.dead_letters.clone(),
            position,
            from,
            confirmed: confirmed.clone(),
            records,
            requests: self.requests.clone(),
            stop: stop.clone(),
            status: status.clone(),
            offset_committer: Box::new(move |next| {
                status.set_next(next);
                if let Some(offset_committer) = &offset_committer {
                    offset_committer(partition, next);
                }
            }),
        };
        let (name, requests, status) = (self.name, self.requests.clone(), self.status_of(partition));
        let (alive, ended) = channel();
        let task = self.runtime.spawn(async move {
            let _alive = alive;
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_err() {
                error!(projection = name, partition = partition.id(), "partition task panicked");
                status.record_panic();
                sleep(PANIC_PAUSE).await;
                _ = requests.send(Request::Restart(partition));
            }
        });
        Active { queue, held: VecDeque::new(), next: from, confirmed, stop, task, ended }
    }
}

/// Stops tasks together, and waits for them. Returns the number of tasks that did not end in time, which are aborted. Does
/// not need the runtime, which may be shutting down: a panic must not unwind into the client library, which calls this in
/// a rebalance.
fn stop(running: Vec<Active>) -> usize {
    let deadline = Instant::now() + STOP_TIMEOUT;
    for active in &running {
        active.stop.cancel();
    }
    let mut aborted = 0;
    for active in running {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(RecvTimeoutError::Timeout) = active.ended.recv_timeout(left) {
            active.task.abort();
            aborted += 1;
        }
    }
    aborted
}

fn lock(confirmed: &Confirmed) -> MutexGuard<'_, Position> {
    confirmed.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::runtime::Runtime;

    use super::*;

    /// Tasks that do not react to a stop, as while a store hangs.
    fn hanging_tasks(runtime: &Runtime) -> Vec<Active> {
        let task = |_| {
            let (queue, _) = queue();
            let (alive, ended) = channel();
            let task = runtime.spawn(async move {
                let _alive = alive;
                pending::<()>().await;
            });
            let confirmed = Arc::new(Mutex::new(Position::default()));
            let stop = CancellationToken::new();
            Active { queue, held: VecDeque::new(), next: 0, confirmed, stop, task, ended }
        };
        (0..12).map(task).collect()
    }

    #[test]
    fn hanging_tasks_share_one_stop_timeout() {
        let runtime = Runtime::new().unwrap();
        let started = Instant::now();
        assert_eq!(stop(hanging_tasks(&runtime)), 12);
        assert!(started.elapsed() < 3 * STOP_TIMEOUT, "{:?}", started.elapsed());
    }

    #[test]
    fn tasks_of_a_runtime_that_shut_down_have_stopped() {
        let runtime = Runtime::new().unwrap();
        let tasks = hanging_tasks(&runtime);
        runtime.shutdown_background();
        assert_eq!(stop(tasks), 0);
    }
}
