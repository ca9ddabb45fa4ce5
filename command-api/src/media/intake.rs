//! Consumes the stream of videos, and enqueues its uploads.
//!
//! An offset is committed once the uploads before it are in the queue, whatever becomes of them there. So the backlog of
//! one partition does not stop another, and the consumer holds no more than a batch.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::FutureExt;
use metrics::counter;
use rdkafka::{
    ClientConfig, Message,
    config::RDKafkaLogLevel,
    consumer::{Consumer, StreamConsumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};
use tokio::{sync::Notify, time::sleep};
use tracing::{debug, error, info, warn};
use vidlog_events::{Envelope, Event, Stream, Topics, VideoEvent, decode};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use super::{
    config::UploadSource,
    jobs::{BATCH_SIZE, JobStore, NewJob},
    processor::with_timeout,
};
use crate::{metrics::MEDIA_UNREADABLE_RECORDS, publisher::KafkaLogContext};

/// Delay between checks for a missing topic, and between attempts to enqueue.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of a request to the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// Name in the readiness report.
pub(super) const PART: &str = "media-worker";

/// Moves uploads from the log to the queue.
pub(super) struct Intake {
    consumer: Arc<StreamConsumer<KafkaLogContext>>,
    topic: String,
    jobs: JobStore,
    /// Notified when uploads are enqueued.
    enqueued: Arc<Notify>,
    readiness: Readiness,
    shutdown: Shutdown,
}

/// Records that were polled together.
#[derive(Default)]
struct Batch {
    jobs: Vec<NewJob>,
    records: usize,
    /// The last offset of each partition.
    offsets: HashMap<i32, i64>,
}

impl Batch {
    fn add(&mut self, message: &BorrowedMessage<'_>) {
        let (partition, offset) = (message.partition(), message.offset());
        self.records += 1;
        self.offsets.insert(partition, offset);
        let header = |name: &str| {
            message.headers()?.iter().find(|header| header.key == name).and_then(|header| header.value)
        };
        match decode(Stream::Videos, header, message.payload().unwrap_or_default()) {
            Ok(envelope) => self.jobs.extend(new_job(envelope)),
            Err(error) => {
                counter!(MEDIA_UNREADABLE_RECORDS).increment(1);
                error!(partition, offset, %error, "record does not decode, skipped; an upload in it is never processed");
            }
        }
    }
}

/// The job of an event; `None` if it is not an upload.
fn new_job(envelope: Envelope) -> Option<NewJob> {
    let Event::Video(VideoEvent::VideoUploaded(video)) = &envelope.event else { return None };
    Some(NewJob { video_id: video.video_id, author_id: video.author_id, envelope })
}

impl Intake {
    /// An intake of the uploads of a namespace.
    pub(super) fn new(
        source: UploadSource<'_>,
        (jobs, enqueued): (JobStore, Arc<Notify>),
        readiness: Readiness,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        readiness.not_ready(PART, "waiting for the topic of videos");
        let consumer = consumer_config(source)
            .create_with_context(KafkaLogContext)
            .context("failed to create the consumer")?;
        let topic = Topics::new(source.namespace).name(Stream::Videos);
        Ok(Self { consumer: Arc::new(consumer), topic, jobs, enqueued, readiness, shutdown })
    }

    /// Consumes until shutdown, then leaves the consumer group.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        if self.wait_for_topic().await? {
            self.consumer.subscribe(&[&self.topic]).context("failed to subscribe to the topic of videos")?;
            self.readiness.ready(PART);
            info!(topic = self.topic, "media worker started");
            self.shutdown.token().run_until_cancelled(self.consume()).await;
        }
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
            let delay = sleep(RETRY_INTERVAL);
            if self.shutdown.token().run_until_cancelled(delay).await.is_none() {
                return Ok(false);
            }
        }
    }

    async fn consume(&self) {
        loop {
            match self.poll().await {
                Ok(batch) => {
                    self.enqueue(&batch.jobs).await;
                    self.store_offsets(&batch.offsets);
                }
                Err(error) => warn!(%error, "failed to poll uploads; retrying"),
            }
        }
    }

    /// Waits for a record; returns it with those that follow at once.
    async fn poll(&self) -> Result<Batch, KafkaError> {
        let mut batch = Batch::default();
        batch.add(&self.consumer.recv().await?);
        while batch.records < BATCH_SIZE {
            match self.consumer.recv().now_or_never() {
                Some(Ok(message)) => batch.add(&message),
                // An error would repeat, and the batch must not be lost for it.
                Some(Err(_)) | None => break,
            }
        }
        Ok(batch)
    }

    /// Enqueues uploads, however often MySQL fails: after an error the consumer would not return to them.
    async fn enqueue(&self, jobs: &[NewJob]) {
        while let Err(failure) = with_timeout(self.jobs.enqueue(jobs)).await {
            warn!(error = failure.error, "failed to enqueue uploads; retrying");
            self.readiness.not_ready(PART, format!("uploads are not enqueued: {}", failure.error));
            sleep(RETRY_INTERVAL).await;
        }
        self.readiness.ready(PART);
        if !jobs.is_empty() {
            self.enqueued.notify_one();
        }
    }

    fn store_offsets(&self, offsets: &HashMap<i32, i64>) {
        for (partition, offset) in offsets {
            // The client commits stored offsets periodically and on revocation.
            if let Err(error) = self.consumer.store_offset(&self.topic, *partition, *offset) {
                debug!(partition, offset, %error, "offset not stored, partition revoked");
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
        // The intake stores offsets itself, once their uploads are in the queue.
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

fn topic_exists(consumer: &StreamConsumer<KafkaLogContext>, topic: &str) -> bool {
    consumer.fetch_metadata(Some(topic), BROKER_TIMEOUT).is_ok_and(|metadata| {
        metadata.topics().iter().any(|found| found.error().is_none() && !found.partitions().is_empty())
    })
}
