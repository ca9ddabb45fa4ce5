//! A dead letter: the record as it was, with where it is from and what was wrong in headers.

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

/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether something has come.
const POLL: Duration = Duration::from_millis(100);

/// The offsets of a partition that an operator decided to pass over.
pub type Discards = BTreeSet<i64>;

/// What became of records of a partition before, by their offsets.
#[derive(Debug, Default)]
pub struct DeadLetterHistory {
    /// Those that are to be passed over.
    pub discards: Discards,
    /// Those that could not be folded, or read.
    pub failed: BTreeSet<i64>,
}

/// A dead letter.
#[derive(Debug)]
pub struct DeadLetter {
    /// Whose it is: each projection has its own.
    pub projection: String,
    /// Where the record is in its topic.
    pub offset: i64,
    /// Why it is here.
    pub failure: Failure,
    /// The record: its key, its value, and among the headers its own.
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
            // The last of a name: a record may be here that was a dead letter before.
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

/// The headers of a letter: the record's own, and those that say where it is from.
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
    let more = [
        (PROJECTION, projection),
        (TOPIC, topic),
        (PARTITION, &partition.to_string()),
        (OFFSET, &offset.to_string()),
        (CLASS, failure.class.name()),
        (MESSAGE, &failure.message),
        (TIME, &now_ms.to_string()),
    ];
    more.into_iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// Reads the letters that a projection has of a partition, up to what is there now. It blocks.
pub fn read(
    log: &Log,
    projection: &str,
    partition: Partition,
    mut take: impl FnMut(DeadLetter),
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
                take(letter);
            }
            Ok(ControlFlow::Continue(()))
        },
    )
    .with_context(|| format!("failed to read {}", log.topics.dead_letters(partition.stream)))
}

/// What became of records of a partition before. It blocks.
pub fn past(log: &Log, projection: &str, partition: Partition) -> anyhow::Result<DeadLetterHistory> {
    let mut past = DeadLetterHistory::default();
    read(log, projection, partition, |letter| match letter.failure.class {
        Class::Discarded => _ = past.discards.insert(letter.offset),
        Class::Undecodable | Class::Unfoldable => _ = past.failed.insert(letter.offset),
        Class::Behind => {
            if decode_message(partition.stream, &letter.message).is_err() {
                past.failed.insert(letter.offset);
            }
        }
    })?;
    Ok(past)
}

/// The letters that are wanted of a partition, by offset, each record once; and what is to be passed over. It blocks.
pub fn waiting(
    log: &Log,
    projection: &str,
    partition: Partition,
    is_wanted: impl Fn(&DeadLetter) -> bool,
) -> anyhow::Result<(BTreeMap<i64, DeadLetter>, Discards)> {
    let mut letters = BTreeMap::new();
    let mut discards = Discards::new();
    read(log, projection, partition, |letter| {
        if letter.failure.class == Class::Discarded {
            discards.insert(letter.offset);
        } else if is_wanted(&letter) {
            letters.insert(letter.offset, letter);
        }
    })?;
    Ok((letters, discards))
}

/// Where the dead letters of a partition begin and end; `None` if there are none. It blocks.
pub fn extent(
    consumer: &BaseConsumer,
    log: &Log,
    partition: Partition,
) -> anyhow::Result<Option<(i64, i64)>> {
    let topic = log.topics.dead_letters(partition.stream);
    let metadata = consumer
        .fetch_metadata(Some(&topic), BROKER_TIMEOUT)
        .with_context(|| format!("failed to ask for the partitions of {topic}"))?;
    let has_it = |found: &MetadataTopic| {
        found.error().is_none() && found.partitions().iter().any(|found| found.id() == partition.number)
    };
    if !metadata.topics().iter().any(has_it) {
        return Ok(None);
    }
    let deadline = Instant::now() + BROKER_TIMEOUT;
    let (begin, end) = loop {
        match consumer.fetch_watermarks(&topic, partition.number, BROKER_TIMEOUT) {
            // The topic was just created: its partitions get their leaders one by one.
            Err(error) if has_no_leader(&error) && Instant::now() < deadline => _ = consumer.poll(POLL),
            told => {
                let failed = || format!("failed to ask where {topic}[{}] ends", partition.number);
                break told.with_context(failed)?;
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
