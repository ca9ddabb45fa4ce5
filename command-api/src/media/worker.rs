//! Consumes the stream of videos, processes its uploads, and commits the offsets of finalized ones.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use metrics::counter;
use parking_lot::Mutex;
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
    config::UploadSource,
    offsets::OffsetTracker,
    outcomes::Upload,
    processor::{Processed, UploadProcessor},
};
use crate::{metrics::MEDIA_UNREADABLE_RECORDS, publisher::KafkaLogContext};

/// Maximum number of uploads in progress, most of them waiting for a permit. At the maximum a partition is paused; it
/// resumes below half.
const MAX_IN_PROGRESS: usize = 64;
/// Delay between checks for a missing topic.
const TOPIC_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a request to the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Name in the readiness report.
pub(super) const PART: &str = "media-worker";

/// Consumes uploads.
pub(super) struct Worker {
    consumer: Arc<StreamConsumer<WorkerContext>>,
    assignment: Assignment,
    topic: String,
    processor: UploadProcessor,
    jobs: JoinSet<(i32, i64, Processed)>,
    paused: HashSet<i32>,
    readiness: Readiness,
    shutdown: Shutdown,
}

/// The assigned partitions. Clones share them.
#[derive(Clone, Default)]
struct Assignment {
    partitions: Arc<Mutex<HashMap<i32, Partition>>>,
}

/// An assigned partition.
struct Partition {
    offsets: OffsetTracker,
    /// Cancelled when the partition is revoked: then another worker processes its uploads.
    stop: CancellationToken,
}

/// Callbacks of the consumer.
struct WorkerContext {
    assignment: Assignment,
    shutdown: Shutdown,
}

/// A record of the topic, decoded.
struct VideoRecord {
    partition: i32,
    offset: i64,
    /// The upload; `None` for other events.
    upload: Result<Option<Upload>, DecodeError>,
}

impl Assignment {
    fn assign(&self, partition: i32, stop: CancellationToken) {
        self.partitions.lock().insert(partition, Partition { offsets: OffsetTracker::default(), stop });
    }

    fn revoke(&self, partition: i32) {
        if let Some(partition) = self.partitions.lock().remove(&partition) {
            partition.stop.cancel();
        }
    }

    /// Starts a record; `None` if its partition has been revoked.
    fn start(&self, partition: i32, offset: i64) -> Option<CancellationToken> {
        let mut partitions = self.partitions.lock();
        let partition = partitions.get_mut(&partition)?;
        partition.offsets.start(offset);
        Some(partition.stop.clone())
    }

    /// Completes a record; returns the next offset to commit, if it advanced.
    fn complete(&self, partition: i32, offset: i64) -> Option<i64> {
        self.partitions.lock().get_mut(&partition)?.offsets.complete(offset)
    }
}

impl ClientContext for WorkerContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        KafkaLogContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        KafkaLogContext.error(error, reason);
    }
}

impl ConsumerContext for WorkerContext {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let numbers = |list: &TopicPartitionList| list.to_topic_map().into_keys().map(|(_, number)| number);
        match rebalance {
            Rebalance::Assign(list) => {
                for partition in numbers(list) {
                    self.assignment.assign(partition, self.shutdown.token().child_token());
                }
            }
            Rebalance::Revoke(list) => {
                for partition in numbers(list) {
                    self.assignment.revoke(partition);
                }
            }
            Rebalance::Error(error) => warn!(%error, "rebalance failed"),
        }
    }
}

impl Worker {
    /// A worker for the uploads of a namespace.
    pub(super) fn new(
        source: UploadSource<'_>,
        processor: UploadProcessor,
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        readiness.not_ready(PART, "waiting for the topic of videos");
        let assignment = Assignment::default();
        let context = WorkerContext { assignment: assignment.clone(), shutdown: shutdown.clone() };
        let consumer =
            consumer_config(source).create_with_context(context).context("failed to create the consumer")?;
        Ok(Self {
            consumer: Arc::new(consumer),
            assignment,
            topic: Topics::new(source.namespace).name(Stream::Videos),
            processor,
            jobs: JoinSet::new(),
            paused: HashSet::new(),
            readiness,
            shutdown,
        })
    }

    /// Consumes until shutdown, then stops the jobs and leaves the consumer group.
    pub(super) async fn run(mut self) -> anyhow::Result<()> {
        if !self.wait_for_topic().await? {
            return Ok(());
        }
        self.consumer.subscribe(&[&self.topic]).context("failed to subscribe to the topic of videos")?;
        self.readiness.ready(PART);
        info!(topic = self.topic, "media worker started");
        let (consumer, shutdown) = (Arc::clone(&self.consumer), self.shutdown.clone());
        while !shutdown.is_requested() {
            tokio::select! {
                () = shutdown.wait() => {}
                Some(job) = self.jobs.join_next() => self.end_job(job.context("processing an upload panicked")?),
                received = consumer.recv() => match received {
                    Ok(message) => self.start_job(decode_record(&message)),
                    Err(error) => warn!(%error, "failed to poll uploads; retrying"),
                },
            }
        }
        while let Some(job) = self.jobs.join_next().await {
            self.end_job(job.context("processing an upload panicked")?);
        }
        drop(consumer);
        // Dropping the consumer commits the stored offsets, leaves the group, and blocks.
        tokio::task::spawn_blocking(move || drop(self.consumer)).await.context("failed to leave the group")
    }

    /// Waits until the topic exists; returns false on shutdown.
    async fn wait_for_topic(&self) -> anyhow::Result<bool> {
        loop {
            let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
            let lookup = tokio::task::spawn_blocking(move || topic_exists(&consumer, &topic));
            if lookup.await.context("failed to look up the topic")? {
                return Ok(true);
            }
            let delay = tokio::time::sleep(TOPIC_RETRY_INTERVAL);
            if self.shutdown.token().run_until_cancelled(delay).await.is_none() {
                return Ok(false);
            }
        }
    }

    fn start_job(&mut self, VideoRecord { partition, offset, upload }: VideoRecord) {
        let Some(stop) = self.assignment.start(partition, offset) else { return };
        let upload = match upload {
            Ok(Some(upload)) => upload,
            Ok(None) => return self.complete(partition, offset),
            Err(error) => {
                counter!(MEDIA_UNREADABLE_RECORDS).increment(1);
                error!(partition, offset, %error, "record does not decode, skipped; an upload in it is never processed");
                return self.complete(partition, offset);
            }
        };
        let processor = self.processor.clone();
        self.jobs.spawn(async move { (partition, offset, processor.finalize(&upload, &stop).await) });
        if self.jobs.len() >= MAX_IN_PROGRESS && self.paused.insert(partition) {
            self.apply("pause", Consumer::pause, [partition]);
        }
    }

    fn end_job(&mut self, (partition, offset, processed): (i32, i64, Processed)) {
        if processed == Processed::Finalized {
            self.complete(partition, offset);
        }
        if self.jobs.len() <= MAX_IN_PROGRESS / 2 && !self.paused.is_empty() {
            let paused = std::mem::take(&mut self.paused);
            self.apply("resume", Consumer::resume, paused);
        }
    }

    fn complete(&self, partition: i32, offset: i64) {
        if let Some(next) = self.assignment.complete(partition, offset) {
            // The client commits stored offsets periodically and on revocation.
            if let Err(error) = self.consumer.store_offset(&self.topic, partition, next - 1) {
                debug!(partition, next, %error, "offset not stored, partition revoked");
            }
        }
    }

    fn apply(
        &self,
        action: &str,
        change: impl Fn(&StreamConsumer<WorkerContext>, &TopicPartitionList) -> Result<(), KafkaError>,
        partitions: impl IntoIterator<Item = i32>,
    ) {
        for partition in partitions {
            let mut list = TopicPartitionList::new();
            list.add_partition(&self.topic, partition);
            if let Err(error) = change(&self.consumer, &list) {
                debug!(action, partition, %error, "partition revoked");
            }
        }
    }
}

fn consumer_config(source: UploadSource<'_>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &source.log.kafka_brokers)
        .set("group.id", format!("{}.media-worker", source.namespace))
        .set("client.id", "vidlog-media-worker")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        // The worker stores offsets itself, in order, once their uploads are finalized.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // Time until a crashed worker's partitions are reassigned.
        .set("session.timeout.ms", source.log.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (source.log.session_timeout_ms / 5).to_string())
        .set("fetch.wait.max.ms", "100")
        .set("queued.max.messages.kbytes", "1024")
        .set("reconnect.backoff.max.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

fn topic_exists(consumer: &StreamConsumer<WorkerContext>, topic: &str) -> bool {
    consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
        metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
    })
}

fn decode_record(message: &BorrowedMessage<'_>) -> VideoRecord {
    let header = |name: &str| {
        message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
    };
    VideoRecord {
        partition: message.partition(),
        offset: message.offset(),
        upload: decode(Stream::Videos, header, message.payload().unwrap_or_default())
            .map(Upload::from_envelope),
    }
}
