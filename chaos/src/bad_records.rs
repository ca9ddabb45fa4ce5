//! Records that can't be decoded, put straight into the log.

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
    fault::{Form, Poison},
    ledger::{Command, Kind, Outcome, Place},
    system::System,
};

/// Videos of which a record may come, also before they are made.
const VIDEOS: usize = 12;
/// Videos that are liked and commented on.
const SEEN_VIDEOS: usize = 4;
/// Strangers that follow others, the first by their ids.
const STRANGERS: usize = 20;

/// Puts them there. It reaches the log directly, and waits while that is away.
pub(crate) struct Poisoner {
    producer: FutureProducer,
    topics: Topics,
}

impl Poisoner {
    /// A poisoner of a system.
    pub(crate) fn new(system: &System) -> anyhow::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &system.log.kafka_brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            // They come one right after the other.
            .set("linger.ms", "20")
            .set("delivery.timeout.ms", "20000")
            .create()?;
        Ok(Self { producer, topics: Topics::new(&system.stores.namespace) })
    }

    /// Appends the records, each as a command of its own.
    pub(crate) async fn append(&self, poison: &Poison, users: &[i64]) -> Vec<Command> {
        let topic = self.topics.name(poison.stream);
        let key = key(poison.stream, poison.entity, users);
        let appended = (0..poison.records).map(async |_| {
            let id = Uuid::now_v7().to_string();
            let mut record = FutureRecord::<str, [u8]>::to(&topic).key(&key).headers(headers(poison, &id));
            record.payload = value(poison.form);
            let outcome = match self.producer.send(record, Duration::ZERO).await {
                Ok(delivery) => Outcome::Acknowledged(Some(Place {
                    stream: poison.stream.to_string(),
                    partition: delivery.partition,
                    offset: delivery.offset,
                })),
                Err(_) => Outcome::Unknown,
            };
            Command { id, kind: Kind::Poison, attempts: 1, outcome }
        });
        join_all(appended).await
    }
}

fn headers(poison: &Poison, id: &str) -> OwnedHeaders {
    let name = match poison.form {
        Form::UnknownType => Some("something-unheard-of"),
        Form::BrokenValue | Form::NoValue => Some(type_name(poison.stream)),
        Form::NoType => None,
    };
    let own = [("ce_id", id), ("ce_time", "2026-01-01T00:00:00Z"), ("ce_correlationid", id)];
    let all = own.into_iter().chain(name.map(|name| ("ce_type", name)));
    all.fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

const fn value(form: Form) -> Option<&'static [u8]> {
    match form {
        Form::NoValue => None,
        Form::UnknownType | Form::BrokenValue | Form::NoType => Some(b"{\"poison\":"),
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

/// The key that one of those has who are there, so that what comes of it later has to wait.
fn key(stream: Stream, entity: usize, users: &[i64]) -> String {
    let user = |number: usize| users.get(number % users.len().max(1)).copied().unwrap_or(1);
    match stream {
        Stream::Videos => (entity % VIDEOS + 1).to_string(),
        Stream::Likes | Stream::Comments => (entity % SEEN_VIDEOS + 1).to_string(),
        Stream::Follows if entity.is_multiple_of(2) => (entity % STRANGERS + 1).to_string(),
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
    fn no_form_of_any_stream_can_be_decoded() {
        for (stream, form) in Stream::ALL.into_iter().flat_map(|stream| Form::ALL.map(|form| (stream, form)))
        {
            let poison = Poison { stream, entity: 0, records: 1, form, discarded: None, cut: None };
            let headers = headers(&poison, &Uuid::now_v7().to_string());
            let header = |name: &str| headers.iter().find(|header| header.key == name)?.value;
            let why = decode(stream, header, value(form).unwrap_or_default()).unwrap_err().to_string();
            let expected = match form {
                Form::UnknownType => "has no event type",
                Form::BrokenValue | Form::NoValue => "the payload is not a",
                Form::NoType => "has no header ce_type",
            };
            assert!(why.contains(expected), "{stream} {form}: {why}");
        }
    }

    #[test]
    fn a_key_is_that_of_someone_who_is_there() {
        let users = [1_000, 1_001, 1_002];
        let keys = |stream| (0..100).map(move |entity| key(stream, entity, &users));
        assert!(keys(Stream::Users).all(|key| users.contains(&key.parse().unwrap())));
        assert!(keys(Stream::Likes).all(|key| (1..=4).contains(&key.parse().unwrap())));
        assert!(keys(Stream::Messages).any(|key| key == "1000-1001"));
    }
}
