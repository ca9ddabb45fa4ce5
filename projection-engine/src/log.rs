//! The event log: its topics and partitions, the offsets in them, and the records that come from there.

pub mod identity;
mod partition;
mod range;
mod record;
mod record_key;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
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

/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to find a partition's leader.
const LEADER_RETRY: Duration = Duration::from_millis(100);
/// Attempts to find a partition's leader, a [`LEADER_RETRY`] apart.
const LEADER_ATTEMPTS: u32 = 30;

/// Offsets in the log: the next offset of partitions.
pub type Offsets = BTreeMap<Partition, i64>;

/// The offsets that a partition's log has for consumers, from the first up to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The log start offset: 0, unless earlier records were deleted.
    pub start: i64,
    /// The last stable offset. What an open transaction holds back comes after it.
    pub end: i64,
}

/// The log of a namespace.
#[derive(Clone)]
pub struct Log {
    /// Kafka brokers.
    pub brokers: String,
    /// The topics.
    pub topics: Topics,
}

impl Log {
    /// The log of a namespace.
    pub fn new(settings: &config::Log, namespace: &str) -> Self {
        Self { brokers: settings.kafka_brokers.clone(), topics: Topics::new(namespace) }
    }

    /// Returns the end of the log for consumers in each partition of some streams: the last stable offset.
    pub async fn ends(&self, streams: Vec<Stream>) -> anyhow::Result<Offsets> {
        self.ends_within(streams, BROKER_TIMEOUT).await
    }

    /// [`Log::ends`], with a limit on each answer of the broker.
    pub async fn ends_within(&self, streams: Vec<Stream>, timeout: Duration) -> anyhow::Result<Offsets> {
        let end = move |consumer: &BaseConsumer, topic: &str, number| {
            Ok(consumer.fetch_watermarks(topic, number, timeout)?.1)
        };
        self.places(streams, timeout, end).await
    }

    /// Where the log begins and ends now for consumers, in the partitions of some streams.
    pub async fn extents(&self, streams: Vec<Stream>) -> anyhow::Result<BTreeMap<Partition, Extent>> {
        self.places(streams, BROKER_TIMEOUT, |consumer, topic, number| {
            let (start, end) = consumer.fetch_watermarks(topic, number, BROKER_TIMEOUT)?;
            Ok(Extent { start, end })
        })
        .await
    }

    /// Where the first record of a time, in ms since 1970, or later is; the end where there is none.
    pub async fn at_time(&self, streams: Vec<Stream>, time_ms: i64) -> anyhow::Result<Offsets> {
        self.places(streams, BROKER_TIMEOUT, move |consumer, topic, number| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_offset(topic, number, Offset::Offset(time_ms))?;
            let found = consumer.offsets_for_times(asked, BROKER_TIMEOUT)?;
            match found.find_partition(topic, number).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => Ok(offset),
                _ => Ok(consumer.fetch_watermarks(topic, number, BROKER_TIMEOUT)?.1),
            }
        })
        .await
    }

    async fn places<Place, Ask>(
        &self,
        streams: Vec<Stream>,
        timeout: Duration,
        ask: Ask,
    ) -> anyhow::Result<BTreeMap<Partition, Place>>
    where
        Place: Send + 'static,
        Ask: Fn(&BaseConsumer, &str, i32) -> anyhow::Result<Place> + Send + 'static,
    {
        let log = self.clone();
        let asked = spawn_blocking(move || {
            let consumer = log.consumer()?;
            let mut places = BTreeMap::new();
            for stream in streams {
                let topic = log.topics.name(stream);
                let metadata = consumer
                    .fetch_metadata(Some(&topic), timeout)
                    .with_context(|| format!("failed to ask for the partitions of {topic}"))?;
                let numbers: Vec<i32> = metadata
                    .topics()
                    .iter()
                    .flat_map(MetadataTopic::partitions)
                    .map(MetadataPartition::id)
                    .collect();
                ensure!(!numbers.is_empty(), "there is no topic {topic}");
                for number in numbers {
                    let place = patiently(&consumer, || ask(&consumer, &topic, number))
                        .with_context(|| format!("failed to ask about {topic}[{number}]"))?;
                    places.insert(Partition { stream, number }, place);
                }
            }
            Ok(places)
        });
        asked.await.context("asking about the log panicked")?
    }

    /// A consumer without a group's partitions: for reading a range of the log, and for asking the broker about it.
    pub fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            // A group is needed by the client library; nothing is committed and nobody joins.
            .set("group.id", "vidlog-replay")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            // Records of aborted transactions are no events. Watermarks end at the last stable offset as well.
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            // A connection on which nothing moves any more would else be given up after a minute.
            .set("socket.timeout.ms", "6000")
            .set("queued.max.messages.kbytes", "16384")
            .create()
            .context("failed to set up a consumer")
    }
}

/// Asks again while a partition has no leader, as when it is new or its broker has just gone.
fn patiently<T>(consumer: &BaseConsumer, ask: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 0..LEADER_ATTEMPTS {
        match ask() {
            Err(error) if has_no_leader(&error) => {
                // Nothing is assigned: this waits, and serves the client's own events.
                _ = consumer.poll(LEADER_RETRY);
            }
            answered => return answered,
        }
    }
    ask()
}

fn has_no_leader(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<KafkaError>().and_then(KafkaError::rdkafka_error_code);
    matches!(code, Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable))
}
