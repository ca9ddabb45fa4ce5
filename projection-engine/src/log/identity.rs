//! Which log it is: a partition is known by its first record, whose id no other log has.
//!
//! A store remembers it beside its views. So a view is not folded on from another cluster, nor from a topic that was made
//! again under the same name, even where that is long enough.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaResult,
    message::Headers,
};

use crate::log::{Log, Partition};

/// How long what was read stays true: projections that start one after the other ask once. A topic that is made again
/// while a process runs makes its consumers start anew, later than this.
const KEPT: Duration = Duration::from_secs(2);
/// How long the broker may take to send the first records.
const TIMEOUT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// The header with the event's id.
const ID: &str = "ce_id";

/// Reads the first records of partitions, for all projections of a process.
pub struct FirstRecords {
    log: Log,
    known: Mutex<HashMap<Partition, (Instant, String)>>,
}

impl FirstRecords {
    /// The first records of a log.
    pub fn new(log: Log) -> Self {
        Self { log, known: Mutex::default() }
    }

    /// What identifies each of some partitions, which have a record at offset 0; nothing of those that do not answer in
    /// time. It blocks.
    pub fn of(&self, partitions: &[Partition]) -> KafkaResult<Vec<Option<String>>> {
        self.known().retain(|_, (at, _)| at.elapsed() < KEPT);
        let mut known = self.known().clone();
        let unknown: Vec<_> =
            partitions.iter().filter(|partition| !known.contains_key(partition)).copied().collect();
        if !unknown.is_empty() {
            let now = Instant::now();
            // Unlocked: the broker may answer other projections faster than this one.
            known.extend(self.read(&unknown)?.into_iter().map(|(partition, id)| (partition, (now, id))));
            self.known().extend(known.clone());
        }
        let identity = |partition| known.get(partition).map(|(_, identity): &(_, String)| identity.clone());
        Ok(partitions.iter().map(identity).collect())
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Partition, (Instant, String)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, partitions: &[Partition]) -> KafkaResult<HashMap<Partition, String>> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.log.brokers)
            // A group is needed by the client library; nothing is committed and nobody joins.
            .set("group.id", "vidlog-first-records")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("socket.timeout.ms", "6000")
            // One batch of each is all that is wanted.
            .set("queued.min.messages", "1")
            .create()?;
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            let topic = self.log.topics.name(partition.stream);
            list.add_partition_offset(&topic, partition.number, Offset::Offset(0))?;
        }
        consumer.assign(&list)?;
        let mut found = HashMap::new();
        let begun = Instant::now();
        while found.len() < partitions.len() && begun.elapsed() < TIMEOUT {
            let Some(Ok(message)) = consumer.poll(POLL) else {
                continue;
            };
            if let Some(stream) = self.log.topics.stream(message.topic())
                && message.offset() == 0
            {
                let partition = Partition { stream, number: message.partition() };
                found.insert(partition, identity(&message));
            }
        }
        Ok(found)
    }
}

/// What identifies a partition, by its first record.
pub fn identity<M: Message>(message: &M) -> String {
    let id = message.headers().and_then(|headers| headers.iter().find(|header| header.key == ID)?.value);
    match id.and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        // No event of ours. Its time is enough to tell it from the first record of another log.
        None => format!("{:?}", message.timestamp()),
    }
}
