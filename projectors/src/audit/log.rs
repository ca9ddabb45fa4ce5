//! Reads the log from its start to its end. It blocks.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    metadata::{MetadataPartition, MetadataTopic},
};
use vidlog_events::{Stream, Topics};

use super::Model;
use crate::{projection::Projection, record::decode_message, sink::Partition};

/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the log ends: the offset after the last record of each partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd(BTreeMap<Partition, i64>);

impl LogEnd {
    /// All records before the end.
    pub fn records(&self) -> usize {
        self.0.values().map(|end| usize::try_from(*end).unwrap_or_default()).sum()
    }

    /// The ends of the partitions that a projection folds.
    pub fn of(&self, projection: &Projection) -> impl Iterator<Item = (Partition, i64)> {
        let streams: Vec<Stream> = projection.streams().collect();
        self.0
            .iter()
            .filter(move |(partition, _)| streams.contains(&partition.stream))
            .map(|(partition, end)| (*partition, *end))
    }
}

/// Where the log ends now.
pub(super) fn end(brokers: &str, topics: &Topics) -> anyhow::Result<LogEnd> {
    end_with(&consumer(brokers)?, topics)
}

/// Folds the whole log; returns the state and where it ended.
pub(super) fn fold(brokers: &str, topics: &Topics) -> anyhow::Result<(Model, LogEnd)> {
    let consumer = consumer(brokers)?;
    let end = end_with(&consumer, topics)?;
    let mut missing: BTreeMap<Partition, i64> =
        end.0.iter().filter(|(_, end)| **end > 0).map(|(partition, end)| (*partition, *end)).collect();
    let mut list = TopicPartitionList::new();
    for partition in missing.keys() {
        list.add_partition_offset(&topics.name(partition.stream), partition.number, Offset::Beginning)?;
    }
    consumer.assign(&list).context("failed to read the log")?;

    let mut model = Model::default();
    let mut heard = Instant::now();
    while !missing.is_empty() {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            if heard.elapsed() > BROKER_TIMEOUT {
                bail!(
                    "the log could not be read to its end: nothing came for {} s",
                    BROKER_TIMEOUT.as_secs()
                );
            }
            continue;
        };
        let message = message.context("failed to read the log")?;
        heard = Instant::now();
        let Some(stream) = topics.stream(message.topic()) else {
            continue;
        };
        let partition = Partition { stream, number: message.partition() };
        if missing.get(&partition).is_none_or(|end| message.offset() >= *end) {
            continue;
        }
        let envelope = decode_message(stream, &message)
            .with_context(|| format!("{} at offset {}", partition.field(), message.offset()))?;
        model.fold(&envelope);
        if missing.get(&partition) == Some(&(message.offset() + 1)) {
            missing.remove(&partition);
        }
    }
    Ok((model, end))
}

fn consumer(brokers: &str) -> anyhow::Result<BaseConsumer> {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        // A group is needed by the client library; nothing is committed and nobody joins.
        .set("group.id", "vidlog-audit")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .create()
        .context("failed to set up a consumer")
}

fn end_with(consumer: &BaseConsumer, topics: &Topics) -> anyhow::Result<LogEnd> {
    let mut ends = BTreeMap::new();
    for stream in Stream::ALL {
        let topic = topics.name(stream);
        let metadata = consumer
            .fetch_metadata(Some(&topic), BROKER_TIMEOUT)
            .context("failed to ask for the log's partitions")?;
        let partitions =
            metadata.topics().iter().flat_map(MetadataTopic::partitions).map(MetadataPartition::id);
        for number in partitions {
            let (_, end) = consumer
                .fetch_watermarks(&topic, number, BROKER_TIMEOUT)
                .with_context(|| format!("failed to ask where {topic}[{number}] ends"))?;
            ends.insert(Partition { stream, number }, end);
        }
    }
    Ok(LogEnd(ends))
}
