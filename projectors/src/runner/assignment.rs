//! The partitions that this instance has, each with its task: started where the store stands, stopped when they go.
//!
//! All of it is called on the poller's thread, which may block.

use std::{
    collections::{BTreeMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    time::Duration,
};

use futures::FutureExt;
use metrics::counter;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
};
use tokio::{
    runtime::Handle,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use vidlog_events::Topics;
use vidlog_service_kit::ops::Readiness;

use super::partition::{Confirmed, Delivery, Request, Worker};
use crate::{
    metrics::REWINDS,
    sink::{Partition, Position, Sink, SinkError},
};

/// Records that wait for a partition's task. More would only be memory: the broker keeps them as well.
const QUEUE: usize = 2000;
/// How long the store may take to say where it stands, with attempts in between. Longer, and the group would take
/// the thread for dead.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// Between those attempts.
const START_RETRY: Duration = Duration::from_millis(200);
/// How long a task may take to end. Then it is cut off: its store refuses what comes too late.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker may take to say where a partition ends.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
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
    sink: Sink,
    readiness: Readiness,
    requests: Sender<Request>,
    runtime: Handle,
    active: Mutex<BTreeMap<Partition, Active>>,
    failed_start: AtomicBool,
    hint: OnceLock<Arc<dyn Fn(Partition, i64) + Send + Sync>>,
}

/// A partition with its task.
struct Active {
    queue: mpsc::Sender<Delivery>,
    held: VecDeque<Delivery>,
    confirmed: Confirmed,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Assignment {
    pub(super) fn new(
        name: &'static str,
        sink: Sink,
        readiness: Readiness,
        requests: Sender<Request>,
        runtime: Handle,
    ) -> Self {
        Self {
            name,
            sink,
            readiness,
            requests,
            runtime,
            active: Mutex::default(),
            failed_start: AtomicBool::new(false),
            hint: OnceLock::new(),
        }
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

    /// Starts the tasks of partitions; returns them with the offsets to read from.
    pub(super) fn start<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        topics: &Topics,
        partitions: &[Partition],
    ) -> TopicPartitionList {
        let mut assigned = TopicPartitionList::new();
        let Some(positions) = self.stored_positions(partitions) else {
            self.fail_start();
            return assigned;
        };
        for (partition, position) in partitions.iter().zip(positions) {
            let (topic, next) = (topics.name(partition.stream), position.lowest());
            if self.is_beyond_the_log(consumer, &topic, *partition, next) {
                continue;
            }
            if let Err(error) = assigned.add_partition_offset(&topic, partition.number, Offset::Offset(next))
            {
                error!(projection = self.name, %error, next, "the store's position is not an offset");
                continue;
            }
            self.spawn(*partition, position);
        }
        info!(projection = self.name, partitions = assigned.count(), "partitions assigned");
        self.readiness.ready(self.name);
        assigned
    }

    /// Stops the tasks of partitions, and waits for them.
    pub(super) fn stop(&self, partitions: &[Partition]) {
        let stopped: Vec<_> =
            partitions.iter().filter_map(|partition| self.active().remove(partition)).collect();
        for active in &stopped {
            active.stop.cancel();
        }
        self.runtime.block_on(async {
            for mut active in stopped {
                if timeout(STOP_TIMEOUT, &mut active.task).await.is_err() {
                    warn!(projection = self.name, "a partition's task did not stop in time; cutting it off");
                    active.task.abort();
                }
            }
        });
    }

    /// Stops every task.
    pub(super) fn stop_all(&self) {
        let all: Vec<_> = self.active().keys().copied().collect();
        self.stop(&all);
    }

    /// Starts a partition's task anew; returns the offset to read from, if the partition is still here.
    pub(super) fn restart(&self, partition: Partition) -> Option<i64> {
        if !self.active().contains_key(&partition) {
            return None;
        }
        counter!(REWINDS, "projection" => self.name).increment(1);
        self.stop(&[partition]);
        let Some(position) =
            self.stored_positions(&[partition]).and_then(|positions| positions.into_iter().next())
        else {
            self.fail_start();
            return None;
        };
        let next = position.lowest();
        self.spawn(partition, position);
        Some(next)
    }

    /// Hands a record to its task.
    pub(super) fn route(&self, partition: Partition, delivery: Delivery) -> Routed {
        let mut active = self.active();
        let Some(active) = active.get_mut(&partition) else {
            return Routed::Done;
        };
        if !active.held.is_empty() {
            active.held.push_back(delivery);
            return Routed::Held;
        }
        match active.queue.try_send(delivery) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Routed::Done,
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                active.held.push_back(delivery);
                Routed::Held
            }
        }
    }

    /// Hands over what was held; true if nothing is held any more.
    pub(super) fn flush_held(&self, partition: Partition) -> bool {
        let mut active = self.active();
        let Some(active) = active.get_mut(&partition) else {
            return true;
        };
        while let Some(delivery) = active.held.pop_front() {
            if let Err(mpsc::error::TrySendError::Full(delivery)) = active.queue.try_send(delivery) {
                active.held.push_front(delivery);
                return false;
            }
        }
        true
    }

    /// Asks the store whether it still has what was written to it: a Redis that failed over, was flushed or restored
    /// has not. Partitions that it lost writes of are started again.
    pub(super) fn verify(&self) {
        let confirmed: Vec<(Partition, Position)> = self
            .active()
            .iter()
            .map(|(partition, active)| {
                (*partition, active.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone())
            })
            .collect();
        let partitions: Vec<_> = confirmed.iter().map(|(partition, _)| *partition).collect();
        // A store that is away is the tasks' business.
        let Ok(stored) = self.runtime.block_on(self.sink.positions(&partitions)) else {
            return;
        };
        for ((partition, confirmed), stored) in confirmed.into_iter().zip(stored) {
            if stored.is_behind(&confirmed) {
                warn!(
                    projection = self.name,
                    partition = partition.field(),
                    stored = stored.lowest(),
                    "the store lost writes; reading them again from its position"
                );
                _ = self.requests.send(Request::Restart(partition));
            }
        }
    }

    /// Notes that partitions could not be started.
    pub(super) fn fail_start(&self) {
        self.readiness.not_ready(self.name, "the store does not say where the view stands");
        self.failed_start.store(true, Ordering::SeqCst);
    }

    /// Whether partitions could not be started since this was last asked.
    pub(super) fn take_failed_start(&self) -> bool {
        self.failed_start.swap(false, Ordering::SeqCst)
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<Partition, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored_positions(&self, partitions: &[Partition]) -> Option<Vec<Position>> {
        let ask = async {
            loop {
                match self.sink.positions(partitions).await {
                    Ok(positions) => return positions,
                    Err(SinkError::Retry(error)) => {
                        warn!(projection = self.name, error, "waiting for the store");
                    }
                    Err(error @ SinkError::Behind { .. }) => {
                        warn!(projection = self.name, %error, "asking again");
                    }
                }
                sleep(START_RETRY).await;
            }
        };
        self.runtime.block_on(async { timeout(START_TIMEOUT, ask).await.ok() })
    }

    /// A view that is further than the log was folded from another log: going on would lose what comes next.
    fn is_beyond_the_log<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        topic: &str,
        partition: Partition,
        next: i64,
    ) -> bool {
        // A broker that does not answer now is asked by the consumer itself later.
        let Ok((_, end)) = consumer.fetch_watermarks(topic, partition.number, BROKER_TIMEOUT) else {
            return false;
        };
        if next <= end {
            return false;
        }
        error!(
            projection = self.name,
            topic,
            partition = partition.number,
            position = next,
            log_end = end,
            "the view is further than the log: is this another cluster, or was the log cut? The partition stays \
             untouched until the log or the view is restored"
        );
        let why = format!("{topic}[{}] ends at {end}, but the view stands at {next}", partition.number);
        self.readiness.not_ready(&format!("{}/{}", self.name, partition.field()), why);
        true
    }

    fn spawn(&self, partition: Partition, position: Position) {
        let (queue, records) = mpsc::channel(QUEUE);
        let confirmed = Arc::new(Mutex::new(position.clone()));
        let stop = CancellationToken::new();
        let hint = self.hint.get().cloned();
        let worker = Worker {
            name: self.name,
            partition,
            sink: self.sink.clone(),
            position,
            confirmed: confirmed.clone(),
            records,
            requests: self.requests.clone(),
            readiness: self.readiness.clone(),
            stop: stop.clone(),
            hint: Box::new(move |next| {
                if let Some(hint) = &hint {
                    hint(partition, next);
                }
            }),
        };
        let (name, requests) = (self.name, self.requests.clone());
        let task = self.runtime.spawn(async move {
            if AssertUnwindSafe(worker.run()).catch_unwind().await.is_err() {
                error!(projection = name, partition = partition.field(), "the partition's task panicked");
                sleep(PANIC_PAUSE).await;
                _ = requests.send(Request::Restart(partition));
            }
        });
        self.active().insert(partition, Active { queue, held: VecDeque::new(), confirmed, stop, task });
    }
}
