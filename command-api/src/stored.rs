//! An event as it waits in MySQL for its append: the record as it will go to Kafka, as JSON.
//!
//! `{"stream":"users","headers":[["ce_id","…"],…],"value":"{…}"}`. It is decoded by the same code that decodes the
//! log, so whatever the log can hold can wait here.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vidlog_events::{DecodeError, Envelope, Stream, decode};

/// Why a stored event can't be read or written.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The text is not JSON of this form.
    #[error("the stored event is not of its form")]
    Form(#[from] serde_json::Error),
    /// The payload is not UTF-8.
    #[error("the event's payload is not text")]
    NotText(#[from] std::string::FromUtf8Error),
    /// No stream has this name.
    #[error("there is no stream {0:?}")]
    UnknownStream(String),
    /// The record in it is not an event.
    #[error("the stored record is not an event")]
    Event(#[from] DecodeError),
}

#[derive(Serialize, Deserialize)]
struct Stored {
    stream: String,
    headers: Vec<(String, String)>,
    value: String,
}

/// The text of an event.
pub fn to_text(envelope: &Envelope) -> Result<String, StoredError> {
    let record = envelope.encode()?;
    let stored = Stored {
        stream: record.stream.name().to_owned(),
        headers: record.headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        value: String::from_utf8(record.value)?,
    };
    Ok(serde_json::to_string(&stored)?)
}

/// The event of a text.
pub fn from_text(text: &str) -> Result<Envelope, StoredError> {
    let stored: Stored = serde_json::from_str(text)?;
    let stream = Stream::ALL
        .into_iter()
        .find(|stream| stream.name() == stored.stream)
        .ok_or_else(|| StoredError::UnknownStream(stored.stream.clone()))?;
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
    fn an_event_is_read_as_it_was_stored() {
        assert_eq!(from_text(&to_text(&envelope()).unwrap()).unwrap(), envelope());
    }

    #[test]
    fn anything_else_is_an_error() {
        assert!(matches!(from_text("{}"), Err(StoredError::Form(_))));
        let text = to_text(&envelope()).unwrap();
        let dreams = text.replace("\"users\"", "\"dreams\"");
        assert!(matches!(from_text(&dreams), Err(StoredError::UnknownStream(_))));
        let likes = text.replace("\"users\"", "\"likes\"");
        assert!(matches!(from_text(&likes), Err(StoredError::Event(_))));
    }
}
