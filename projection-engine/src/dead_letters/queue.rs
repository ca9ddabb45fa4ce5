//! The producer of dead letters. A dead letter is sent once every in-sync replica has it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use rdkafka::{
    ClientConfig, Message, Timestamp,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, FutureRecord, Producer},
};
use tokio::task::spawn_blocking;
use tracing::{info, warn};
use vidlog_events::{Stream, Topics};
use vidlog_service_kit::clock::Clock;

use super::dead_letter::{self, DeadLetterHistory, Discards, Origin};
use crate::{
    log::{Log, Partition, RecordKey},
    store::{Class, Failure},
};

/// Timeout for the acknowledgement of a dead letter, and for a response of the broker.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Maximum size of a dead letter, in bytes: larger than every event with its headers. Only the reference to a larger record
/// is sent.
const MAX_BYTES: &str = "2000000";

/// The dead-letter queue of a namespace. Clones share its clients.
#[derive(Clone)]
pub struct DeadLetterQueue {
    log: Log,
    clock: Clock,
    shared: Arc<Mutex<Shared>>,
}

/// State that is created on first use: most processes send no dead letters.
#[derive(Default)]
struct Shared {
    producer: Option<FutureProducer>,
    created: BTreeSet<Stream>,
    /// Queries the broker for metadata and watermarks of dead letters.
    consumer: Option<Arc<BaseConsumer>>,
}

impl DeadLetterQueue {
    /// The dead-letter queue of a log.
    pub fn new(log: Log) -> Self {
        Self { log, clock: Clock::system(), shared: Arc::default() }
    }

    /// The log.
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Appends records that a projection could not fold. Returns once the broker has acknowledged all of them.
    pub async fn send(
        &self,
        projection: &str,
        partition: Partition,
        dead_letters: &[(&(impl Message + Sync), Failure)],
    ) -> anyhow::Result<()> {
        if dead_letters.is_empty() {
            return Ok(());
        }
        self.create_topic(partition.stream).await?;
        let producer = self.producer()?;
        let (origin, topic) =
            (self.log.topics.name(partition.stream), self.log.topics.dead_letters(partition.stream));
        let now_ms = self.clock.now_ms();
        let sent = dead_letters.iter().map(async |(message, failure)| {
            let (number, offset) = (partition.number, message.offset());
            let origin = Origin { projection, topic: &origin, partition: number, offset };
            let mut record = FutureRecord::<[u8], [u8]>::to(&topic)
                .partition(number)
                .headers(dead_letter::headers(message.headers(), &origin, failure, now_ms));
            record.key = message.key();
            // Only the offset of a discarded record is kept, not its content.
            record.payload = if failure.class == Class::Discarded { None } else { message.payload() };
            if let Timestamp::CreateTime(time_ms) = message.timestamp() {
                record.timestamp = Some(time_ms);
            }
            match producer.send(record, TIMEOUT).await {
                Err((error, _)) if is_refused(&error) => {
                    warn!(projection, partition = partition.id(), offset, %error, "dead letter refused, referring to its record");
                    let key = RecordKey::of(message.key());
                    let reference = FutureRecord::<[u8], [u8]>::to(&topic)
                        .partition(number)
                        .headers(dead_letter::reference_headers(&key, &origin, failure, now_ms));
                    producer.send(reference, TIMEOUT).await
                }
                result => result,
            }
            .map_err(|(error, _)| error)
        });
        match try_join_all(sent).await {
            Ok(_) => Ok(()),
            Err(error) => {
                let code = error.rdkafka_error_code();
                if code == Some(RDKafkaErrorCode::Fatal) || producer.client().fatal_error().is_some() {
                    // The producer cannot send after a fatal error.
                    self.shared().producer = None;
                }
                if code == Some(RDKafkaErrorCode::UnknownPartition) {
                    // The stream's topic has new partitions. This producer would refresh its metadata minutes later.
                    let mut shared = self.shared();
                    shared.producer = None;
                    shared.created.remove(&partition.stream);
                }
                Err(error).with_context(|| format!("failed to append to {topic}"))
            }
        }
    }

    /// Returns the offsets of a partition that an operator discarded for a projection.
    pub async fn discards(&self, projection: &'static str, partition: Partition) -> anyhow::Result<Discards> {
        Ok(self.history(projection, partition).await?.discards)
    }

    /// Returns the dead-letter history of a partition.
    pub(super) async fn history(
        &self,
        projection: &'static str,
        partition: Partition,
    ) -> anyhow::Result<DeadLetterHistory> {
        let (log, consumer) = (self.log.clone(), self.consumer()?);
        let read = move || match dead_letter::extent(&consumer, &log, partition)? {
            Some(_) => dead_letter::history(&log, projection, partition),
            None => Ok(DeadLetterHistory::default()),
        };
        let found = spawn_blocking(read).await.context("reading the dead letters panicked")?;
        if found.is_err() {
            // librdkafka closes a stalled connection only after a minute. A new client opens another one.
            self.shared().consumer = None;
        }
        found
    }

    fn producer(&self) -> anyhow::Result<FutureProducer> {
        let mut shared = self.shared();
        if let Some(producer) = &shared.producer {
            return Ok(producer.clone());
        }
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.log.brokers)
            .set("client.id", "vidlog-dead-letters")
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("compression.type", "lz4")
            .set("message.max.bytes", MAX_BYTES)
            .set("delivery.timeout.ms", TIMEOUT.as_millis().to_string())
            .create()
            .context("failed to set up the producer of dead letters")?;
        shared.producer = Some(producer.clone());
        Ok(producer)
    }

    fn consumer(&self) -> anyhow::Result<Arc<BaseConsumer>> {
        let mut shared = self.shared();
        if let Some(consumer) = &shared.consumer {
            return Ok(consumer.clone());
        }
        let consumer = Arc::new(self.log.consumer()?);
        shared.consumer = Some(consumer.clone());
        Ok(consumer)
    }

    /// Creates the dead-letter topic of a stream if it does not exist, with the partitions and replicas of the
    /// stream's topic. Adds partitions to one that has fewer.
    async fn create_topic(&self, stream: Stream) -> anyhow::Result<()> {
        if self.shared().created.contains(&stream) {
            return Ok(());
        }
        let (partitions, replicas) = self.layout(self.log.topics.name(stream)).await?;
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.log.brokers).create()?;
        let (name, min_insync) = (self.log.topics.dead_letters(stream), (replicas / 2 + 1).to_string());
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(replicas))
            .set("min.insync.replicas", &min_insync)
            .set("max.message.bytes", MAX_BYTES);
        let topic = Topics::SETTINGS.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
        for created in admin.create_topics([&topic], &options).await.context("failed to create a topic")? {
            match created {
                Ok(topic) => info!(topic, partitions, "created a topic"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {
                    if self.layout(name.clone()).await?.0 < partitions {
                        add_partitions(&admin, &options, &name, usize::try_from(partitions)?).await?;
                    }
                }
                Err((topic, code)) => bail!("failed to create topic {topic}: {code}"),
            }
        }
        self.shared().created.insert(stream);
        Ok(())
    }

    /// Returns the numbers of partitions and replicas of a topic.
    async fn layout(&self, topic: String) -> anyhow::Result<(i32, i32)> {
        let consumer = self.consumer()?;
        let query = spawn_blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), TIMEOUT)?;
            let found = metadata.topics().first().with_context(|| format!("topic {topic} does not exist"))?;
            let replicas = found.partitions().first().map_or(0, |partition| partition.replicas().len());
            let (partitions, replicas) = (i32::try_from(found.partitions().len())?, i32::try_from(replicas)?);
            ensure!(partitions > 0 && replicas > 0, "the broker returned no partitions of topic {topic}");
            Ok((partitions, replicas))
        });
        query.await.context("topic query panicked")?
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the client or the broker refuses the record, now and later.
fn is_refused(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidRecord, InvalidTimestamp, MessageSizeTooLarge};
    matches!(error.rdkafka_error_code(), Some(MessageSizeTooLarge | InvalidTimestamp | InvalidRecord))
}

/// Raises the number of partitions of a topic.
async fn add_partitions(
    admin: &AdminClient<DefaultClientContext>,
    options: &AdminOptions,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<()> {
    let new_partitions = [NewPartitions::new(topic, partitions)];
    for added in
        admin.create_partitions(&new_partitions, options).await.context("failed to add partitions")?
    {
        match added {
            Ok(topic) => info!(topic, partitions, "added partitions to a topic"),
            // Another process added them first.
            Err((_, RDKafkaErrorCode::InvalidPartitions)) => {}
            Err((topic, code)) => bail!("failed to add partitions to topic {topic}: {code}"),
        }
    }
    Ok(())
}
