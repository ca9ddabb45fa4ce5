//! Appends undecodable records to the log.

use std::time::Duration;

use futures::future::join_all;
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use uuid::Uuid;
use vidlog_events::{ConversationId, Stream, Topics, UserId};

use crate::{
    fault::{BadRecords, Defect},
    ledger::{Command, Kind, LogPosition, Outcome},
    system::System,
};

/// Ids of videos that bad records may have, uploaded yet or not.
const VIDEOS: usize = 12;
/// Videos with likes and comments.
const LIKED_VIDEOS: usize = 4;
/// Unregistered callers that follow others, the first by their ids.
const UNREGISTERED: usize = 20;

/// Appends bad records through a direct connection; retries while Kafka is down.
pub(crate) struct BadRecordProducer {
    producer: FutureProducer,
    topics: Topics,
}

impl BadRecordProducer {
    /// A producer for a system's topics.
    pub(crate) fn new(system: &System) -> anyhow::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &system.log.kafka_brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            // The records follow each other directly.
            .set("linger.ms", "20")
            .set("delivery.timeout.ms", "20000")
            .create()?;
        Ok(Self { producer, topics: Topics::new(&system.stores.namespace) })
    }

    /// Appends the records; each counts as a command.
    pub(crate) async fn append(&self, records: &BadRecords, users: &[i64]) -> Vec<Command> {
        let topic = self.topics.name(records.stream);
        let key = key(records.stream, records.entity, users);
        let appended = (0..records.count).map(async |_| {
            let id = Uuid::now_v7().to_string();
            let mut record = FutureRecord::<str, [u8]>::to(&topic).key(&key).headers(headers(records, &id));
            record.payload = value(records.defect);
            let outcome = match self.producer.send(record, Duration::ZERO).await {
                Ok(delivery) => Outcome::Acknowledged(Some(LogPosition {
                    stream: records.stream.to_string(),
                    partition: delivery.partition,
                    offset: delivery.offset,
                })),
                Err(_) => Outcome::Unknown,
            };
            Command { id, kind: Kind::BadRecord, attempts: 1, outcome }
        });
        join_all(appended).await
    }
}

fn headers(records: &BadRecords, id: &str) -> OwnedHeaders {
    let name = match records.defect {
        Defect::UnknownType => Some("no-such-type"),
        Defect::BrokenValue | Defect::NoValue => Some(type_name(records.stream)),
        Defect::NoType => None,
    };
    let own = [("ce_id", id), ("ce_time", "2026-01-01T00:00:00Z"), ("ce_correlationid", id)];
    let all = own.into_iter().chain(name.map(|name| ("ce_type", name)));
    all.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

const fn value(defect: Defect) -> Option<&'static [u8]> {
    match defect {
        Defect::NoValue => None,
        Defect::UnknownType | Defect::BrokenValue | Defect::NoType => Some(b"{\"broken\":"),
    }
}

const fn type_name(stream: Stream) -> &'static str {
    match stream {
        Stream::Users => "user-registered",
        Stream::Videos => "video-published",
        Stream::Likes => "video-liked",
        Stream::Follows => "user-followed",
        Stream::Comments => "comment-posted",
        Stream::Messages => "message-sent",
    }
}

/// The key of an existing entity, so that its later events are parked.
fn key(stream: Stream, entity: usize, users: &[i64]) -> String {
    let user = |number: usize| users.get(number % users.len().max(1)).copied().unwrap_or(1);
    match stream {
        Stream::Videos => (entity % VIDEOS + 1).to_string(),
        Stream::Likes | Stream::Comments => (entity % LIKED_VIDEOS + 1).to_string(),
        Stream::Follows if entity.is_multiple_of(2) => (entity % UNREGISTERED + 1).to_string(),
        Stream::Users | Stream::Follows => user(entity).to_string(),
        Stream::Messages => {
            let ids = UserId::new(user(entity)).zip(UserId::new(user(entity / 10 + entity % 10 + 1)));
            ids.map_or_else(String::new, |(one, other)| ConversationId::of(one, other).to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::message::Headers;
    use vidlog_events::decode;

    use super::*;

    #[test]
    fn every_defect_is_undecodable_in_every_stream() {
        for (stream, defect) in
            Stream::ALL.into_iter().flat_map(|stream| Defect::ALL.map(|defect| (stream, defect)))
        {
            let records = BadRecords { stream, entity: 0, count: 1, defect, discard_after: None, kill: None };
            let headers = headers(&records, &Uuid::now_v7().to_string());
            let header = |name: &str| headers.iter().find(|header| header.key == name)?.value;
            let error = decode(stream, header, value(defect).unwrap_or_default()).unwrap_err().to_string();
            let expected = match defect {
                Defect::UnknownType => "has no event type",
                Defect::BrokenValue | Defect::NoValue => "the payload is not a",
                Defect::NoType => "has no header ce_type",
            };
            assert!(error.contains(expected), "{stream} {defect}: {error}");
        }
    }

    #[test]
    fn keys_belong_to_existing_entities() {
        let users = [1_000, 1_001, 1_002];
        let keys = |stream| (0..100).map(move |entity| key(stream, entity, &users));
        assert!(keys(Stream::Users).all(|key| users.contains(&key.parse().unwrap())));
        assert!(keys(Stream::Likes).all(|key| (1..=4).contains(&key.parse().unwrap())));
        assert!(keys(Stream::Messages).any(|key| key == "1000-1001"));
    }
}
