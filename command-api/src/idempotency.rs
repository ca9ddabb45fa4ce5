//! Executes a user's command at most once per `Idempotency-Key`.
//!
//! The decided event is stored under the key before it is appended, so a retry after an unknown outcome, or a
//! concurrent attempt, appends the identical event. Folds ignore the second event that creates an entity; a repeated
//! like or follow has the same effect as the first. The reply then replaces the event, and later retries receive it
//! unchanged.
//!
//! A rejection changes nothing and is not stored: a retry decides again. So Redis holds a key only for a user whose
//! command was valid, and the number of keys per user is limited. The key of a registration, whose caller is unknown, is
//! stored with its account (`accounts.rs`).

use axum::http::{HeaderMap, HeaderName};
use redis::cmd;
use serde::{Deserialize, Serialize};
use tracing::{error, warn};
use uuid::Uuid;
use vidlog_contract::ApiError;
use vidlog_events::Envelope;
use vidlog_rate_limits::{Bucket, Decision, Limit};
use vidlog_read_models::ReadError;
use vidlog_schemas::keys::Key;

use crate::{envelope_json, ids::IdError, reply::Reply, request_context::EventIdentity, state::CommandState};

/// Header that identifies a command across its retries.
pub const IDEMPOTENCY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// How long a reply is stored for retries.
pub(crate) const REPLY_TTL_MS: i64 = 24 * 60 * 60 * 1000;
/// How long the event of a command that was not answered is stored: longer than a client retries. A later retry decides
/// again.
const EVENT_TTL_MS: i64 = 15 * 60 * 1000;
const MAX_KEY_LENGTH: usize = 255;

// Fields of the key's hash in Redis.
const RESERVED: &str = "reserved";
const EVENT: &str = "event";
const ANSWER: &str = "answer";

/// Stores a reservation and its event unless an attempt has stored an event or a reply before. Returns what the key then
/// holds.
const STORE_EVENT: &str = "
    if redis.call('HEXISTS', KEYS[1], 'answer') == 0 and redis.call('HEXISTS', KEYS[1], 'event') == 0 then
        redis.call('HSET', KEYS[1], 'reserved', ARGV[1], 'event', ARGV[2])
        redis.call('PEXPIRE', KEYS[1], ARGV[3])
    end
    return redis.call('HMGET', KEYS[1], 'reserved', 'event', 'answer')";

/// Stores a reply in place of the event. Redis may have lost the reservation meanwhile, so it is stored again.
const STORE_REPLY: &str = "
    redis.call('HSETNX', KEYS[1], 'reserved', ARGV[1])
    redis.call('HSETNX', KEYS[1], 'answer', ARGV[2])
    redis.call('HDEL', KEYS[1], 'event')
    return redis.call('PEXPIRE', KEYS[1], ARGV[3])";

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

/// SHA-1 of a command's name and parameters: detects the reuse of a key, and has a fixed size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(Uuid);

/// Properties of a request that identify the command across retries.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The caller's user id.
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

/// What is known of a command when an attempt begins, or when its event is stored.
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

    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
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
    /// Begins an attempt: finds what earlier attempts with the same key stored, or makes a reservation.
    ///
    /// An error in `entity_id` means that no id is available. Then the attempt needs an event that is stored.
    pub async fn begin(
        state: &CommandState,
        request: &Request<'_>,
        entity_id: Result<Option<i64>, IdError>,
    ) -> Result<Outcome, ApiError> {
        let key = key_from_headers(request.headers)?
            .map(|key| state.read_models.keys.idempotency(request.caller, key));
        if let Some(key) = &key
            && let Some(outcome) = find(state, key, request).await?
        {
            return Ok(outcome);
        }
        let identity = EventIdentity::new(state.clock.now_ms());
        let reservation = Reservation {
            event_id: identity.event_id,
            time_ms: identity.time_ms,
            entity_id: entity_id?,
            fingerprint: request.fingerprint,
        };
        Ok(Outcome::New(Self { reservation, key, event: None }))
    }

    /// Event that this attempt or an earlier one decided on and stored.
    pub fn event(&self) -> Option<&Envelope> {
        self.event.as_deref()
    }

    /// Stores the decided event for retries. Returns the attempt with the event to append: its own, or that of a
    /// concurrent attempt, with its reservation; or the reply, if a concurrent attempt has completed.
    pub async fn store_event(self, state: &CommandState, envelope: Envelope) -> Result<Outcome, ApiError> {
        let Some(key) = &self.key else {
            return Ok(Outcome::New(Self { event: Some(Box::new(envelope)), ..self }));
        };
        let reservation = serde_json::to_string(&self.reservation).map_err(|error| invalid_record(&error))?;
        let event = envelope_json::to_json(&envelope).map_err(|error| invalid_record(&error))?;
        let command =
            cmd("EVAL").arg(STORE_EVENT).arg(1).arg(key).arg(reservation).arg(event).arg(EVENT_TTL_MS).take();
        let record: Record = state.read_models.views.query(&command).await.map_err(redis_error)?;
        let outcome = parse_record(key, self.reservation.fingerprint, record)?;
        outcome.ok_or_else(|| invalid_record(&"the reservation is missing"))
    }

    /// Replaces the event by the reply for retries. Best effort: without it, a retry appends the same event again,
    /// which changes nothing.
    pub async fn store_reply(self, state: &CommandState, reply: Reply) -> Reply {
        let Some(key) = self.key else {
            return reply;
        };
        match (serde_json::to_string(&self.reservation), serde_json::to_string(&reply)) {
            (Ok(reservation), Ok(json)) => {
                let command = cmd("EVAL")
                    .arg(STORE_REPLY)
                    .arg(1)
                    .arg(key)
                    .arg(reservation)
                    .arg(json)
                    .arg(REPLY_TTL_MS)
                    .take();
                if let Err(error) = state.read_models.views.query::<i64>(&command).await {
                    warn!(%error, "failed to store reply for retries");
                }
            }
            (Err(error), _) | (_, Err(error)) => error!(%error, "failed to serialize reply for retries"),
        }
        reply
    }
}

/// The fields of a key's hash, if it has a reservation.
type Record = (Option<String>, Option<String>, Option<String>);

/// Reads the results of earlier attempts, and charges the use of a key to the caller. Returns `None` if there are none.
/// A key that has results is answered even above the limit, because nothing more is stored for it.
async fn find(state: &CommandState, key: &Key, request: &Request<'_>) -> Result<Option<Outcome>, ApiError> {
    let bucket = state.limits.bucket(Limit::IdempotencyKeys, request.caller);
    let read = cmd("HMGET").arg(key).arg(&[RESERVED, EVENT, ANSWER]).take();
    let charge = bucket.as_ref().map(Bucket::charge_command);
    let commands: Vec<_> = [read].into_iter().chain(charge).collect();
    let mut replies = state.read_models.views.pipeline(&commands).await.map_err(redis_error)?;
    let found = parse_record(key, request.fingerprint, replies.take()?)?;
    if let (None, Some(bucket)) = (&found, bucket) {
        bucket.require(Decision::from_reply(replies.take()?))?;
    }
    Ok(found)
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

/// Reads the key of a request, if it has one.
pub(crate) fn key_from_headers(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
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
    use proptest::prelude::*;

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

    proptest! {
        /// Any value that HTTP admits is a key, unchanged, or an error.
        #[test]
        fn parsed_key_is_the_value(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let headers = HeaderMap::from_iter([(IDEMPOTENCY_HEADER, value)]);
                let is_key = (1..=MAX_KEY_LENGTH).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
                match key_from_headers(&headers) {
                    Ok(key) => prop_assert_eq!(key.map(str::as_bytes), is_key.then_some(&bytes[..])),
                    Err(_) => prop_assert!(!is_key),
                }
            }
        }
    }

    #[test]
    fn fingerprints_differ_by_command_and_parameters() {
        assert_eq!(Fingerprint::new("like", "9\n1"), Fingerprint::new("like", "9\n1"));
        assert_ne!(Fingerprint::new("like", "9\n1"), Fingerprint::new("like", "9\n2"));
        assert_ne!(Fingerprint::new("like", "9\n1"), Fingerprint::new("follow", "9\n1"));
    }
}
