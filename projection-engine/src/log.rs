//! The event log: topics, partitions, offsets and records.

pub mod identity;
mod partition;
mod range;
mod record;
mod record_key;

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    metadata::{MetadataPartition, MetadataTopic},
};
use tokio::task::spawn_blocking;
use vidlog_events::{Stream, Topics};
use vidlog_service_kit::config;

pub use self::{
    partition::Partition,
    range::{Item, Ranges, Source},
    record::{Delivery, Record, decode_message},
    record_key::RecordKey,
};

/// Timeout for a response of the broker, and for the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for one partition of [`LogClient::available_extents`].
const PARTITION_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval between two attempts to find a partition's leader.
const LEADER_RETRY: Duration = Duration::from_millis(100);
/// Attempts to find a partition's leader, a [`LEADER_RETRY`] apart.
const LEADER_ATTEMPTS: u32 = 30;

/// The next offset of each partition.
pub type Offsets = BTreeMap<Partition, i64>;

/// The range of offsets of a partition that consumers can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The log start offset: 0, unless earlier records were deleted.
    pub start: i64,
    /// The last stable offset: records of open transactions are after it.
    pub end: i64,
}

/// The log of a namespace.
#[derive(Clone)]
pub struct Log {
    /// Addresses of Kafka brokers.
    pub brokers: String,
    /// The topics.
    pub topics: Topics,
}

impl Log {
    /// The log of a namespace.
    pub fn new(kafka: &config::Kafka, namespace: &str) -> Self {
        Self { brokers: kafka.kafka_brokers.clone(), topics: Topics::new(namespace) }
    }

    /// Returns the end of the log for consumers in each partition of some streams: the last stable offset.
    pub async fn ends(&self, streams: Vec<Stream>) -> anyhow::Result<Offsets> {
        Ok(ends(self.extents(streams).await?))
    }

    /// Returns the current extent of each partition of some streams.
    pub async fn extents(&self, streams: Vec<Stream>) -> anyhow::Result<BTreeMap<Partition, Extent>> {
        self.query_partitions(streams, |consumer, topic, number| {
            extent(consumer, topic, number, BROKER_TIMEOUT)
        })
        .await
    }

    /// Creates a client for repeated queries. The other methods connect anew for each query.
    pub fn client(&self) -> anyhow::Result<LogClient> {
        Ok(LogClient { log: self.clone(), consumer: Arc::new(self.consumer()?) })
    }

    /// Returns the offset of the first record at or after a time, in ms since 1970, in each partition of some
    /// streams; the end if there is none.
    pub async fn at_time(&self, streams: Vec<Stream>, time_ms: i64) -> anyhow::Result<Offsets> {
        self.query_partitions(streams, move |consumer, topic, number| {
            let mut times = TopicPartitionList::new();
            times.add_partition_offset(topic, number, Offset::Offset(time_ms))?;
            let found = consumer.offsets_for_times(times, BROKER_TIMEOUT)?;
            match found.find_partition(topic, number).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => Ok(offset),
                _ => Ok(consumer.fetch_watermarks(topic, number, BROKER_TIMEOUT)?.1),
            }
        })
        .await
    }

    /// Queries the broker about each partition of some streams, on a blocking thread.
    async fn query_partitions<T, Query>(
        &self,
        streams: Vec<Stream>,
        query: Query,
    ) -> anyhow::Result<BTreeMap<Partition, T>>
    where
        T: Send + 'static,
        Query: Fn(&BaseConsumer, &str, i32) -> anyhow::Result<T> + Send + 'static,
    {
        let log = self.clone();
        let task = spawn_blocking(move || {
            let consumer = log.consumer()?;
            query_partitions(&consumer, &log.topics, &streams, BROKER_TIMEOUT, query)
        });
        task.await.context("log query panicked")?
    }

    /// Creates a consumer without a group assignment, for range reads and for queries of the broker.
    pub fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            // The client library requires a group; nothing joins it or commits offsets.
            .set("group.id", "vidlog-replay")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            // Skips records of aborted transactions. The high watermark becomes the last stable offset.
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // Closes a stalled connection after 6 s; the default is a minute.
            .set("socket.timeout.ms", "6000")
            // Counts only keys and values. With its headers a record takes some fifteen times as much.
            .set("queued.max.messages.kbytes", "2048")
            .set("fetch.max.bytes", "4194304")
            // Fetches again soon after the queue was full; the default is a second.
            .set("fetch.queue.backoff.ms", "20")
            .create()
            .context("failed to set up a consumer")
    }
}

/// A client that keeps its connections between queries.
pub struct LogClient {
    log: Log,
    consumer: Arc<BaseConsumer>,
}

impl LogClient {
    /// Returns the current extent of each partition of some streams. The timeout is for each response of the broker.
    pub async fn extents(
        &self,
        streams: Vec<Stream>,
        timeout: Duration,
    ) -> anyhow::Result<BTreeMap<Partition, Extent>> {
        let (consumer, topics) = (self.consumer.clone(), self.log.topics.clone());
        let query = spawn_blocking(move || {
            query_partitions(&consumer, &topics, &streams, timeout, |consumer, topic, number| {
                extent(consumer, topic, number, timeout)
            })
        });
        query.await.context("log query panicked")?
    }

    /// Returns the current extent of each partition of some streams, or the reason why it is unavailable, within a time for
    /// all of them. Does not wait for a leader. Fails only if the partitions of a stream are unknown.
    pub async fn available_extents(
        &self,
        streams: Vec<Stream>,
        limit: Duration,
    ) -> anyhow::Result<BTreeMap<Partition, Result<Extent, String>>> {
        let (consumer, topics) = (self.consumer.clone(), self.log.topics.clone());
        let query = spawn_blocking(move || {
            let deadline = Instant::now() + limit;
            // One thread per stream: the unavailable partitions of one stream must not use up the time of the others.
            thread::scope(|scope| {
                let stream_extents = |stream: Stream| {
                    let (consumer, topic) = (&consumer, topics.name(stream));
                    scope.spawn(move || available_extents_of(consumer, stream, &topic, deadline))
                };
                let threads: Vec<_> = streams.into_iter().map(stream_extents).collect();
                let mut extents = BTreeMap::new();
                for thread in threads {
                    extents.extend(thread.join().map_err(|_| anyhow!("log query panicked"))??);
                }
                Ok(extents)
            })
        });
        query.await.context("log query panicked")?
    }
}

/// Returns the extent of each partition of a topic, or the reason why it is unavailable. Blocks.
fn available_extents_of(
    consumer: &BaseConsumer,
    stream: Stream,
    topic: &str,
    deadline: Instant,
) -> anyhow::Result<Vec<(Partition, Result<Extent, String>)>> {
    let timeout = || deadline.saturating_duration_since(Instant::now()).min(PARTITION_TIMEOUT);
    let of_partition = |number| {
        let extent = extent(consumer, topic, number, timeout());
        let extent = extent.map_err(|error| format!("failed to query {topic}[{number}]: {error:#}"));
        (Partition { stream, number }, extent)
    };
    let numbers = partition_numbers(consumer, topic, deadline.saturating_duration_since(Instant::now()))?;
    Ok(numbers.into_iter().map(of_partition).collect())
}

/// Returns the numbers of the partitions of a topic. Blocks.
fn partition_numbers(consumer: &BaseConsumer, topic: &str, timeout: Duration) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer
        .fetch_metadata(Some(topic), timeout)
        .with_context(|| format!("failed to fetch the metadata of {topic}"))?;
    let numbers: Vec<i32> =
        metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id).collect();
    ensure!(!numbers.is_empty(), "topic {topic} does not exist");
    Ok(numbers)
}

/// Returns the ends of extents.
pub fn ends(extents: BTreeMap<Partition, Extent>) -> Offsets {
    extents.into_iter().map(|(partition, extent)| (partition, extent.end)).collect()
}

fn extent(consumer: &BaseConsumer, topic: &str, number: i32, timeout: Duration) -> anyhow::Result<Extent> {
    let (start, end) = consumer.fetch_watermarks(topic, number, timeout)?;
    Ok(Extent { start, end })
}

/// Queries the broker about each partition of some streams. Blocks.
fn query_partitions<T>(
    consumer: &BaseConsumer,
    topics: &Topics,
    streams: &[Stream],
    timeout: Duration,
    query: impl Fn(&BaseConsumer, &str, i32) -> anyhow::Result<T>,
) -> anyhow::Result<BTreeMap<Partition, T>> {
    let mut values = BTreeMap::new();
    for stream in streams {
        let topic = topics.name(*stream);
        for number in partition_numbers(consumer, &topic, timeout)? {
            let value = retry_without_leader(consumer, || query(consumer, &topic, number))
                .with_context(|| format!("failed to query {topic}[{number}]"))?;
            values.insert(Partition { stream: *stream, number }, value);
        }
    }
    Ok(values)
}

/// Retries a query while the partition has no leader, because it is new or its broker just stopped.
fn retry_without_leader<T>(
    consumer: &BaseConsumer,
    query: impl Fn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    for _ in 0..LEADER_ATTEMPTS {
        match query() {
            Err(error) if has_no_leader(&error) => {
                // Without an assignment, this waits and serves the client's events.
                _ = consumer.poll(LEADER_RETRY);
            }
            result => return result,
        }
    }
    query()
}

fn has_no_leader(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable))
}
