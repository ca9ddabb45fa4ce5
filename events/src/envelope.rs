//! The envelope: a CloudEvent in Kafka's binary mode.
//!
//! Attributes are record headers prefixed with `ce_`, the payload is the value, as JSON
//! (CloudEvents 1.0.2, Kafka protocol binding, section 3.2).

use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{
    CommentEvent, FollowEvent, LikeEvent, MessageEvent, Stream, UserEvent, VideoEvent,
    payload::{DecodeError, data_schema},
};

/// An event with its CloudEvents attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// `ce_id`, a UUIDv7. A repeated event carries the same id.
    pub id: Uuid,
    /// `ce_source`: the service that produced the event.
    pub source: String,
    /// `ce_time`: the time of the event, milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// `ce_traceparent`: the trace of the request, in the format of W3C Trace Context.
    pub traceparent: Option<String>,
    /// `ce_correlationid`: the id of the request that started the chain of events.
    pub correlation_id: Option<String>,
    /// `ce_causationid`: the id of the event that caused this one.
    pub causation_id: Option<String>,
    /// The event.
    pub event: Event,
}

/// An event of any stream.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant is documented at its stream's enum")]
pub enum Event {
    User(UserEvent),
    Video(VideoEvent),
    Like(LikeEvent),
    Follow(FollowEvent),
    Comment(CommentEvent),
    Message(MessageEvent),
}

/// A Kafka record to produce.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRecord {
    /// The stream, which determines the topic.
    pub stream: Stream,
    /// The record's key: events with the same key are in one partition, in order.
    pub key: String,
    /// The record's timestamp, equal to `ce_time`, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Headers, in order.
    pub headers: Vec<(&'static str, String)>,
    /// The JSON payload.
    pub value: Vec<u8>,
}

impl Event {
    /// Returns the event's stream.
    pub const fn stream(&self) -> Stream {
        match self {
            Self::User(_) => Stream::Users,
            Self::Video(_) => Stream::Videos,
            Self::Like(_) => Stream::Likes,
            Self::Follow(_) => Stream::Follows,
            Self::Comment(_) => Stream::Comments,
            Self::Message(_) => Stream::Messages,
        }
    }

    /// Returns the `ce_type`.
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::User(event) => event.type_name(),
            Self::Video(event) => event.type_name(),
            Self::Like(event) => event.type_name(),
            Self::Follow(event) => event.type_name(),
            Self::Comment(event) => event.type_name(),
            Self::Message(event) => event.type_name(),
        }
    }

    /// Returns the record's key: events with the same key are in one partition, in order.
    pub fn key(&self) -> String {
        match self {
            Self::User(event) => event.key(),
            Self::Video(event) => event.key(),
            Self::Like(event) => event.key(),
            Self::Follow(event) => event.key(),
            Self::Comment(event) => event.key(),
            Self::Message(event) => event.key(),
        }
    }

    fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::User(event) => event.payload(),
            Self::Video(event) => event.payload(),
            Self::Like(event) => event.payload(),
            Self::Follow(event) => event.payload(),
            Self::Comment(event) => event.payload(),
            Self::Message(event) => event.payload(),
        }
    }
}

impl Envelope {
    /// Encodes the event as a record.
    pub fn encode(&self) -> Result<EncodedRecord, serde_json::Error> {
        let name = self.event.type_name();
        let key = self.event.key();
        let mut headers = vec![
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", self.id.to_string()),
            ("ce_type", name.to_owned()),
            ("ce_source", self.source.clone()),
            ("ce_time", format_time(self.time_ms)),
            ("ce_subject", key.clone()),
            ("ce_dataschema", data_schema(name)),
            ("content-type", "application/json".to_owned()),
        ];
        let extensions = [
            ("ce_traceparent", &self.traceparent),
            ("ce_correlationid", &self.correlation_id),
            ("ce_causationid", &self.causation_id),
        ];
        for (header, value) in extensions {
            if let Some(value) = value {
                headers.push((header, value.clone()));
            }
        }
        Ok(EncodedRecord {
            stream: self.event.stream(),
            key,
            timestamp_ms: self.time_ms,
            headers,
            value: self.event.payload()?,
        })
    }
}

/// Decodes a record of a stream from its headers, by name, and its value.
pub fn decode<'a>(
    stream: Stream,
    header: impl Fn(&str) -> Option<&'a [u8]>,
    value: &[u8],
) -> Result<Envelope, DecodeError> {
    let text = |name: &'static str| {
        header(name)
            .map(|bytes| {
                str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::InvalidHeader {
                    header: name,
                    value: String::from_utf8_lossy(bytes).into_owned(),
                    expected: "UTF-8",
                })
            })
            .transpose()
    };
    let required = |name| text(name)?.ok_or(DecodeError::MissingHeader(name));

    let id = required("ce_id")?;
    let time = required("ce_time")?;
    let name = required("ce_type")?;
    let event = match stream {
        Stream::Users => UserEvent::decode(&name, value).map(Event::User),
        Stream::Videos => VideoEvent::decode(&name, value).map(Event::Video),
        Stream::Likes => LikeEvent::decode(&name, value).map(Event::Like),
        Stream::Follows => FollowEvent::decode(&name, value).map(Event::Follow),
        Stream::Comments => CommentEvent::decode(&name, value).map(Event::Comment),
        Stream::Messages => MessageEvent::decode(&name, value).map(Event::Message),
    }?;
    Ok(Envelope {
        id: id.parse().map_err(|_| DecodeError::InvalidHeader {
            header: "ce_id",
            value: id,
            expected: "a UUID",
        })?,
        time_ms: parse_time(&time).ok_or(DecodeError::InvalidHeader {
            header: "ce_time",
            value: time,
            expected: "an RFC 3339 time",
        })?,
        source: required("ce_source")?,
        traceparent: text("ce_traceparent")?,
        correlation_id: text("ce_correlationid")?,
        causation_id: text("ce_causationid")?,
        event,
    })
}

fn format_time(time_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    // An offset can move the first and the last day out of the years that RFC 3339 can write.
    let utc = time.checked_to_offset(UtcOffset::UTC)?;
    if !(0..=9999).contains(&utc.year()) {
        return None;
    }
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}
