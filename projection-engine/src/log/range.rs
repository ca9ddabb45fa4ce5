//! Reads ranges of the log: the records of partitions from an offset up to an end.
//!
//! The last offset before the end need not hold a record that a consumer receives: it may hold a transaction marker
//! or a record of an aborted transaction, or have been removed by `DeleteRecords`, retention or compaction. So a
//! partition is read when the *consumer's position* has reached the end, not when the record before the end arrives.
//! The consumer moves its position past offsets that it does not return, and reports the end of a partition; the
//! reader checks the position then.

use std::{
    collections::BTreeMap,
    ops::{ControlFlow, Range},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio::task::spawn_blocking;
use vidlog_events::Stream;

use super::{BROKER_TIMEOUT, Log, Partition};

/// Growth factor of the range that is searched for the last record before an offset.
const LOOK_BACK: i64 = 100;

/// Interval between two checks for cancellation.
const POLL: Duration = Duration::from_millis(100);

/// The offsets to read, by partition.
pub type Ranges = BTreeMap<Partition, Range<i64>>;

/// The topics to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The streams' topics.
    Events,
    /// The dead-letter topics.
    DeadLetters,
}

/// The next item of a partition.
pub enum Item<'a> {
    /// A record.
    Record(&'a BorrowedMessage<'a>),
    /// The end of the range: consumers receive no further record before it.
    End,
}

impl Log {
    /// Returns the time of the last record before an offset, in ms since 1970; `None` if the log has none there.
    pub async fn time_before(&self, partition: Partition, offset: i64) -> anyhow::Result<Option<i64>> {
        let log = self.clone();
        let task = spawn_blocking(move || {
            let topic = log.topics.name(partition.stream);
            let (start, _) = log.consumer()?.fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT)?;
            // The last offsets may hold no record, so the range grows until it has one.
            let mut size = 1;
            loop {
                let range = start.max(offset.saturating_sub(size))..offset;
                let is_all = range.start == start;
                let mut time = None;
                log.read(
                    Source::Events,
                    &Ranges::from([(partition, range)]),
                    || false,
                    |_, item| {
                        if let Item::Record(message) = item {
                            time = message.timestamp().to_millis();
                        }
                        Ok(ControlFlow::Continue(()))
                    },
                )?;
                if time.is_some() || is_all {
                    return Ok(time);
                }
                size *= LOOK_BACK;
            }
        });
        let time: anyhow::Result<_> = task.await.context("reading the log panicked")?;
        time.with_context(|| {
            format!("failed to read the time of the last record of {} before {offset}", partition.id())
        })
    }

    /// Reads ranges to their ends, and visits each record and each end. A visit that breaks skips the rest of its
    /// partition. Blocks; returns early, without an error, once `is_cancelled` holds. Fails if the broker sends nothing for
    /// 10 s.
    pub fn read(
        &self,
        source: Source,
        ranges: &Ranges,
        is_cancelled: impl Fn() -> bool,
        mut visit: impl FnMut(Partition, Item<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let (empty, left): (Vec<_>, Vec<_>) = ranges.iter().partition(|(_, range)| range.is_empty());
        for (partition, _) in empty {
            _ = visit(*partition, Item::End)?;
        }
        if left.is_empty() {
            return Ok(());
        }
        let left = left.into_iter().map(|(partition, range)| (*partition, range.clone())).collect();
        let consumer = self.consumer()?;
        let mut reader = Reader::assign(&consumer, self, source, left)?;
        while !reader.left.is_empty() && !is_cancelled() {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let Some((partition, end)) = reader.find(&message) else {
                        continue;
                    };
                    let offset = message.offset();
                    let is_done = offset < end && visit(partition, Item::Record(&message))?.is_break();
                    if is_done {
                        reader.left.remove(&partition);
                    } else if offset + 1 >= end {
                        reader.left.remove(&partition);
                        _ = visit(partition, Item::End)?;
                    }
                    // The visit may have taken long.
                    reader.last_progress = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(_))) | None => {
                    for partition in reader.take_passed(&consumer)? {
                        _ = visit(partition, Item::End)?;
                    }
                    reader.check_silence()?;
                }
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    bail!("the next records were deleted from the log during the read; run this again")
                }
                Some(Err(error)) => return Err(error).context("failed to read the log"),
            }
        }
        Ok(())
    }
}

/// The partitions that are not at their ends yet.
struct Reader {
    /// The streams by their topics' names.
    streams: BTreeMap<String, Stream>,
    left: Ranges,
    positions: TopicPartitionList,
    last_progress: Instant,
}

impl Reader {
    fn assign(consumer: &BaseConsumer, log: &Log, source: Source, left: Ranges) -> anyhow::Result<Self> {
        let topic = |stream| match source {
            Source::Events => log.topics.name(stream),
            Source::DeadLetters => log.topics.dead_letters(stream),
        };
        let mut list = TopicPartitionList::new();
        for (partition, range) in &left {
            list.add_partition_offset(
                &topic(partition.stream),
                partition.number,
                Offset::Offset(range.start),
            )?;
        }
        consumer.assign(&list).context("failed to read the log")?;
        let streams = left.keys().map(|partition| (topic(partition.stream), partition.stream)).collect();
        let (positions, last_progress) = (TopicPartitionList::new(), Instant::now());
        Ok(Self { streams, left, positions, last_progress })
    }

    /// Returns the partition of a message and the end of its range, unless the partition is at its end.
    fn find(&self, message: &BorrowedMessage<'_>) -> Option<(Partition, i64)> {
        let partition =
            Partition { stream: *self.streams.get(message.topic())?, number: message.partition() };
        Some((partition, self.left.get(&partition)?.end))
    }

    /// Removes the partitions of which the consumer has passed the end.
    fn take_passed(&mut self, consumer: &BaseConsumer) -> anyhow::Result<Vec<Partition>> {
        let positions = consumer.position().context("failed to read the log")?;
        if positions != self.positions {
            // Transaction markers and aborted records move it without a message.
            self.last_progress = Instant::now();
        }
        let mut passed = Vec::new();
        for (topic, stream) in &self.streams {
            for found in positions.elements_for_topic(topic) {
                let partition = Partition { stream: *stream, number: found.partition() };
                if let (Some(range), Offset::Offset(next)) = (self.left.get(&partition), found.offset())
                    && next >= range.end
                {
                    self.left.remove(&partition);
                    passed.push(partition);
                }
            }
        }
        self.positions = positions;
        Ok(passed)
    }

    /// Fails if there was no progress for [`BROKER_TIMEOUT`].
    fn check_silence(&self) -> anyhow::Result<()> {
        let Some((partition, range)) = self.left.iter().next() else {
            return Ok(());
        };
        if self.last_progress.elapsed() > BROKER_TIMEOUT {
            bail!(
                "the broker sent nothing for {} s; incomplete partitions: {}, such as {} with end {}",
                BROKER_TIMEOUT.as_secs(),
                self.left.len(),
                partition.id(),
                range.end
            );
        }
        Ok(())
    }
}
