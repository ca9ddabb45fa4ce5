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
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;
    use vidlog_events::{
        CommentEvent, CommentId, CommentPosted, Event, MAX_ID, MessageEvent, MessageId, MessageSent,
        Personal, UserEvent, UserId, UserRegistered, VideoEvent, VideoId, VideoUploaded,
    };

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        let id = 1..=MAX_ID;
        (0..4, [id.clone(), id.clone(), id], ".{0,20}").prop_map(|(kind, [one, other, user], text)| {
            let (user_id, video_id) = (UserId::new(user).unwrap(), VideoId::new(one).unwrap());
            let text = Personal::new(text);
            match kind {
                0 => Event::User(UserEvent::UserRegistered(UserRegistered { user_id, name: text })),
                1 => Event::Video(VideoEvent::VideoUploaded(VideoUploaded {
                    video_id,
                    author_id: user_id,
                    title: text,
                    original_key: format!("originals/{one}"),
                })),
                2 => Event::Comment(CommentEvent::CommentPosted(CommentPosted {
                    comment_id: CommentId::new(other).unwrap(),
                    video_id,
                    user_id,
                    text,
                })),
                _ => Event::Message(MessageEvent::MessageSent(MessageSent {
                    message_id: MessageId::new(one).unwrap(),
                    from_user_id: user_id,
                    to_user_id: UserId::new(other).unwrap(),
                    content: text,
                })),
            }
        })
    }

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let time = -62_167_219_200_000..=253_402_300_799_999_i64;
        (any::<u128>(), time, prop::option::of("[ -~]{1,30}"), events()).prop_map(
            |(id, time_ms, text, event)| Envelope {
                id: Uuid::from_u128(id),
                source: "/vidlog/test".to_owned(),
                time_ms,
                traceparent: text.clone(),
                correlation_id: text,
                causation_id: None,
                event,
            },
        )
    }

    proptest! {
        #[test]
        fn every_stored_event_round_trips(envelope in envelopes()) {
            prop_assert_eq!(from_json(&to_json(&envelope).unwrap()).unwrap(), envelope);
        }

        /// A damaged entry is an error, or an event that can be stored again.
        #[test]
        fn damaged_event_is_an_event_or_an_error(
            envelope in envelopes(),
            damages in vec((any::<prop::sample::Index>(), prop::option::of(".")), 1..4),
        ) {
            let mut text: Vec<char> = to_json(&envelope).unwrap().chars().collect();
            for (place, replacement) in damages {
                let place = place.index(text.len());
                drop(text.splice(place..=place, replacement.unwrap_or_default().chars()));
            }
            if let Ok(decoded) = from_json(&String::from_iter(text)) {
                prop_assert_eq!(from_json(&to_json(&decoded).unwrap()).unwrap(), decoded);
            }
        }

        #[test]
        fn any_json_is_an_event_or_an_error(
            stream in prop_oneof![prop::sample::select(&["users", "videos", "likes"][..]), Just("dreams")],
            headers in vec(("ce_(id|type|time|source)|x", ".{0,20}"), 0..6),
            value in "\\PC{0,30}|\\{\"user_id\":-?[0-9]{1,17}\\}",
        ) {
            let json = serde_json::json!({ "stream": stream, "headers": headers, "value": value }).to_string();
            if let Ok(decoded) = from_json(&json) {
                prop_assert_eq!(from_json(&to_json(&decoded).unwrap()).unwrap(), decoded);
            }
        }
    }

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
