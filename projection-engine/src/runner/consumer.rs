//! The thread that polls Kafka for one projection and passes records to its partitions' tasks.

use std::{
    collections::BTreeMap,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};
use tokio::runtime::Handle;
use tracing::{debug, error, info, warn};
use vidlog_events::Stream;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use super::{
    assignment::{Assignment, Routed},
    client::{Context, assign, connect, release},
    partition::Request,
    queue::Queued,
    settings::Settings,
};
use crate::{
    desired_state::{DesiredState, RunState},
    log::{Delivery, Offsets, Partition},
    store::{Position, SharedStore},
    view::Projection,
};

/// The longest wait of a task's request for the thread.
const POLL: Duration = Duration::from_millis(20);
/// Interval between two checks that the store has all writes: the delay until a loss is detected when no records
/// arrive.
const VERIFY_EVERY: Duration = Duration::from_secs(2);
/// Timeout for a seek or a query of the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for querying the broker between two polls. Partitions without an answer must not delay others, nor the member,
/// which the group removes when it does not poll.
const QUERY_BUDGET: Duration = Duration::from_secs(2);
/// Interval between two checks for topics that do not exist yet.
const TOPICS_RETRY: Duration = Duration::from_secs(1);

/// A partition that is due to start.
struct Start {
    partition: Partition,
    /// The position in the store.
    position: Position,
    /// The first and the next offset of the log.
    watermarks: (i64, i64),
}

/// A partition that can start, with its start offset; or why it cannot.
type CheckedStart = Result<(Start, i64), String>;

/// The thread's state.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    projection: Projection,
    settings: Arc<Settings>,
    requests: mpsc::Receiver<Request>,
    shutdown: Shutdown,
    /// The desired state that is applied.
    applied: DesiredState,
}

impl Poller {
    /// A poller of a view, whose tasks run on a runtime.
    pub(super) fn new(
        store: SharedStore,
        settings: Arc<Settings>,
        readiness: Readiness,
        shutdown: Shutdown,
        runtime: Handle,
    ) -> anyhow::Result<Self> {
        let projection = *store.projection();
        let (requested, requests) = mpsc::channel();
        let assignment = Assignment::new(store, &settings, readiness, requested, runtime);
        let consumer = connect(&settings, projection.name(), assignment)?;
        let consumer = Arc::new(consumer);
        consumer.context().assignment().set_offset_committer(&consumer, &settings.log.topics);
        let applied = DesiredState::default();
        Ok(Self { consumer, projection, settings, requests, shutdown, applied })
    }

    /// Polls until shutdown and the end of the partitions' tasks.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let name = self.projection.name();
        if !self.wait_for_topics() {
            return Ok(());
        }
        self.subscribe()?;
        let (mut start_at, mut verify_at) = (Instant::now(), Instant::now() + VERIFY_EVERY);
        while !self.shutdown.is_requested() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => self.route(&message),
                Some(Err(KafkaError::PartitionEOF(number))) => self.pass_to_position(number),
                Some(Err(error)) => self.handle_consumer_error(&error)?,
                None => {}
            }
            self.serve_requests();
            self.reconcile();
            let pass_started = Instant::now();
            if pass_started >= start_at {
                self.start_due();
                // At least half of the time is left for the running partitions.
                start_at = Instant::now() + pass_started.elapsed();
            }
            if Instant::now() >= verify_at {
                self.restart(&self.assignment().lost());
                self.commit_starts();
                verify_at = Instant::now() + VERIFY_EVERY;
            }
        }
        self.assignment().revoke_all();
        info!(projection = name, "projection stopped");
        Ok(())
    }

    fn assignment(&self) -> &Assignment {
        self.consumer.context().assignment()
    }

    fn subscribe(&self) -> anyhow::Result<()> {
        let topics: Vec<_> =
            self.projection.streams().map(|stream| self.settings.log.topics.name(stream)).collect();
        let topics: Vec<_> = topics.iter().map(String::as_str).collect();
        self.consumer
            .subscribe(&topics)
            .with_context(|| format!("projection {} failed to subscribe", self.projection.name()))
    }

    /// Waits until the projection's topics exist. Returns false if shutdown comes first.
    fn wait_for_topics(&self) -> bool {
        let mut logged = false;
        for stream in self.projection.streams() {
            let topic = self.settings.log.topics.name(stream);
            while !self.shutdown.is_requested() && !self.exists(&topic) {
                if !std::mem::replace(&mut logged, true) {
                    info!(projection = self.projection.name(), topic, "waiting for the topic");
                }
                // Waits, and serves the client's events.
                _ = self.consumer.poll(TOPICS_RETRY);
            }
        }
        !self.shutdown.is_requested()
    }

    fn exists(&self, topic: &str) -> bool {
        self.consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
            metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
        })
    }

    fn serve_requests(&self) {
        let mut restarts = Vec::new();
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Resume(partition) => {
                    if self.assignment().flush_held(partition)
                        && let Err(error) = self.consumer.resume(&self.list(partition))
                    {
                        error!(projection = self.projection.name(), %error, "failed to resume a partition");
                        self.restart(&[partition]);
                    }
                }
                Request::Restart(partition) => restarts.push(partition),
            }
        }
        self.restart(&restarts);
    }

    /// Restarts the tasks of some partitions at the store's position.
    fn restart(&self, partitions: &[Partition]) {
        for partition in self.assignment().restart(partitions) {
            self.pause(partition);
        }
    }

    fn pause(&self, partition: Partition) {
        if let Err(error) = self.consumer.pause(&self.list(partition)) {
            // Then records arrive without a task, until the next seek.
            debug!(projection = self.projection.name(), %error, "failed to pause a partition");
        }
    }

    /// Applies a change of the desired state: stops all tasks, which start again if the projection runs.
    fn reconcile(&mut self) {
        let name = self.projection.name();
        let desired = self.settings.desired_states.borrow().get(name).cloned().unwrap_or_default();
        if desired == self.applied {
            return;
        }
        info!(projection = name, generation = desired.generation, run_state = ?desired.run_state, "desired state changed");
        let running: Vec<_> = self.assignment().running();
        self.assignment().stop_all(&desired);
        for partition in running {
            self.pause(partition);
        }
        match &desired.run_state {
            RunState::Stopped(why) => self.assignment().set_stopped(Some(why)),
            RunState::Run | RunState::Hold | RunState::Pause => self.assignment().set_stopped(None),
        }
        self.applied = desired;
    }

    /// Starts the tasks of due partitions at the store's position.
    fn start_due(&self) {
        if self.applied.run_state != RunState::Run {
            return;
        }
        let due = self.assignment().due();
        if due.is_empty() {
            return;
        }
        let positions = match self.assignment().starts(&due) {
            Ok(positions) => positions,
            Err(why) => {
                return due.into_iter().for_each(|partition| self.assignment().defer_start(partition, &why));
            }
        };
        let mut ready = Vec::new();
        for (partition, start) in self.check_starts(due.into_iter().zip(positions)) {
            match start {
                Ok(start) => ready.push(start),
                Err(why) => self.defer_start(partition, &why),
            }
        }
        let failed = self.seek(&ready);
        for (start, from) in ready {
            if let Some(why) = failed.get(&start.partition) {
                self.assign_again(start.partition);
                self.defer_start(start.partition, why);
                continue;
            }
            self.assignment().start(start.partition, start.position, from);
            if let Err(error) = self.consumer.resume(&self.list(start.partition)) {
                error!(projection = self.projection.name(), %error, "failed to resume a partition");
                self.restart(&[start.partition]);
            }
        }
    }

    fn defer_start(&self, partition: Partition, why: &str) {
        warn!(
            projection = self.projection.name(),
            partition = partition.id(),
            why,
            "partition start deferred"
        );
        self.assignment().defer_start(partition, why);
    }

    /// Commits the starting positions of a projection that does not run, which has no tasks that commit them. Leaves out
    /// partitions that could not start there.
    fn commit_starts(&self) {
        let uncommitted = self.assignment().uncommitted_partitions();
        if self.applied.run_state == RunState::Run || uncommitted.is_empty() {
            return;
        }
        let Ok(positions) = self.assignment().starts(&uncommitted) else {
            return;
        };
        for (partition, start) in self.check_starts(uncommitted.into_iter().zip(positions)) {
            match start {
                Ok((_, from)) => self.assignment().commit_start(partition, from),
                Err(why) => {
                    let partition = partition.id();
                    debug!(projection = self.projection.name(), partition, why, "no position to commit");
                }
            }
        }
    }

    /// Returns the offsets at which partitions start, or why one cannot. Leaves out partitions beyond the time budget.
    fn check_starts(
        &self,
        partitions: impl Iterator<Item = (Partition, Position)>,
    ) -> Vec<(Partition, CheckedStart)> {
        let mut checked = Vec::new();
        let mut starts = Vec::new();
        for (partition, start) in self.fetch_watermarks_of(partitions) {
            match start {
                Ok(start) => starts.push(start),
                Err(why) => checked.push((partition, Err(why))),
            }
        }
        let mismatched = self.mismatched_logs(&starts);
        for start in starts {
            let is_same = mismatched.get(&start.partition).map_or(Ok(()), |why| Err(why.clone()));
            let from = is_same.and_then(|()| self.start_offset(&start));
            checked.push((start.partition, from.map(|from| (start, from))));
        }
        checked
    }

    /// Reads the watermarks of partitions. Those beyond the time budget are left out; when they are due, they come first in
    /// the next pass.
    fn fetch_watermarks_of(
        &self,
        partitions: impl Iterator<Item = (Partition, Position)>,
    ) -> Vec<(Partition, Result<Start, String>)> {
        let started_at = Instant::now();
        let mut starts = Vec::new();
        for (partition, position) in partitions {
            let topic = self.settings.log.topics.name(partition.stream);
            let fetched = self.consumer.fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT);
            let start = fetched
                .map(|watermarks| Start { partition, position, watermarks })
                .map_err(|error| format!("failed to fetch the watermarks: {error}"));
            starts.push((partition, start));
            if started_at.elapsed() >= QUERY_BUDGET {
                break;
            }
        }
        starts
    }

    /// Returns the partitions whose log is unknown or not the one that the view was folded from, with the reason.
    fn mismatched_logs(&self, starts: &[Start]) -> BTreeMap<Partition, String> {
        // An empty log has no identity yet: its task stores the id of the first record that it folds. A log whose
        // first records were deleted has none any more.
        let has_first = |start: &&Start| start.watermarks.0 == 0 && start.watermarks.1 > 0;
        let ends: Offsets =
            starts.iter().filter(has_first).map(|start| (start.partition, start.watermarks.1)).collect();
        let firsts = self.settings.first_records.read(&ends).unwrap_or_default();
        let mut reasons = BTreeMap::new();
        let mut identities = Vec::with_capacity(ends.len());
        for partition in ends.into_keys() {
            match firsts.get(&partition) {
                Some(Some(first)) => identities.push((partition, first.clone())),
                Some(None) => {}
                None => {
                    reasons.insert(partition, "timed out reading the first record of the log".to_owned());
                }
            }
        }
        reasons.extend(self.assignment().check_log_identity(&identities));
        reasons
    }

    /// Returns the offset at which a partition starts: the store's position, or the log start offset if the view is empty.
    /// Returns the reason if the log does not have it.
    fn start_offset(&self, start: &Start) -> Result<i64, String> {
        let Start { partition, position, watermarks: (log_start, end) } = start;
        let topic = &self.settings.log.topics.name(partition.stream);
        let Some(from) = position.read_from(*log_start) else {
            return Err(format!(
                "{topic}[{}] begins at {log_start}, after the view's position {}: the records between were deleted from \
                 the log. Restore the log, or rebuild the view from the remaining records",
                partition.number,
                position.lowest()
            ));
        };
        // A part ahead of the log was folded from another log, and would skip the next records.
        if position.highest() > *end {
            return Err(format!(
                "{topic}[{}] ends at {end}, but the view is at {}: wrong cluster, or truncated log. The view is not \
                 changed until the log or the view is restored",
                partition.number,
                position.highest()
            ));
        }
        if position.lowest() < from {
            warn!(
                projection = self.projection.name(),
                partition = partition.id(),
                log_start,
                "log start offset above 0; folding the remaining records"
            );
        }
        Ok(from)
    }

    /// Seeks partitions to their start offsets, all at once. Returns those that failed, with the reason.
    fn seek(&self, starts: &[(Start, i64)]) -> BTreeMap<Partition, String> {
        let mut list = TopicPartitionList::new();
        for (start, from) in starts {
            let topic = self.settings.log.topics.name(start.partition.stream);
            // Fails for an invalid offset only.
            _ = list.add_partition_offset(&topic, start.partition.number, Offset::Offset(*from));
        }
        if starts.is_empty() {
            return BTreeMap::new();
        }
        let sought = self.consumer.seek_partitions(list, BROKER_TIMEOUT);
        let failure = |(start, _): &(Start, i64)| {
            let topic = self.settings.log.topics.name(start.partition.stream);
            let result = match &sought {
                Ok(list) => list.find_partition(&topic, start.partition.number).map_or_else(
                    || Err("not assigned".to_owned()),
                    |found| found.error().map_err(|error| error.to_string()),
                ),
                Err(error) => Err(error.to_string()),
            };
            let why = result.err()?;
            Some((start.partition, format!("failed to seek {topic}[{}]: {why}", start.partition.number)))
        };
        starts.iter().filter_map(failure).collect()
    }

    /// Assigns a partition again, paused. The client neither fetches nor seeks one whose next offset was deleted from the log.
    fn assign_again(&self, partition: Partition) {
        let mut list = self.list(partition);
        let assigned = release(&self.consumer, &list).and_then(|()| assign(&self.consumer, &mut list));
        if let Err(error) = assigned {
            // The next seek fails as well, and this is repeated.
            debug!(projection = self.projection.name(), %error, "failed to assign a partition again");
        }
    }

    /// Moves a partition's task to the consumer's position: all records before that are with the task, and offsets
    /// between the last of them and the position hold none for consumers.
    fn pass_to_position(&self, number: i32) {
        let Ok(positions) = self.consumer.position() else {
            return;
        };
        for stream in self.projection.streams() {
            let found = positions.find_partition(&self.settings.log.topics.name(stream), number);
            if let Some(Offset::Offset(next)) = found.map(|found| found.offset()) {
                let partition = Partition { stream, number };
                self.pause_if_held(partition, &self.assignment().pass_to(partition, next));
            }
        }
    }

    /// Passes a record to its partition's task. If the task's queue is full, holds the record and pauses the partition.
    fn route(&self, message: &BorrowedMessage<'_>) {
        let Some(stream) = self.settings.log.topics.stream(message.topic()) else {
            return;
        };
        let partition = Partition { stream, number: message.partition() };
        self.pause_if_held(partition, &self.assignment().route(partition, read(stream, message)));
    }

    fn pause_if_held(&self, partition: Partition, routed: &Routed) {
        if let Routed::Held = routed
            && let Err(error) = self.consumer.pause(&self.list(partition))
        {
            error!(projection = self.projection.name(), %error, "failed to pause a partition, holding its records");
        }
    }

    /// Handles an error of the consumer. The client retries by itself where it can; a fatal error is returned.
    fn handle_consumer_error(&self, error: &KafkaError) -> anyhow::Result<()> {
        if let Some((code, why)) = self.consumer.client().fatal_error() {
            self.assignment().revoke_all();
            if code == RDKafkaErrorCode::FencedInstanceId {
                let instance = self.settings.instance.as_deref().unwrap_or_default();
                bail!(
                    "another process runs as instance {instance:?} and replaced this one; give each process a unique \
                     --instance name"
                );
            }
            bail!("fatal error of the consumer: {why}");
        }
        warn!(projection = self.projection.name(), %error, "log read failed, retrying");
        if matches!(error, KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) {
            // A partition lacks the next offset: restarting all finds it and reports the reason.
            self.restart(&self.assignment().running());
        }
        Ok(())
    }

    fn list(&self, partition: Partition) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.settings.log.topics.name(partition.stream), partition.number);
        list
    }
}

fn read(stream: Stream, message: &BorrowedMessage<'_>) -> Queued {
    let headers = message.headers().map_or(0, |headers| {
        headers.iter().map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum()
    });
    // The message is held together with the decoded event, which is about as large, and a structure around both.
    let bytes = 2 * (message.payload_len() + message.key_len() + headers) + size_of::<Queued>();
    Queued { delivery: Some(Delivery::read(stream, message)), next: message.offset() + 1, bytes }
}
