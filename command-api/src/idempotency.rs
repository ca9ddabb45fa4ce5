//! A command that is sent again with the same `Idempotency-Key` happens once.
//!
//! Before anything is decided the key reserves what makes the event this event: its id, its time, the id of the new
//! entity. The decided event is kept, so that a retry after an unknown outcome, or one at the same moment, appends the
//! very same event. What makes an entity is ignored by every fold the second time; a like or a follow is repeated, as if
//! it had been asked for again. The answer is kept as well, and a later retry gets it again.
//! A rejection changes nothing and is not kept: a retry is decided again.

use axum::http::{HeaderMap, HeaderName};
use redis::cmd;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;
use vidlog_contract::ApiError;
use vidlog_events::Envelope;
use vidlog_read_models::ReadError;
use vidlog_schemas::keys::Key;

use crate::{origin::Stamp, reply::Reply, state::CommandState, stored};

/// Names an attempt at a command, so that it can be repeated.
pub const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a key is remembered.
const KEPT_MS: i64 = 24 * 60 * 60 * 1000;
const MAX_KEY: usize = 255;

// Fields of the hash.
const RESERVED: &str = "reserved";
const EVENT: &str = "event";
const ANSWER: &str = "answer";

/// What a repeated attempt has in common with the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    event_id: Uuid,
    time_ms: i64,
    /// The id of the entity that the command makes, if it makes one.
    pub entity_id: Option<i64>,
    /// A hash of the request: the same key with another one is a mistake.
    fingerprint: Uuid,
}

/// A command as it is told apart from others.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Its name, such as "like".
    pub command: &'static str,
    /// Who asks; 0 where nobody can be known yet.
    pub caller: i64,
    /// All that it asks for, in one text. It is hashed and not kept.
    pub wish: String,
    /// The headers, among them perhaps the key.
    pub headers: &'a HeaderMap,
}

/// An attempt at a command.
#[derive(Debug)]
pub struct Attempt {
    /// What makes its event this event.
    pub reserved: Reserved,
    key: Option<Key>,
    event: Option<Box<Envelope>>,
}

/// How an attempt begins.
#[derive(Debug)]
pub enum Begun {
    /// It is to be carried out.
    Open(Attempt),
    /// It was, and this is what was answered.
    Answered(Reply),
}

impl Reserved {
    /// The identity and time of the event.
    pub const fn stamp(&self) -> Stamp {
        Stamp { event_id: self.event_id, time_ms: self.time_ms }
    }

    /// The id of the new entity, as the type of what it names.
    pub fn entity<T: TryFrom<i64>>(&self) -> Result<T, ApiError> {
        self.entity_id.and_then(|id| T::try_from(id).ok()).ok_or_else(|| {
            error!("an attempt has no id for its entity");
            ApiError::internal()
        })
    }
}

impl Attempt {
    /// Begins an attempt: with reservations of its own, or with those of the first one of its key.
    pub async fn begin(
        state: &CommandState,
        request: &Request<'_>,
        entity_id: Option<i64>,
    ) -> Result<Begun, ApiError> {
        let stamp = Stamp::new(state.clock.now_ms());
        let mine = Reserved {
            event_id: stamp.event_id,
            time_ms: stamp.time_ms,
            entity_id,
            fingerprint: fingerprint(request),
        };
        let Some(key) = key_of(request.headers)? else {
            return Ok(Begun::Open(Self { reserved: mine, key: None, event: None }));
        };
        let key = state.read_models.keys.idempotency(request.caller, key);
        reserve(state, key, mine).await
    }

    /// The event that an earlier attempt decided on, if there was one.
    pub fn decided(&self) -> Option<&Envelope> {
        self.event.as_deref()
    }

    /// Keeps the decided event for retries, and says which event to append: another attempt may have been faster.
    pub async fn decide(&self, state: &CommandState, envelope: Envelope) -> Result<Envelope, ApiError> {
        let Some(key) = &self.key else {
            return Ok(envelope);
        };
        let text = stored::to_text(&envelope).map_err(|error| unreadable(&error))?;
        let commands =
            [cmd("HSETNX").arg(key).arg(EVENT).arg(text).take(), cmd("HGET").arg(key).arg(EVENT).take()];
        let mut answers = state.read_models.views.all(&commands).await.map_err(away)?;
        answers.take::<i64>()?;
        let kept: String = answers.take()?;
        stored::from_text(&kept).map_err(|error| unreadable(&error))
    }

    /// Keeps the answer for retries. If that fails a retry appends the same event again, which changes nothing.
    pub async fn answer(self, state: &CommandState, reply: Reply) -> Reply {
        let Some(key) = self.key else {
            return reply;
        };
        match serde_json::to_string(&reply) {
            Ok(text) => {
                let command = cmd("HSETNX").arg(&key).arg(ANSWER).arg(text).take();
                if let Err(error) = state.read_models.views.query::<i64>(&command).await {
                    warn!(%error, "failed to keep an answer for retries");
                }
            }
            Err(error) => error!(%error, "failed to write an answer for retries"),
        }
        reply
    }
}

/// Reserves for a key what nobody reserved before, and finds what became of earlier attempts.
async fn reserve(state: &CommandState, key: Key, mine: Reserved) -> Result<Begun, ApiError> {
    let text = serde_json::to_string(&mine).map_err(|error| unreadable(&error))?;
    let commands = [
        cmd("HSETNX").arg(&key).arg(RESERVED).arg(text).take(),
        cmd("PEXPIRE").arg(&key).arg(KEPT_MS).take(),
        cmd("HMGET").arg(&key).arg(&[RESERVED, EVENT, ANSWER]).take(),
    ];
    let mut answers = state.read_models.views.all(&commands).await.map_err(away)?;
    answers.take::<i64>()?;
    answers.take::<i64>()?;
    let (reserved, event, answer): (String, Option<String>, Option<String>) = answers.take()?;

    let reserved: Reserved = serde_json::from_str(&reserved).map_err(|error| unreadable(&error))?;
    if reserved.fingerprint != mine.fingerprint {
        return Err(ApiError::invalid("this Idempotency-Key was used for another request"));
    }
    if let Some(answer) = answer {
        let reply = serde_json::from_str(&answer).map_err(|error| unreadable(&error))?;
        return Ok(Begun::Answered(reply));
    }
    let event = event
        .map(|text| stored::from_text(&text).map(Box::new))
        .transpose()
        .map_err(|error| unreadable(&error))?;
    Ok(Begun::Open(Attempt { reserved, key: Some(key), event }))
}

fn key_of(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_HEADER) else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    if (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(key));
    }
    Err(ApiError::invalid("Idempotency-Key must have 1 to 255 visible ASCII characters"))
}

/// A hash (SHA-1) of what is asked for: enough to notice a mistake, and it keeps no text of anyone.
fn fingerprint(request: &Request<'_>) -> Uuid {
    let canonical = format!("{}\n{}", request.command, request.wish);
    Uuid::new_v5(&Uuid::NAMESPACE_OID, canonical.as_bytes())
}

fn away(error: ReadError) -> ApiError {
    match error {
        ReadError::Away { .. } => ApiError::unavailable(
            "nothing was written: no Idempotency-Key can be kept right now; try again in a moment",
        ),
        fault @ ReadError::Fault { .. } => fault.into(),
    }
}

fn unreadable(error: &dyn std::fmt::Display) -> ApiError {
    error!(%error, "what is kept for an idempotency key can't be used");
    ApiError::internal()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(IDEMPOTENCY_HEADER, HeaderValue::from_str(key).unwrap())])
    }

    #[test]
    fn a_key_is_visible_ascii() {
        assert_eq!(key_of(&HeaderMap::new()), Ok(None));
        assert_eq!(key_of(&headers("a-1!")), Ok(Some("a-1!")));
        let longest = "k".repeat(MAX_KEY);
        assert_eq!(key_of(&headers(&longest)), Ok(Some(longest.as_str())));
        for key in ["", "a b", "ä", &"k".repeat(MAX_KEY + 1)] {
            assert!(key_of(&headers(key)).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let headers = HeaderMap::new();
        let of = |command, wish: &str| {
            fingerprint(&Request { command, caller: 1, wish: wish.to_owned(), headers: &headers })
        };
        assert_eq!(of("like", "9\n1"), of("like", "9\n1"));
        assert_ne!(of("like", "9\n1"), of("like", "9\n2"));
        assert_ne!(of("like", "9\n1"), of("follow", "9\n1"));
    }
}
