//! The thread that polls Kafka for one projection and hands records to its partitions' tasks.

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
    client::{Context, connect},
    partition::Request,
    queue::Queued,
    settings::Settings,
};
use crate::{
    desired_state::{Wanted, Wish},
    log::{Delivery, Offsets, Partition},
    store::{Position, SharedStore},
    view::Projection,
};

/// The longest that a request of a partition's task waits for the thread.
const POLL: Duration = Duration::from_millis(20);
/// Between two checks that the store still has what was written: how long a store that lost writes goes unnoticed
/// when nothing new comes.
const VERIFY_EVERY: Duration = Duration::from_secs(2);
/// How long a seek or a question to the broker may take.
const BROKER_TIMEOUT: Duration = Duration::from_secs(2);
/// After this the broker is not asked about one more partition before the next poll. Some that it does not answer for
/// must not hold up the others, nor the member, which is thrown out when it does not poll.
const ASK_FOR: Duration = Duration::from_secs(2);
/// Between two looks for topics that are not there yet.
const TOPICS_RETRY: Duration = Duration::from_secs(1);

/// A partition that is to be started.
struct Start {
    partition: Partition,
    /// Where the store stands.
    position: Position,
    /// Where the log begins and ends.
    extent: (i64, i64),
}

/// The thread's state.
pub(super) struct Poller {
    consumer: Arc<BaseConsumer<Context>>,
    projection: Projection,
    settings: Arc<Settings>,
    requests: mpsc::Receiver<Request>,
    shutdown: Shutdown,
    /// What is wanted of the projection, as far as it is followed.
    followed: Wanted,
}

impl Poller {
    /// A poller of a runner's projection; its tasks run on a runtime.
    pub(super) fn new(
        sink: SharedStore,
        settings: Arc<Settings>,
        readiness: Readiness,
        shutdown: Shutdown,
        runtime: Handle,
    ) -> anyhow::Result<Self> {
        let projection = *sink.projection();
        let (requested, requests) = mpsc::channel();
        let assignment = Assignment::new(sink, &settings, readiness, requested, runtime);
        let consumer = connect(&settings, projection.name(), assignment)?;
        let consumer = Arc::new(consumer);
        consumer.context().assignment().set_hints(&consumer, &settings.log.topics);
        let followed = Wanted::default();
        Ok(Self { consumer, projection, settings, requests, shutdown, followed })
    }

    /// Polls until shutdown is given and the partitions' tasks have ended.
    pub(super) fn run(mut self) -> anyhow::Result<()> {
        let name = self.projection.name();
        if !self.wait_for_topics() {
            return Ok(());
        }
        self.subscribe()?;
        let (mut start_at, mut verify_at) = (Instant::now(), Instant::now() + VERIFY_EVERY);
        while !self.shutdown.is_given() {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => self.route(&message),
                Some(Err(KafkaError::PartitionEOF(number))) => self.pass_to_position(number),
                Some(Err(error)) => self.endure(&error)?,
                None => {}
            }
            self.serve_requests();
            self.follow_wanted();
            let begun = Instant::now();
            if begun >= start_at {
                self.start_due();
                // Half of the time is for the partitions that run.
                start_at = Instant::now() + begun.elapsed();
            }
            if Instant::now() >= verify_at {
                self.assignment().lost().into_iter().for_each(|partition| self.restart(partition));
                verify_at = Instant::now() + VERIFY_EVERY;
            }
        }
        self.assignment().give_up_all();
        info!(projection = name, "stopped");
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

    /// Waits until the projection's topics exist; false if shutdown was given first.
    fn wait_for_topics(&self) -> bool {
        let mut told = false;
        for stream in self.projection.streams() {
            let topic = self.settings.log.topics.name(stream);
            while !self.shutdown.is_given() && !self.exists(&topic) {
                if !std::mem::replace(&mut told, true) {
                    info!(projection = self.projection.name(), topic, "waiting for the topic");
                }
                // Serves the client's own events, and waits.
                _ = self.consumer.poll(TOPICS_RETRY);
            }
        }
        !self.shutdown.is_given()
    }

    fn exists(&self, topic: &str) -> bool {
        self.consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
            metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
        })
    }

    fn serve_requests(&self) {
        while let Ok(request) = self.requests.try_recv() {
            match request {
                Request::Resume(partition) => {
                    if self.assignment().flush_held(partition)
                        && let Err(error) = self.consumer.resume(&self.list(partition))
                    {
                        error!(projection = self.projection.name(), %error, "failed to resume a partition");
                        self.restart(partition);
                    }
                }
                Request::Restart(partition) => self.restart(partition),
            }
        }
    }

    /// Stops a partition's task; it is started again where the store stands.
    fn restart(&self, partition: Partition) {
        if self.assignment().restart(partition) {
            self.pause(partition);
        }
    }

    fn pause(&self, partition: Partition) {
        if let Err(error) = self.consumer.pause(&self.list(partition)) {
            // Then records come that no task takes, until the partition is sought again.
            debug!(projection = self.projection.name(), %error, "failed to pause a partition");
        }
    }

    /// Sees whether something else is wanted now than before. If so, all tasks end; they begin anew if they are to run.
    fn follow_wanted(&mut self) {
        let name = self.projection.name();
        let wanted = self.settings.wanted.borrow().get(name).cloned().unwrap_or_default();
        if wanted == self.followed {
            return;
        }
        info!(projection = name, generation = wanted.generation, wish = ?wanted.wish, "following what is wanted");
        let running: Vec<_> = self.assignment().running();
        self.assignment().rest(&wanted);
        for partition in running {
            self.pause(partition);
        }
        match &wanted.wish {
            Wish::Stopped(why) => self.assignment().set_stopped(Some(why)),
            Wish::Run | Wish::Hold | Wish::Pause => self.assignment().set_stopped(None),
        }
        self.followed = wanted;
    }

    /// Starts the tasks of partitions that have none, where the store stands.
    fn start_due(&self) {
        if self.followed.wish != Wish::Run {
            return;
        }
        let due = self.assignment().due();
        if due.is_empty() {
            return;
        }
        let positions = match self.assignment().starts(&due) {
            Ok(positions) => positions,
            Err(why) => {
                return due.into_iter().for_each(|partition| self.assignment().put_off(partition, &why));
            }
        };
        let starts = self.with_extents(due.into_iter().zip(positions));
        let others = self.other_logs(&starts);
        for start in starts {
            let is_ours = others.get(&start.partition).map_or(Ok(()), |why| Err(why.clone()));
            match is_ours.and_then(|()| self.seek(&start)) {
                Ok(from) => {
                    self.assignment().start(start.partition, start.position, from);
                    if let Err(error) = self.consumer.resume(&self.list(start.partition)) {
                        error!(projection = self.projection.name(), %error, "failed to resume a partition");
                        self.restart(start.partition);
                    }
                }
                Err(why) => self.put_off(start.partition, &why),
            }
        }
    }

    fn put_off(&self, partition: Partition, why: &str) {
        warn!(projection = self.projection.name(), partition = partition.id(), why, "can't start yet");
        self.assignment().put_off(partition, why);
    }

    /// The partitions that the broker answers for. What there is no time for is due still, and comes first in the next
    /// pass.
    fn with_extents(&self, due: impl Iterator<Item = (Partition, Position)>) -> Vec<Start> {
        let begun = Instant::now();
        let mut starts = Vec::new();
        for (partition, position) in due {
            let topic = self.settings.log.topics.name(partition.stream);
            match self.consumer.fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT) {
                Ok(extent) => starts.push(Start { partition, position, extent }),
                Err(error) => {
                    let why = format!("the broker does not say where the log begins and ends: {error}");
                    self.put_off(partition, &why);
                }
            }
            if begun.elapsed() >= ASK_FOR {
                break;
            }
        }
        starts
    }

    /// Why some partitions are not those that the view was folded from, or not known to be.
    fn other_logs(&self, starts: &[Start]) -> BTreeMap<Partition, String> {
        // A log that has no first record yet can be any: its task remembers the first that it folds. One whose start is cut
        // has lost it.
        let has_first = |start: &&Start| start.extent.0 == 0 && start.extent.1 > 0;
        let ends: Offsets =
            starts.iter().filter(has_first).map(|start| (start.partition, start.extent.1)).collect();
        let firsts = self.settings.first_records.read(&ends).unwrap_or_default();
        let mut whys = BTreeMap::new();
        let mut known = Vec::with_capacity(ends.len());
        for partition in ends.into_keys() {
            match firsts.get(&partition) {
                Some(Some(first)) => known.push((partition, first.clone())),
                Some(None) => {}
                None => {
                    whys.insert(partition, "the broker does not send the log's first record".to_owned());
                }
            }
        }
        whys.extend(self.assignment().folded_from_others(&known));
        whys
    }

    /// Has the consumer read a partition from where the store stands, or from the log's start if the view has nothing;
    /// returns that offset, or why it can't.
    fn seek(&self, start: &Start) -> Result<i64, String> {
        let Start { partition, position, extent: (log_start, end) } = start;
        let topic = &self.settings.log.topics.name(partition.stream);
        let Some(from) = position.read_from(*log_start) else {
            return Err(format!(
                "{topic}[{}] begins at {log_start}, after the view's position {}: the records between are gone from the \
                 log. Restore the log, or rebuild the view from what is left of it",
                partition.number,
                position.lowest()
            ));
        };
        // Any part that is further than the log was folded from another log, and would ignore what comes next.
        if position.highest() > *end {
            return Err(format!(
                "{topic}[{}] ends at {end}, but the view stands at {}: is this another cluster, or was the log cut? \
                 The view stays as it is until the log or the view is restored",
                partition.number,
                position.highest()
            ));
        }
        if let Err(error) = self.consumer.seek(topic, partition.number, Offset::Offset(from), BROKER_TIMEOUT)
        {
            self.assign_again(*partition);
            return Err(format!("{topic}[{}] can't be read yet: {error}", partition.number));
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

    /// Assigns a partition again, paused. The client neither fetches nor seeks one whose next offset was gone from the log.
    fn assign_again(&self, partition: Partition) {
        let mut list = self.list(partition);
        let assigned = list
            .set_all_offsets(Offset::Beginning)
            .and_then(|()| self.consumer.incremental_unassign(&list))
            .and_then(|()| self.consumer.incremental_assign(&list))
            .and_then(|()| self.consumer.pause(&list));
        if let Err(error) = assigned {
            // It may have gone to another instance. If not, the next seek fails as well.
            debug!(projection = self.projection.name(), %error, "failed to assign a partition again");
        }
    }

    /// Has a partition's task pass to the consumer's position: all records before that are with the task, and offsets
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

    /// Hands a record to its partition's task. If the task's queue is full the record is held and the partition paused.
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
            error!(projection = self.projection.name(), %error, "failed to pause a partition; its records are held");
        }
    }

    /// Goes on after an error of the consumer, which tries again by itself where that can help. An error after which it
    /// is of no more use is given back.
    fn endure(&self, error: &KafkaError) -> anyhow::Result<()> {
        if let Some((code, why)) = self.consumer.client().fatal_error() {
            self.assignment().give_up_all();
            if code == RDKafkaErrorCode::FencedInstanceId {
                let instance = self.settings.instance.as_deref().unwrap_or_default();
                bail!(
                    "another process runs as instance {instance:?} and has taken the place of this one; \
                     give each a name of its own with --instance"
                );
            }
            bail!("the consumer can't go on: {why}");
        }
        warn!(projection = self.projection.name(), %error, "the log can't be read now; trying again");
        if matches!(error, KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset)) {
            // The log does not have what comes next: starting again finds out which partition it is, and says so.
            self.assignment().running().into_iter().for_each(|partition| self.restart(partition));
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
    // The message is kept beside what is decoded, which is about as large, and a structure around it.
    let bytes = 2 * (message.payload_len() + message.key_len() + headers) + size_of::<Queued>();
    Queued { delivery: Some(Delivery::read(stream, message)), next: message.offset() + 1, bytes }
}
