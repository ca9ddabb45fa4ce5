//! Executes a command at most once per `Idempotency-Key`.
//!
//! Before the decision, the key reserves the event's id, its time, and the id of the new entity. The decided event is
//! stored under the key, so a retry after an unknown outcome, or a concurrent attempt, appends the identical event.
//! Folds ignore the second event that creates an entity; a repeated like or follow has the same effect as the first.
//! The reply is stored too, and later retries receive it unchanged.
//! A rejection changes nothing and is not stored: a retry decides again.

use axum::http::{HeaderMap, HeaderName};
use redis::cmd;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;
use vidlog_contract::ApiError;
use vidlog_events::Envelope;
use vidlog_read_models::ReadError;
use vidlog_schemas::keys::Key;

use crate::{envelope_json, ids::IdError, reply::Reply, request_context::EventIdentity, state::CommandState};

/// Header that identifies a command across its retries.
pub const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a key is stored.
const KEY_TTL_MS: i64 = 24 * 60 * 60 * 1000;
const MAX_KEY_LENGTH: usize = 255;

// Fields of the key's hash in Redis.
const RESERVED: &str = "reserved";
const EVENT: &str = "event";
const ANSWER: &str = "answer";

/// Values that all attempts with one key share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    event_id: Uuid,
    time_ms: i64,
    /// Id of the entity that the command creates, if any.
    pub entity_id: Option<i64>,
    /// Fingerprint of the first request: another request with the same key is an error.
    fingerprint: Fingerprint,
}

/// SHA-1 of a command's name and parameters: detects the reuse of a key, and stores no text of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Uuid);

/// Properties of a request that identify the command across retries.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The caller's user id; 0 before authentication.
    pub caller: i64,
    /// Fingerprint of the command and its parameters.
    pub fingerprint: Fingerprint,
    /// The headers, which may contain the key.
    pub headers: &'a HeaderMap,
}

/// An attempt to execute a command.
#[derive(Debug)]
pub struct IdempotentAttempt {
    /// Values shared with earlier attempts.
    pub reservation: Reservation,
    key: Option<Key>,
    event: Option<Box<Envelope>>,
}

/// Outcome of a reservation.
#[derive(Debug)]
pub enum Outcome {
    /// The command has no reply yet: execute it.
    New(IdempotentAttempt),
    /// An earlier attempt succeeded with this reply.
    Replay(Reply),
}

impl Fingerprint {
    /// Fingerprint of a command, such as "like", and its parameters, one per line.
    pub fn new(command: &str, parameters: &str) -> Self {
        let canonical = format!("{command}\n{parameters}");
        Self(Uuid::new_v5(&Uuid::NAMESPACE_OID, canonical.as_bytes()))
    }
}

impl Reservation {
    /// Id and time of the event.
    pub const fn identity(&self) -> EventIdentity {
        EventIdentity { event_id: self.event_id, time_ms: self.time_ms }
    }

    /// Typed id of the new entity.
    pub fn entity<T: TryFrom<i64>>(&self) -> Result<T, ApiError> {
        self.entity_id.and_then(|id| T::try_from(id).ok()).ok_or_else(|| {
            error!("reservation has no entity id");
            ApiError::internal()
        })
    }
}

impl IdempotentAttempt {
    /// Begins an attempt: makes a reservation, or finds that of the key's first attempt.
    ///
    /// An error in `entity_id` means that no id is available. Then the attempt needs a reservation that exists.
    pub async fn begin(
        state: &CommandState,
        request: &Request<'_>,
        entity_id: Result<Option<i64>, IdError>,
    ) -> Result<Outcome, ApiError> {
        let key = key_from_headers(request.headers)?
            .map(|key| state.read_models.keys.idempotency(request.caller, key));
        let entity_id = match (entity_id, &key) {
            (Ok(entity_id), _) => entity_id,
            (Err(error), None) => return Err(error.into()),
            (Err(error), Some(key)) => {
                return find(state, key, request.fingerprint).await?.ok_or_else(|| error.into());
            }
        };
        let identity = EventIdentity::new(state.clock.now_ms());
        let reservation = Reservation {
            event_id: identity.event_id,
            time_ms: identity.time_ms,
            entity_id,
            fingerprint: request.fingerprint,
        };
        match key {
            Some(key) => reserve(state, &key, reservation).await,
            None => Ok(Outcome::New(Self { reservation, key: None, event: None })),
        }
    }

    /// Event that an earlier attempt decided on.
    pub fn stored_event(&self) -> Option<&Envelope> {
        self.event.as_deref()
    }

    /// Stores the decided event for retries, and returns the event to append: that of a concurrent attempt which
    /// stored its own first, or this one.
    pub async fn store_event(&self, state: &CommandState, envelope: Envelope) -> Result<Envelope, ApiError> {
        let Some(key) = &self.key else {
            return Ok(envelope);
        };
        let json = envelope_json::to_json(&envelope).map_err(|error| invalid_record(&error))?;
        let commands =
            [cmd("HSETNX").arg(key).arg(EVENT).arg(json).take(), cmd("HGET").arg(key).arg(EVENT).take()];
        let mut results = state.read_models.views.pipeline(&commands).await.map_err(redis_error)?;
        results.take::<i64>()?;
        let stored: String = results.take()?;
        envelope_json::from_json(&stored).map_err(|error| invalid_record(&error))
    }

    /// Stores the reply for retries. Best effort: without it, a retry appends the same event again, which changes
    /// nothing.
    pub async fn store_reply(self, state: &CommandState, reply: Reply) -> Reply {
        let Some(key) = self.key else {
            return reply;
        };
        match serde_json::to_string(&reply) {
            Ok(json) => {
                let command = cmd("HSETNX").arg(&key).arg(ANSWER).arg(json).take();
                if let Err(error) = state.read_models.views.query::<i64>(&command).await {
                    warn!(%error, "failed to store reply for retries");
                }
            }
            Err(error) => error!(%error, "failed to serialize reply for retries"),
        }
        reply
    }
}

/// The fields of a key's hash, if it has a reservation.
type Record = (Option<String>, Option<String>, Option<String>);

/// Makes the key's reservation unless one exists, and reads the results of earlier attempts.
async fn reserve(state: &CommandState, key: &Key, reservation: Reservation) -> Result<Outcome, ApiError> {
    let json = serde_json::to_string(&reservation).map_err(|error| invalid_record(&error))?;
    let commands = [
        cmd("HSETNX").arg(key).arg(RESERVED).arg(json).take(),
        cmd("PEXPIRE").arg(key).arg(KEY_TTL_MS).take(),
        read_record(key),
    ];
    let mut results = state.read_models.views.pipeline(&commands).await.map_err(redis_error)?;
    results.take::<i64>()?;
    results.take::<i64>()?;
    let outcome = parse_record(key, reservation.fingerprint, results.take()?)?;
    outcome.ok_or_else(|| invalid_record(&"the reservation is missing"))
}

/// Reads the results of earlier attempts; `None` if the key has no reservation.
async fn find(
    state: &CommandState,
    key: &Key,
    fingerprint: Fingerprint,
) -> Result<Option<Outcome>, ApiError> {
    let record: Record = state.read_models.views.query(&read_record(key)).await.map_err(redis_error)?;
    parse_record(key, fingerprint, record)
}

fn read_record(key: &Key) -> redis::Cmd {
    cmd("HMGET").arg(key).arg(&[RESERVED, EVENT, ANSWER]).take()
}

fn parse_record(
    key: &Key,
    fingerprint: Fingerprint,
    (reservation, event, reply): Record,
) -> Result<Option<Outcome>, ApiError> {
    let Some(reservation) = reservation else {
        return Ok(None);
    };
    let reservation: Reservation =
        serde_json::from_str(&reservation).map_err(|error| invalid_record(&error))?;
    if reservation.fingerprint != fingerprint {
        return Err(ApiError::invalid("this Idempotency-Key was used for another request"));
    }
    if let Some(reply) = reply {
        let reply = serde_json::from_str(&reply).map_err(|error| invalid_record(&error))?;
        return Ok(Some(Outcome::Replay(reply)));
    }
    let event = event
        .map(|json| envelope_json::from_json(&json).map(Box::new))
        .transpose()
        .map_err(|error| invalid_record(&error))?;
    Ok(Some(Outcome::New(IdempotentAttempt { reservation, key: Some(key.clone()), event })))
}

fn key_from_headers(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_HEADER) else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    if (1..=MAX_KEY_LENGTH).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(key));
    }
    Err(ApiError::invalid("Idempotency-Key must have 1 to 255 visible ASCII characters"))
}

fn redis_error(error: ReadError) -> ApiError {
    match error {
        ReadError::Unavailable { .. } => ApiError::unavailable(
            "nothing was written: the Idempotency-Key could not be stored; try again in a moment",
        ),
        fault @ ReadError::Fault { .. } => fault.into(),
    }
}

fn invalid_record(error: &dyn std::fmt::Display) -> ApiError {
    error!(%error, "idempotency record cannot be encoded or decoded");
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
    fn key_must_be_visible_ascii() {
        assert_eq!(key_from_headers(&HeaderMap::new()), Ok(None));
        assert_eq!(key_from_headers(&headers("a-1!")), Ok(Some("a-1!")));
        let longest = "k".repeat(MAX_KEY_LENGTH);
        assert_eq!(key_from_headers(&headers(&longest)), Ok(Some(longest.as_str())));
        for key in ["", "a b", "ä", &"k".repeat(MAX_KEY_LENGTH + 1)] {
            assert!(key_from_headers(&headers(key)).is_err(), "{key:?}");
        }
    }

    #[test]
    fn fingerprints_differ_by_command_and_parameters() {
        assert_eq!(Fingerprint::new("like", "9\n1"), Fingerprint::new("like", "9\n1"));
        assert_ne!(Fingerprint::new("like", "9\n1"), Fingerprint::new("like", "9\n2"));
        assert_ne!(Fingerprint::new("like", "9\n1"), Fingerprint::new("follow", "9\n1"));
    }
}
