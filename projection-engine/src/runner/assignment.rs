//! The partitions that this instance has, each with its task: started where the store stands, stopped when they go.
//!
//! All of it is called on the poller's thread, which may block.

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
    status::{Board, Place},
};
use crate::{
    dead_letters::Post,
    desired_state::Wanted,
    log::Partition,
    metrics::{BLOCKED, REWINDS},
    store::{Position, SharedStore},
};

/// Between two attempts to start a partition.
const START_RETRY: Duration = Duration::from_millis(500);
/// How long tasks may take to end. Then they are cut off: their store refuses what comes too late.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// A task that panicked is started again after this.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// What became of a record.
pub(super) enum Routed {
    /// The task has it, or the partition has no task and the record is read again when it has.
    Done,
    /// The task's queue is full: pause the partition.
    Held,
}

/// The assignment of one projection.
pub(super) struct Assignment {
    name: &'static str,
    sink: SharedStore,
    post: Post,
    readiness: Readiness,
    board: Arc<Board>,
    requests: Sender<Request>,
    runtime: Handle,
    partitions: Mutex<BTreeMap<Partition, State>>,
    hint: OnceLock<Arc<dyn Fn(Partition, i64) + Send + Sync>>,
}

/// How it is with an assigned partition.
enum State {
    /// It has no task. It is paused.
    Waiting(Waiting),
    /// It has a task.
    Running(Active),
}

/// A partition without a task.
struct Waiting {
    /// When its task is to be started.
    due: Instant,
    /// What its last task has written, if it had one.
    confirmed: Option<Confirmed>,
}

/// A partition's task.
struct Active {
    queue: queue::Sender,
    /// What did not fit into the queue. While there is any the partition is paused.
    held: VecDeque<Queued>,
    /// The offset after the last record that was handed over.
    next: i64,
    confirmed: Confirmed,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl State {
    const fn new(due: Instant) -> Self {
        Self::Waiting(Waiting { due, confirmed: None })
    }

    /// Has the partition wait; returns the task that it had, which is to be stopped.
    fn wait_until(&mut self, due: Instant) -> Option<Active> {
        let confirmed = self.confirmed().cloned();
        match std::mem::replace(self, Self::Waiting(Waiting { due, confirmed })) {
            Self::Waiting(_) => None,
            Self::Running(active) => Some(active),
        }
    }

    /// What is known to have been written.
    const fn confirmed(&self) -> Option<&Confirmed> {
        match self {
            Self::Waiting(waiting) => waiting.confirmed.as_ref(),
            Self::Running(active) => Some(&active.confirmed),
        }
    }

    /// What was written is not there any more, as was noticed.
    fn set_confirmed(&mut self, stored: &Position) {
        match self {
            Self::Waiting(waiting) => waiting.confirmed = Some(Arc::new(Mutex::new(stored.clone()))),
            Self::Running(active) => lock(&active.confirmed).clone_from(stored),
        }
    }

    /// What was written was of another view.
    fn forget_confirmed(&mut self) {
        if let Self::Waiting(waiting) = self {
            waiting.confirmed = None;
        }
    }
}

impl Assignment {
    /// The assignment of a runner's projection, of which nothing is there yet; its tasks run on a runtime.
    pub(super) fn new(
        sink: SharedStore,
        settings: &Settings,
        readiness: Readiness,
        requests: Sender<Request>,
        runtime: Handle,
    ) -> Self {
        let (name, board, post) = (sink.projection().name(), settings.board.clone(), settings.post.clone());
        let (partitions, hint) = (Mutex::default(), OnceLock::new());
        Self { name, sink, post, readiness, board, requests, runtime, partitions, hint }
    }

    /// Stores applied positions with the consumer, which commits them: a hint for lag tools.
    pub(super) fn set_hints<C: ConsumerContext + 'static>(
        &self,
        consumer: &Arc<BaseConsumer<C>>,
        topics: &Topics,
    ) {
        let (consumer, topics) = (Arc::downgrade(consumer), topics.clone());
        let hint = move |partition: Partition, next: i64| {
            if let Some(consumer) = consumer.upgrade() {
                // Fails when the partition has just gone; its next owner will say where it is.
                _ = consumer.store_offset(&topics.name(partition.stream), partition.number, next - 1);
            }
        };
        _ = self.hint.set(Arc::new(hint));
    }

    /// Takes partitions; their tasks are to be started.
    pub(super) fn take(&self, partitions: &[Partition]) {
        let now = Instant::now();
        self.partitions().extend(partitions.iter().map(|partition| (*partition, State::new(now))));
        for partition in partitions {
            self.place(*partition).wait("about to start");
        }
        info!(projection = self.name, partitions = partitions.len(), "partitions assigned");
        self.readiness.ready(self.name);
    }

    /// Gives partitions up: stops their tasks, and waits for them.
    pub(super) fn give_up(&self, partitions: &[Partition]) {
        let now = Instant::now();
        let given: Vec<_> =
            partitions.iter().filter_map(|partition| self.partitions().remove(partition)).collect();
        self.stop(given.into_iter().filter_map(|mut state| state.wait_until(now)).collect());
        for partition in partitions {
            self.readiness.ready(&self.part(*partition));
            self.place(*partition).leave();
        }
    }

    /// Gives up all.
    pub(super) fn give_up_all(&self) {
        let all: Vec<_> = self.partitions().keys().copied().collect();
        self.give_up(&all);
    }

    /// The partitions whose tasks are to be started now, first those that have waited longest.
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

    /// Starts a partition's task, of which the records from an offset on will come.
    pub(super) fn start(&self, partition: Partition, position: Position, from: i64) {
        self.place(partition).run(from);
        let active = self.spawn(partition, position, from);
        self.partitions().insert(partition, State::Running(active));
        self.readiness.ready(&self.part(partition));
    }

    /// Puts off a start, and says why, in words for an operator.
    pub(super) fn put_off(&self, partition: Partition, why: &str) {
        self.readiness.not_ready(&self.part(partition), why);
        self.place(partition).wait(why);
        self.place(partition).fail(why);
        if let Some(state) = self.partitions().get_mut(&partition) {
            state.wait_until(Instant::now() + START_RETRY);
        }
    }

    /// Stops a partition's task, if the partition is still here, so that it is started again where the store stands.
    /// True if it had one.
    pub(super) fn restart(&self, partition: Partition) -> bool {
        let stopped =
            self.partitions().get_mut(&partition).and_then(|state| state.wait_until(Instant::now()));
        let Some(active) = stopped else {
            return false;
        };
        counter!(REWINDS, "projection" => self.name).increment(1);
        self.place(partition).wait("starting again where the store stands");
        self.stop(vec![active]);
        true
    }

    /// Stops all tasks, and lets what they fold be another generation from now on. They are started again when they
    /// are due and it is wished.
    pub(super) fn rest(&self, wanted: &Wanted) {
        let now = Instant::now();
        let partitions: Vec<_> = self.partitions().keys().copied().collect();
        let active = self.partitions().values_mut().filter_map(|state| state.wait_until(now)).collect();
        self.stop(active);
        if self.sink.generation() != wanted.generation {
            self.partitions().values_mut().for_each(State::forget_confirmed);
            self.sink.set_generation(wanted.generation);
        }
        for partition in partitions {
            self.place(partition).wait("about to start");
        }
        self.board.follow(self.name, &wanted.wish);
    }

    /// Says whether the projection waits for an operator, and why. That an operator paused it is no fault.
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

    /// The partitions that have a task.
    pub(super) fn running(&self) -> Vec<Partition> {
        let running = |state: &State| matches!(state, State::Running(_));
        self.partitions()
            .iter()
            .filter(|(_, state)| running(state))
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// Hands a record to its task.
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

    /// Has a partition's task pass to an offset, before which there are no more records than those that it was handed.
    pub(super) fn pass_to(&self, partition: Partition, next: i64) -> Routed {
        let is_beyond = |state: &State| matches!(state, State::Running(active) if active.next < next);
        if self.partitions().get(&partition).is_some_and(is_beyond) {
            self.route(partition, Queued::gap(next))
        } else {
            Routed::Done
        }
    }

    /// Hands over what was held; true if there was something, and all of it went: resume the partition.
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

    fn place(&self, partition: Partition) -> Place {
        self.board.place(self.name, partition)
    }

    /// A partition's name as a part of the readiness.
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
                warn!(projection = self.name, "tasks of partitions did not stop in time; cutting them off");
                tasks.iter().for_each(JoinHandle::abort);
            }
        });
    }

    fn spawn(&self, partition: Partition, position: Position, from: i64) -> Active {
        let (queue, records) = queue();
        let confirmed = Arc::new(Mutex::new(position.clone()));
        let stop = CancellationToken::new();
        let (hint, place) = (self.hint.get().cloned(), self.place(partition));
        let worker = Worker {
            name: self.name,
            partition,
            sink: self.sink.clone(),
            post: self.post.clone(),
            position,
            from,
            confirmed: confirmed.clone(),
            records,
            requests: self.requests.clone(),
            stop: stop.clone(),
            place: place.clone(),
            hint: Box::new(move |next| {
                place.folded(next);
                if let Some(hint) = &hint {
                    hint(partition, next);
                }
            }),
        };
        let (name, requests, place) = (self.name, self.requests.clone(), self.place(partition));
        let task = self.runtime.spawn(async move {
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_err() {
                error!(projection = name, partition = partition.id(), "the partition's task panicked");
                place.fail("the partition's task panicked");
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
