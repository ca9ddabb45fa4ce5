//! JSON form of an event envelope, for storing an event before it is appended: the Kafka record as JSON.
//!
//! `{"stream":"users","headers":[["ce_id","…"],…],"value":"{…}"}`. The log's decoder decodes it, so every event that
//! the log can hold can be stored.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vidlog_events::{DecodeError, Envelope, Stream, decode};

/// Error of encoding or decoding a stored event.
#[derive(Debug, Error)]
pub enum EnvelopeJsonError {
    /// The text is not JSON of this form.
    #[error("the stored event has an invalid form")]
    Form(#[from] serde_json::Error),
    /// The payload is not UTF-8.
    #[error("the event's payload is not UTF-8")]
    NotText(#[from] std::string::FromUtf8Error),
    /// No stream has this name.
    #[error("unknown stream {0:?}")]
    UnknownStream(String),
    /// The record does not decode as an event.
    #[error("the stored record does not decode")]
    Event(#[from] DecodeError),
}

#[derive(Serialize, Deserialize)]
struct StoredRecord {
    stream: String,
    headers: Vec<(String, String)>,
    value: String,
}

/// Encodes an envelope.
pub fn to_json(envelope: &Envelope) -> Result<String, EnvelopeJsonError> {
    let record = envelope.encode()?;
    let stored = StoredRecord {
        stream: record.stream.name().to_owned(),
        headers: record.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        value: String::from_utf8(record.value)?,
    };
    Ok(serde_json::to_string(&stored)?)
}

/// Decodes an envelope.
pub fn from_json(json: &str) -> Result<Envelope, EnvelopeJsonError> {
    let stored: StoredRecord = serde_json::from_str(json)?;
    let stream = Stream::ALL
        .into_iter()
        .find(|stream| stream.name() == stored.stream)
        .ok_or_else(|| EnvelopeJsonError::UnknownStream(stored.stream.clone()))?;
    let header = |name: &str| {
        stored.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_bytes())
    };
    Ok(decode(stream, header, stored.value.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vidlog_events::{Event, Personal, UserEvent, UserId, UserRegistered};

    use super::*;

    fn envelope() -> Envelope {
        Envelope {
            id: Uuid::from_u128(7),
            source: "/vidlog/test".to_owned(),
            time_ms: 1_700_000_000_123,
            traceparent: None,
            correlation_id: Some("request-1".to_owned()),
            causation_id: None,
            event: Event::User(UserEvent::UserRegistered(UserRegistered {
                user_id: UserId::new(1).unwrap(),
                name: Personal::new("Zoë \"Z\" 🎬".to_owned()),
            })),
        }
    }

    #[test]
    fn stored_event_round_trips() {
        assert_eq!(from_json(&to_json(&envelope()).unwrap()).unwrap(), envelope());
    }

    #[test]
    fn invalid_record_is_an_error() {
        assert!(matches!(from_json("{}"), Err(EnvelopeJsonError::Form(_))));
        let text = to_json(&envelope()).unwrap();
        let dreams = text.replace("\"users\"", "\"dreams\"");
        assert!(matches!(from_json(&dreams), Err(EnvelopeJsonError::UnknownStream(_))));
        let likes = text.replace("\"users\"", "\"likes\"");
        assert!(matches!(from_json(&likes), Err(EnvelopeJsonError::Event(_))));
    }
}
