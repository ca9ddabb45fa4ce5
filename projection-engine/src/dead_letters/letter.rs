//! The format of dead letters: the unchanged record, with headers for its origin and its failure.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use anyhow::Context;
use rdkafka::{
    Message,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, Headers, OwnedHeaders, OwnedMessage},
    metadata::MetadataTopic,
};

use crate::{
    log::{Item, Log, Partition, Ranges, RecordKey, Source, decode_message},
    store::{Class, Failure},
};

const PROJECTION: &str = "dead_letter_projection";
const TOPIC: &str = "dead_letter_topic";
const PARTITION: &str = "dead_letter_partition";
const OFFSET: &str = "dead_letter_offset";
const CLASS: &str = "dead_letter_class";
const MESSAGE: &str = "dead_letter_message";
const TIME: &str = "dead_letter_time_ms";

/// Timeout for a response of the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two attempts to find a partition's leader.
const RETRY: Duration = Duration::from_millis(100);

/// The offsets of a partition that an operator discarded.
pub type Discards = BTreeSet<i64>;

/// The offsets of a partition's records that failed or were discarded before.
#[derive(Debug, Default)]
pub struct DeadLetterHistory {
    /// Discarded records, which the projection skips.
    pub discards: Discards,
    /// Records that could not be decoded or folded.
    pub failed: BTreeSet<i64>,
}

/// A dead letter.
#[derive(Debug)]
pub struct DeadLetter {
    /// The projection that could not fold the record. Each projection has its own dead letters.
    pub projection: String,
    /// The offset of the record in its partition of the stream's topic.
    pub offset: i64,
    /// Why the record is a dead letter.
    pub failure: Failure,
    /// The message: the record's key, value and headers, and the dead-letter headers.
    pub message: OwnedMessage,
}

impl DeadLetter {
    /// The record's key.
    pub fn key(&self) -> RecordKey {
        RecordKey::of(self.message.key())
    }

    fn read(message: OwnedMessage) -> Option<Self> {
        let header = |name: &str| {
            let headers = message.headers()?;
            // The last header of a name: the record's own headers come first, and may be of an earlier dead letter.
            let found = headers.iter().filter(|header| header.key == name).last()?;
            str::from_utf8(found.value?).ok().map(str::to_owned)
        };
        let failure = Failure::new(header(CLASS)?.parse().ok()?, &header(MESSAGE)?);
        Some(Self {
            projection: header(PROJECTION)?,
            offset: header(OFFSET)?.parse().ok()?,
            failure,
            message,
        })
    }
}

/// Returns the headers of a dead letter: the record's own, then those for its origin and failure.
pub fn headers(
    own: Option<&impl Headers>,
    projection: &str,
    origin: (&str, i32, i64),
    failure: &Failure,
    now_ms: i64,
) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    for header in own.into_iter().flat_map(Headers::iter) {
        headers = headers.insert(header);
    }
    let (topic, partition, offset) = origin;
    let origin_headers = [
        (PROJECTION, projection),
        (TOPIC, topic),
        (PARTITION, &partition.to_string()),
        (OFFSET, &offset.to_string()),
        (CLASS, failure.class.name()),
        (MESSAGE, &failure.message),
        (TIME, &now_ms.to_string()),
    ];
    origin_headers
        .into_iter()
        .fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// Visits a projection's dead letters of a partition, up to the current end. Blocks.
pub fn read(
    log: &Log,
    projection: &str,
    partition: Partition,
    mut visit: impl FnMut(DeadLetter),
) -> anyhow::Result<()> {
    let consumer = log.consumer()?;
    let Some((begin, end)) = extent(&consumer, log, partition)? else {
        return Ok(());
    };
    let ranges = Ranges::from([(partition, begin..end)]);
    log.read(
        Source::DeadLetters,
        &ranges,
        || false,
        |_, item| {
            if let Item::Record(message) = item
                && let Some(letter) = DeadLetter::read(message.detach())
                && letter.projection == projection
            {
                visit(letter);
            }
            Ok(ControlFlow::Continue(()))
        },
    )
    .with_context(|| format!("failed to read {}", log.topics.dead_letters(partition.stream)))
}

/// Reads the dead-letter history of a partition. Blocks.
pub fn history(log: &Log, projection: &str, partition: Partition) -> anyhow::Result<DeadLetterHistory> {
    let mut history = DeadLetterHistory::default();
    read(log, projection, partition, |letter| match letter.failure.class {
        Class::Discarded => _ = history.discards.insert(letter.offset),
        Class::Undecodable | Class::Unfoldable => _ = history.failed.insert(letter.offset),
        Class::Behind => {
            if decode_message(partition.stream, &letter.message).is_err() {
                history.failed.insert(letter.offset);
            }
        }
    })?;
    Ok(history)
}

/// Returns the dead letters of a partition that match a filter, by offset without duplicates, and the discards.
/// Blocks.
pub fn waiting(
    log: &Log,
    projection: &str,
    partition: Partition,
    is_match: impl Fn(&DeadLetter) -> bool,
) -> anyhow::Result<(BTreeMap<i64, DeadLetter>, Discards)> {
    let mut letters = BTreeMap::new();
    let mut discards = Discards::new();
    read(log, projection, partition, |letter| {
        if letter.failure.class == Class::Discarded {
            discards.insert(letter.offset);
        } else if is_match(&letter) {
            letters.insert(letter.offset, letter);
        }
    })?;
    Ok((letters, discards))
}

/// Returns the watermarks of a partition's dead letters; `None` if there are none. Blocks.
pub fn extent(
    consumer: &BaseConsumer,
    log: &Log,
    partition: Partition,
) -> anyhow::Result<Option<(i64, i64)>> {
    let topic = log.topics.dead_letters(partition.stream);
    let metadata = consumer
        .fetch_metadata(Some(&topic), BROKER_TIMEOUT)
        .with_context(|| format!("failed to fetch the metadata of {topic}"))?;
    let has_partition = |found: &MetadataTopic| {
        found.error().is_none() && found.partitions().iter().any(|found| found.id() == partition.number)
    };
    if !metadata.topics().iter().any(has_partition) {
        return Ok(None);
    }
    let deadline = Instant::now() + BROKER_TIMEOUT;
    let (begin, end) = loop {
        match consumer.fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT) {
            // The partitions of a new topic get their leaders one by one.
            Err(error) if has_no_leader(&error) && Instant::now() < deadline => _ = consumer.poll(RETRY),
            watermarks => {
                let failed = || format!("failed to fetch the watermarks of {topic}[{}]", partition.number);
                break watermarks.with_context(failed)?;
            }
        }
    };
    Ok((begin < end).then_some((begin, end)))
}

fn has_no_leader(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable)
    )
}
