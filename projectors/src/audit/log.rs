//! Reads the log from its start. It blocks.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::BorrowedMessage,
};
use tokio_util::sync::CancellationToken;
use vidlog_events::{DecodeError, Envelope};

use super::{Model, excluded::Excluded};
use crate::{
    projection::Projection,
    record::decode_message,
    replay::{Log, Places},
    sink::{Partition, RecordKey},
};

/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// What the log says about one projection, up to some places.
pub(super) struct Folding {
    pub(super) projection: Projection,
    pub(super) until: Places,
    pub(super) excluded: Excluded,
    pub(super) model: Model,
}

impl Folding {
    fn take(
        &mut self,
        partition: Partition,
        message: &BorrowedMessage<'_>,
        decoded: &Result<Envelope, DecodeError>,
    ) -> anyhow::Result<()> {
        let offset = message.offset();
        if self.until.get(&partition).is_none_or(|until| offset >= *until)
            || self.excluded.has(partition, offset, || RecordKey::of(message.key()))
        {
            return Ok(());
        }
        match decoded {
            Ok(envelope) => self.model.fold(envelope),
            Err(error) => bail!(
                "{} has passed the record at offset {offset} of {}, which can't be decoded and does not wait: {error}",
                self.projection.name(),
                partition.field()
            ),
        }
        Ok(())
    }
}

/// Folds the log for some projections, each up to its own places, in one reading, unless that is ended. Returns the records
/// that were read.
pub(super) fn fold(log: &Log, foldings: &mut [Folding], ended: &CancellationToken) -> anyhow::Result<usize> {
    let mut ends = Places::new();
    for (partition, until) in foldings.iter().flat_map(|folding| &folding.until) {
        let end = ends.entry(*partition).or_default();
        *end = (*end).max(*until);
    }
    ends.retain(|_, end| *end > 0);
    let consumer = reader(log, &ends)?;

    let mut records = 0;
    let mut heard = Instant::now();
    while !ends.is_empty() {
        ensure!(!ended.is_cancelled(), "the audit was ended");
        let Some(message) = consumer.poll(POLL) else {
            if heard.elapsed() > BROKER_TIMEOUT {
                bail!("the log could not be read on: nothing came for {} s", BROKER_TIMEOUT.as_secs());
            }
            continue;
        };
        let message = message.context("failed to read the log")?;
        heard = Instant::now();
        let Some(stream) = log.topics.stream(message.topic()) else {
            continue;
        };
        let partition = Partition { stream, number: message.partition() };
        let Some(end) = ends.get(&partition).copied().filter(|end| message.offset() < *end) else {
            continue;
        };
        let decoded = decode_message(stream, &message);
        records += 1;
        for folding in &mut *foldings {
            folding.take(partition, &message, &decoded)?;
        }
        if message.offset() + 1 == end {
            ends.remove(&partition);
        }
    }
    Ok(records)
}

/// Reads some partitions from the start; all of them are there up to some ends.
fn reader(log: &Log, ends: &Places) -> anyhow::Result<BaseConsumer> {
    let consumer = log.consumer()?;
    let mut list = TopicPartitionList::new();
    for (partition, end) in ends {
        let topic = log.topics.name(partition.stream);
        let (_, log_end) = consumer
            .fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT)
            .with_context(|| format!("failed to ask where {topic}[{}] ends", partition.number))?;
        ensure!(
            *end <= log_end,
            "a view stands at {end} in {}, but the log ends at {log_end}",
            partition.field()
        );
        list.add_partition_offset(&topic, partition.number, Offset::Beginning)?;
    }
    consumer.assign(&list).context("failed to read the log")?;
    Ok(consumer)
}
