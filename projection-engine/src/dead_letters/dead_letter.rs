//! The format of dead letters: the unchanged record, with headers for its origin and its failure.
//!
//! A record that the dead-letter topic refuses, because it is too large without the compression of its origin, is only
//! referred to: its dead letter has no content, and [`OriginRecord::load`] reads the record at its origin.

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
use thiserror::Error;

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
/// Where the record's content is: [`INLINE`] or [`AT_ORIGIN`].
const CONTENT: &str = "dead_letter_content";
/// The text of the record's key, if the content is at the origin.
const KEY: &str = "dead_letter_key";
const INLINE: &str = "inline";
const AT_ORIGIN: &str = "origin";

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
    /// The message: the record's key, value and headers, and the dead-letter headers. Without the record's parts if its
    /// content is at the origin.
    pub message: OwnedMessage,
    /// The record's key, if the message lacks it.
    key: Option<RecordKey>,
}

/// The origin record of a dead letter was deleted from the log.
#[derive(Debug, Error)]
#[error(
    "the dead letter refers to the record at offset {offset} of {partition}, which was too large for the dead-letter topic \
     and is no longer in the log; discard it"
)]
pub struct OriginDeleted {
    partition: String,
    offset: i64,
}

impl DeadLetter {
    /// The record's key.
    pub fn key(&self) -> RecordKey {
        self.key.clone().unwrap_or_else(|| RecordKey::of(self.message.key()))
    }

    /// Whether the dead letter only refers to the record.
    pub const fn is_reference(&self) -> bool {
        self.key.is_some()
    }

    /// The record in the log.
    pub const fn origin(&self) -> OriginRecord {
        OriginRecord { offset: self.offset }
    }

    fn read(message: OwnedMessage) -> Option<Self> {
        let header = |name: &str| {
            let headers = message.headers()?;
            // The last header of a name: the record's own headers come first, and may be of an earlier dead letter.
            let found = headers.iter().filter(|header| header.key == name).last()?;
            str::from_utf8(found.value?).ok().map(str::to_owned)
        };
        let failure = Failure::new(header(CLASS)?.parse().ok()?, &header(MESSAGE)?);
        let is_at_origin = header(CONTENT).is_some_and(|content| content == AT_ORIGIN);
        let key = header(KEY).filter(|_| is_at_origin).map(|key| RecordKey::from_text(&key));
        Some(Self {
            projection: header(PROJECTION)?,
            offset: header(OFFSET)?.parse().ok()?,
            failure,
            key,
            message,
        })
    }
}

/// A record of the log that a dead letter refers to.
#[derive(Clone, Copy, Debug)]
pub struct OriginRecord {
    offset: i64,
}

impl OriginRecord {
    /// Reads the record from its partition. Blocks.
    pub fn load(
        self,
        log: &Log,
        partition: Partition,
    ) -> anyhow::Result<Result<OwnedMessage, OriginDeleted>> {
        let deleted = || OriginDeleted { partition: partition.id(), offset: self.offset };
        let topic = log.topics.name(partition.stream);
        let (start, _) = log
            .consumer()?
            .fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT)
            .with_context(|| format!("failed to fetch the watermarks of {topic}[{}]", partition.number))?;
        if self.offset < start {
            return Ok(Err(deleted()));
        }
        let ranges = Ranges::from([(partition, self.offset..self.offset + 1)]);
        let mut origin = None;
        log.read(
            Source::Events,
            &ranges,
            || false,
            |_, item| {
                if let Item::Record(message) = item {
                    origin = Some(message.detach());
                }
                Ok(ControlFlow::Continue(()))
            },
        )
        .with_context(|| {
            format!("failed to read the record at offset {} of {}", self.offset, partition.id())
        })?;
        Ok(origin.filter(|message| message.offset() == self.offset).ok_or_else(deleted))
    }
}

/// The origin of a dead letter.
pub(super) struct Origin<'a> {
    /// The projection that could not fold the record.
    pub(super) projection: &'a str,
    /// The topic of the record.
    pub(super) topic: &'a str,
    /// The number of its partition.
    pub(super) partition: i32,
    /// Its offset.
    pub(super) offset: i64,
}

/// Returns the headers of a dead letter with the record's content: the record's own, then those for its origin and failure.
pub(super) fn headers(
    own: Option<&impl Headers>,
    origin: &Origin<'_>,
    failure: &Failure,
    now_ms: i64,
) -> OwnedHeaders {
    let own = own.into_iter().flat_map(Headers::iter).fold(OwnedHeaders::new(), OwnedHeaders::insert);
    origin_headers(own, origin, failure, now_ms).insert(Header { key: CONTENT, value: Some(INLINE) })
}

/// Returns the headers of a dead letter that refers to a record of a key.
pub(super) fn reference_headers(
    key: &RecordKey,
    origin: &Origin<'_>,
    failure: &Failure,
    now_ms: i64,
) -> OwnedHeaders {
    origin_headers(OwnedHeaders::new(), origin, failure, now_ms)
        .insert(Header { key: CONTENT, value: Some(AT_ORIGIN) })
        .insert(Header { key: KEY, value: Some(key.as_str()) })
}

fn origin_headers(
    headers: OwnedHeaders,
    origin: &Origin<'_>,
    failure: &Failure,
    now_ms: i64,
) -> OwnedHeaders {
    let origin_headers = [
        (PROJECTION, origin.projection),
        (TOPIC, origin.topic),
        (PARTITION, &origin.partition.to_string()),
        (OFFSET, &origin.offset.to_string()),
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
                && let Some(dead_letter) = DeadLetter::read(message.detach())
                && dead_letter.projection == projection
            {
                visit(dead_letter);
            }
            Ok(ControlFlow::Continue(()))
        },
    )
    .with_context(|| format!("failed to read {}", log.topics.dead_letters(partition.stream)))
}

/// Reads the dead-letter history of a partition. Blocks.
pub fn history(log: &Log, projection: &str, partition: Partition) -> anyhow::Result<DeadLetterHistory> {
    let mut history = DeadLetterHistory::default();
    read(log, projection, partition, |dead_letter| match dead_letter.failure.class {
        Class::Discarded => _ = history.discards.insert(dead_letter.offset),
        Class::Undecodable | Class::Unfoldable => _ = history.failed.insert(dead_letter.offset),
        Class::Behind => {
            // A record that is only referred to is not read: at worst, another failure of it does not count.
            if dead_letter.is_reference() || decode_message(partition.stream, &dead_letter.message).is_err() {
                history.failed.insert(dead_letter.offset);
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
    let mut dead_letters = BTreeMap::new();
    let mut discards = Discards::new();
    read(log, projection, partition, |dead_letter| {
        if dead_letter.failure.class == Class::Discarded {
            discards.insert(dead_letter.offset);
        } else if is_match(&dead_letter) {
            dead_letters.insert(dead_letter.offset, dead_letter);
        }
    })?;
    Ok((dead_letters, discards))
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
