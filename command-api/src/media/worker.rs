//! Consumes the uploads, and commits how far all are settled.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use metrics::counter;
use rdkafka::{
    ClientConfig, ClientContext, Message, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use vidlog_events::{DecodeError, Stream, Topics, decode};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use super::{
    Uploads,
    job::{Settled, Settler},
    offsets::Offsets,
    outcomes::Upload,
};
use crate::{metrics::MEDIA_UNREADABLE_RECORDS, publisher::Logging};

/// Uploads that are begun and not settled: most of them wait. Above it a partition is paused, below half of it it goes
/// on.
const MAX_BEGUN: usize = 64;
/// Between two looks for a topic that is not there yet.
const TOPIC_RETRY: Duration = Duration::from_secs(1);
/// How long a question to the broker may take.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of the readiness that this is.
pub(super) const PART: &str = "media-worker";

/// Consumes the uploads.
pub(super) struct Worker {
    consumer: Arc<StreamConsumer<Group>>,
    assignment: Assignment,
    topic: String,
    settler: Settler,
    begun: JoinSet<(i32, i64, Settled)>,
    paused: HashSet<i32>,
    readiness: Readiness,
    shutdown: Shutdown,
}

/// The partitions that are ours. Clones share them.
#[derive(Clone, Default)]
struct Assignment {
    partitions: Arc<Mutex<HashMap<i32, Partition>>>,
}

/// A partition that is ours.
struct Partition {
    offsets: Offsets,
    /// Given when the partition is taken away: another works on its uploads then.
    stop: CancellationToken,
}

/// What librdkafka calls back into.
struct Group {
    assignment: Assignment,
    shutdown: Shutdown,
}

/// A record of the topic.
struct Incoming {
    partition: i32,
    offset: i64,
    content: Result<Option<Upload>, DecodeError>,
}

impl Assignment {
    fn partitions(&self) -> MutexGuard<'_, HashMap<i32, Partition>> {
        // What is behind the lock is whole after any panic: each change is one call.
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, partition: i32, stop: CancellationToken) {
        self.partitions().insert(partition, Partition { offsets: Offsets::default(), stop });
    }

    fn take_away(&self, partition: i32) {
        if let Some(partition) = self.partitions().remove(&partition) {
            partition.stop.cancel();
        }
    }

    /// Begins a record; `None` if its partition is not ours any more.
    fn begin(&self, partition: i32, offset: i64) -> Option<CancellationToken> {
        let mut partitions = self.partitions();
        let partition = partitions.get_mut(&partition)?;
        partition.offsets.begin(offset);
        Some(partition.stop.clone())
    }

    /// Finishes a record; says up to where the partition may be committed, if that moved.
    fn finish(&self, partition: i32, offset: i64) -> Option<i64> {
        self.partitions().get_mut(&partition)?.offsets.finish(offset)
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        Logging.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        Logging.error(error, reason);
    }
}

impl ConsumerContext for Group {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let numbers = |list: &TopicPartitionList| list.to_topic_map().into_keys().map(|(_, number)| number);
        match rebalance {
            Rebalance::Assign(list) => {
                for partition in numbers(list) {
                    self.assignment.give(partition, self.shutdown.token().child_token());
                }
            }
            Rebalance::Revoke(list) => {
                for partition in numbers(list) {
                    self.assignment.take_away(partition);
                }
            }
            Rebalance::Error(error) => warn!(%error, "failed to share the uploads with other workers"),
        }
    }
}

impl Worker {
    /// A worker on the uploads of a namespace.
    pub(super) fn new(
        uploads: Uploads<'_>,
        settler: Settler,
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        readiness.not_ready(PART, "waiting for the topic of uploads");
        let assignment = Assignment::default();
        let group = Group { assignment: assignment.clone(), shutdown: shutdown.clone() };
        let consumer = settings(uploads).create_with_context(group).context("failed to make a consumer")?;
        Ok(Self {
            consumer: Arc::new(consumer),
            assignment,
            topic: Topics::new(uploads.namespace).name(Stream::Videos),
            settler,
            begun: JoinSet::new(),
            paused: HashSet::new(),
            readiness,
            shutdown,
        })
    }

    /// Consumes until shutdown is given, then lets go of what is begun.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        if !self.wait_for_topic().await? {
            return Ok(());
        }
        self.consumer.subscribe(&[&self.topic]).context("failed to subscribe to the uploads")?;
        self.readiness.ready(PART);
        info!(topic = self.topic, "working on uploads");
        let (consumer, shutdown) = (Arc::clone(&self.consumer), self.shutdown.clone());
        while !shutdown.is_given() {
            tokio::select! {
                () = shutdown.wait() => {}
                Some(ended) = self.begun.join_next() => self.end(ended.context("working on an upload panicked")?),
                received = consumer.recv() => match received {
                    Ok(message) => self.begin(read(&message)),
                    Err(error) => warn!(%error, "uploads can't be read now; trying again"),
                },
            }
        }
        while let Some(ended) = self.begun.join_next().await {
            self.end(ended.context("working on an upload panicked")?);
        }
        drop(consumer);
        // Leaving the group commits what is settled, and blocks.
        tokio::task::spawn_blocking(move || drop(self.consumer)).await.context("failed to leave the group")
    }

    /// Waits until the topic exists; false if shutdown was given first.
    async fn wait_for_topic(&self) -> anyhow::Result<bool> {
        loop {
            let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
            let look = tokio::task::spawn_blocking(move || exists(&consumer, &topic));
            if look.await.context("failed to look for the topic")? {
                return Ok(true);
            }
            if self.shutdown.token().run_until_cancelled(tokio::time::sleep(TOPIC_RETRY)).await.is_none() {
                return Ok(false);
            }
        }
    }

    fn begin(&mut self, Incoming { partition, offset, content }: Incoming) {
        let Some(stop) = self.assignment.begin(partition, offset) else { return };
        let upload = match content {
            Ok(Some(upload)) => upload,
            Ok(None) => return self.finish(partition, offset),
            Err(error) => {
                counter!(MEDIA_UNREADABLE_RECORDS).increment(1);
                error!(partition, offset, %error, "skipped a record that can't be read; if it was an upload, it stays unsettled");
                return self.finish(partition, offset);
            }
        };
        let settler = self.settler.clone();
        self.begun.spawn(async move { (partition, offset, settler.settle(&upload, &stop).await) });
        if self.begun.len() >= MAX_BEGUN && self.paused.insert(partition) {
            self.apply("pause", Consumer::pause, [partition]);
        }
    }

    fn end(&mut self, (partition, offset, settled): (i32, i64, Settled)) {
        if settled == Settled::Yes {
            self.finish(partition, offset);
        }
        if self.begun.len() <= MAX_BEGUN / 2 && !self.paused.is_empty() {
            let paused = std::mem::take(&mut self.paused);
            self.apply("resume", Consumer::resume, paused);
        }
    }

    fn finish(&self, partition: i32, offset: i64) {
        if let Some(next) = self.assignment.finish(partition, offset) {
            // The client commits what is stored here: now and then, and when the partition is taken away.
            if let Err(error) = self.consumer.store_offset(&self.topic, partition, next - 1) {
                debug!(partition, next, %error, "a position was not kept; its partition was taken away");
            }
        }
    }

    fn apply(
        &self,
        what: &str,
        change: impl Fn(&StreamConsumer<Group>, &TopicPartitionList) -> Result<(), KafkaError>,
        partitions: impl IntoIterator<Item = i32>,
    ) {
        for partition in partitions {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.topic, partition);
            if let Err(error) = change(&self.consumer, &list) {
                debug!(what, partition, %error, "a partition was taken away");
            }
        }
    }
}

fn settings(uploads: Uploads<'_>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &uploads.log.kafka_brokers)
        .set("group.id", format!("{}.media-worker", uploads.namespace))
        .set("client.id", "vidlog-media-worker")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // What is settled is stored by the worker, in order; only that is committed.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // A dead worker's uploads move on after this.
        .set("session.timeout.ms", uploads.log.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (uploads.log.session_timeout_ms / 5).to_string())
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "1024")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

fn exists(consumer: &StreamConsumer<Group>, topic: &str) -> bool {
    consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
        metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
    })
}

fn read(message: &BorrowedMessage<'_>) -> Incoming {
    let header = |name: &str| {
        message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
    };
    Incoming {
        partition: message.partition(),
        offset: message.offset(),
        content: decode(Stream::Videos, header, message.payload().unwrap_or_default()).map(Upload::of),
    }
}
