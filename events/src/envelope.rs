//! The envelope: a CloudEvent in Kafka's binary mode.
//!
//! Attributes are record headers prefixed with `ce_`, the payload is the value, as JSON
//! (CloudEvents 1.0.2, Kafka protocol binding, section 3.2).

use schemars::{JsonSchema, Schema};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use crate::{CommentEvent, FollowEvent, LikeEvent, MessageEvent, Stream, UserEvent, VideoEvent};

/// An event with what is known about how it came to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// `ce_id`, a UUIDv7. A repeated event carries the same id.
    pub id: Uuid,
    /// `ce_source`: the service that wrote it.
    pub source: String,
    /// `ce_time`: when it happened, milliseconds since 1970, UTC.
    pub time_ms: i64,
    /// `ce_traceparent`: the trace of the request, as W3C Trace Context writes it.
    pub traceparent: Option<String>,
    /// `ce_correlationid`: the request that started it all.
    pub correlation_id: Option<String>,
    /// `ce_causationid`: the id of the event that caused this one.
    pub causation_id: Option<String>,
    /// What happened.
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

/// A record as it goes to Kafka.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRecord {
    /// The stream, and so the topic.
    pub stream: Stream,
    /// The record's key: all events with it are in one partition, in order.
    pub key: String,
    /// The record's timestamp, equal to `ce_time`, milliseconds since 1970.
    pub timestamp_ms: i64,
    /// Headers, in order.
    pub headers: Vec<(&'static str, String)>,
    /// The JSON payload.
    pub value: Vec<u8>,
}

/// Why a record is not an event.
#[derive(Debug, Error, PartialEq)]
pub enum DecodeError {
    /// A required attribute is missing.
    #[error("the record has no header {0}")]
    MissingHeader(&'static str),
    /// An attribute can't be read.
    #[error("header {header} holds {value:?}, which is not {expected}")]
    InvalidHeader {
        /// The header.
        header: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// This reader does not know the type: it is older than the writer, or the record is not ours.
    #[error("stream {stream} has no event type {name:?}")]
    UnknownType {
        /// The stream that was read.
        stream: Stream,
        /// The `ce_type` that it found.
        name: String,
    },
    /// The payload is not what its type says. The message has no value of the payload in it.
    #[error("the payload is not a {name}: {reason}")]
    Payload {
        /// The `ce_type`.
        name: String,
        /// Where and what, without the values.
        reason: String,
    },
}

impl Event {
    /// The stream that carries it.
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

    /// The `ce_type`.
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

    /// The record's key. Everything about one key is in one partition, in order.
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
    /// The record of this event.
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

/// Reads a record of a stream: its headers by name, and its value.
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

/// Decodes one payload; for the stream enums.
pub(crate) fn decode_payload<T: DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, DecodeError> {
    serde_json::from_slice(value).map_err(|error| DecodeError::Payload {
        name: name.to_owned(),
        // serde's own message quotes values, which may be personal.
        reason: format!("{:?} error at line {}, column {}", error.classify(), error.line(), error.column()),
    })
}

/// Encodes one payload; for the stream enums.
pub(crate) fn encode_payload(payload: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(payload)
}

/// The JSON Schema of one payload; for the stream enums. Its `$id` is what `ce_dataschema` says.
pub(crate) fn payload_schema<T: JsonSchema>(name: &str) -> Schema {
    let mut schema = schemars::schema_for!(T);
    schema.insert("$id".to_owned(), data_schema(name).into());
    schema
}

/// `ce_dataschema` of an event type: a URN, so that the log does not depend on where schemas are served.
fn data_schema(name: &str) -> String {
    format!("urn:vidlog:schemas:events:{name}")
}

fn format_time(time_ms: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(time_ms) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

fn parse_time(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

/// Declares a stream's enum: its variants, their `ce_type`s, and how they are decoded.
macro_rules! stream {
    ($(#[$doc:meta])* $enum:ident in $stream:expr, $($variant:ident as $name:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is documented at its payload")]
        pub enum $enum {
            $($variant($variant),)+
        }

        impl $enum {
            /// The `ce_type`.
            pub const fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)+
                }
            }

            /// The event types of this stream.
            pub fn types() -> Vec<$crate::EventType> {
                vec![$($crate::EventType {
                    stream: $stream,
                    name: $name,
                    schema: || $crate::envelope::payload_schema::<$variant>($name),
                },)+]
            }

            pub(crate) fn decode(name: &str, value: &[u8]) -> Result<Self, $crate::DecodeError> {
                match name {
                    $($name => $crate::envelope::decode_payload(name, value).map(Self::$variant),)+
                    _ => Err($crate::DecodeError::UnknownType { stream: $stream, name: name.to_owned() }),
                }
            }

            pub(crate) fn payload(&self) -> Result<Vec<u8>, serde_json::Error> {
                match self {
                    $(Self::$variant(payload) => $crate::envelope::encode_payload(payload),)+
                }
            }
        }
    };
}
pub(crate) use stream;
