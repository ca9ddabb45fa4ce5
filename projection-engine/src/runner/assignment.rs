//! The partitions assigned to this instance, each with its task. A task starts at the store's position.
//!
//! All methods run on the poller's thread, which may block.

mod store;

use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc::Sender},
    time::{Duration, Instant},
};

use futures::{FutureExt, future::join_all};
use metrics::{counter, gauge};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{sleep, timeout},
};
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
    metrics::{BLOCKED, REWINDS},
    store::{Position, SharedStore},
};

/// Delay before a deferred start is retried.
const START_RETRY: Duration = Duration::from_millis(500);
/// Time after which tasks that do not end are aborted. The store rejects a late write.
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
        let (partitions, offset_committer) = (Mutex::default(), OnceLock::new());
        Self {
            name,
            store,
            dead_letters,
            readiness,
            statuses,
            requests,
            runtime,
            partitions,
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
                // Fails when the partition was just revoked; its next owner commits its position.
                _ = consumer.store_offset(&topics.name(partition.stream), partition.number, next - 1);
            }
        };
        _ = self.offset_committer.set(Arc::new(offset_committer));
    }

    /// Adds partitions, whose tasks are due at once.
    pub(super) fn assign(&self, partitions: &[Partition]) {
        let now = Instant::now();
        self.partitions().extend(partitions.iter().map(|partition| (*partition, State::new(now))));
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
            self.readiness.ready(&self.part(*partition));
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
        self.readiness.ready(&self.part(partition));
    }

    /// Defers a start, for a reason that operators read.
    pub(super) fn defer_start(&self, partition: Partition, why: &str) {
        self.readiness.not_ready(&self.part(partition), why);
        self.status_of(partition).set_waiting(why);
        self.status_of(partition).record_error(why);
        if let Some(state) = self.partitions().get_mut(&partition) {
            state.wait_until(Instant::now() + START_RETRY);
        }
    }

    /// Stops a partition's task, if there is one, so that it starts again at the store's position. Returns whether there was
    /// one.
    pub(super) fn restart(&self, partition: Partition) -> bool {
        let stopped =
            self.partitions().get_mut(&partition).and_then(|state| state.wait_until(Instant::now()));
        let Some(active) = stopped else {
            return false;
        };
        counter!(REWINDS, "projection" => self.name).increment(1);
        self.status_of(partition).set_waiting("restarting at the store's position");
        self.stop(vec![active]);
        true
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
        }
        self.statuses.set_run_state(self.name, &desired.run_state);
    }

    /// Sets whether the projection stopped itself, and why. A pause by an operator is no fault.
    pub(super) fn set_stopped(&self, why: Option<&str>) {
        let part = format!("{}/stopped", self.name);
        let blocked = if why.is_some() { self.partitions().len() } else { 0 };
        gauge!(BLOCKED, "projection" => self.name)
            .set(u32::try_from(blocked).map_or(f64::INFINITY, f64::from));
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

    /// The name of a partition's part of the readiness.
    fn part(&self, partition: Partition) -> String {
        format!("{}/{}", self.name, partition.id())
    }

    fn stop(&self, running: Vec<Active>) {
        let mut tasks = Vec::new();
        for active in running {
            active.stop.cancel();
            tasks.push(active.task);
        }
        self.runtime.block_on(async {
            if timeout(STOP_TIMEOUT, join_all(&mut tasks)).await.is_err() {
                warn!(projection = self.name, "partition tasks did not stop in time, aborting");
                tasks.iter().for_each(JoinHandle::abort);
            }
        });
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
        let task = self.runtime.spawn(async move {
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_err() {
                error!(projection = name, partition = partition.id(), "partition task panicked");
                status.record_error("partition task panicked");
                sleep(PANIC_PAUSE).await;
                _ = requests.send(Request::Restart(partition));
            }
        });
        Active { queue, held: VecDeque::new(), next: from, confirmed, stop, task }
    }
}

fn lock(confirmed: &Confirmed) -> MutexGuard<'_, Position> {
    confirmed.lock().unwrap_or_else(PoisonError::into_inner)
}
