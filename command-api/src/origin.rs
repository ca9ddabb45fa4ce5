//! Where a request comes from: its id and its trace, which go into every event that it causes.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use uuid::{NoContext, Timestamp, Uuid};
use vidlog_events::{Envelope, Event};
use vidlog_service_kit::clock::Clock;

/// The id of a request: taken from it if it has a sane one, and always in the answer.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static("traceparent");
/// `ce_source` of the events of this service.
const SOURCE: &str = "/vidlog/command-api";
/// Longer request ids are replaced: they go into every log line and event.
const MAX_REQUEST_ID: usize = 128;

/// Where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    request_id: String,
    traceparent: Option<String>,
}

/// What makes an event this event: a repeated append has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The `ce_id`.
    pub event_id: Uuid,
    /// The `ce_time`, milliseconds since 1970.
    pub time_ms: i64,
}

impl Stamp {
    /// A new stamp of this moment.
    pub fn new(now_ms: i64) -> Self {
        Self { event_id: uuid_of(now_ms), time_ms: now_ms }
    }
}

impl Origin {
    /// The origin that a request's headers tell.
    pub fn of(headers: &HeaderMap, now_ms: i64) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let request_id = text(REQUEST_ID_HEADER)
            .filter(|id| is_sane(id))
            .map_or_else(|| uuid_of(now_ms).to_string(), str::to_owned);
        let traceparent = text(TRACEPARENT_HEADER).filter(|trace| is_traceparent(trace)).map(str::to_owned);
        Self { request_id, traceparent }
    }

    /// The request's id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// An event that this request caused.
    pub fn envelope(&self, stamp: Stamp, event: Event) -> Envelope {
        Envelope {
            id: stamp.event_id,
            source: SOURCE.to_owned(),
            time_ms: stamp.time_ms,
            traceparent: self.traceparent.clone(),
            correlation_id: Some(self.request_id.clone()),
            causation_id: None,
            event,
        }
    }
}

/// Middleware: finds out a request's origin, gives it to the handler, and names it in the answer.
pub(crate) async fn identify(State(clock): State<Clock>, mut request: Request, next: Next) -> Response {
    let origin = Origin::of(request.headers(), clock.now_ms());
    let request_id = HeaderValue::from_str(origin.request_id());
    request.extensions_mut().insert(origin);
    let mut response = next.run(request).await;
    if let Ok(request_id) = request_id {
        response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
    }
    response
}

/// A `UUIDv7` of a time, which is not asked from the machine.
fn uuid_of(now_ms: i64) -> Uuid {
    let seconds = u64::try_from(now_ms.div_euclid(1000)).unwrap_or_default();
    let millis = u32::try_from(now_ms.rem_euclid(1000)).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, millis * 1_000_000))
}

fn is_sane(id: &str) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// W3C Trace Context, version 00: `00-<32 hex>-<16 hex>-<2 hex>`, lower case, neither id all zeros.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|byte| byte != b'0');
    matches!(parts[..], ["00", trace, span, flags] if id(trace, 32) && id(span, 16) && hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_123;
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn origin(pairs: &[(HeaderName, &str)]) -> Origin {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        Origin::of(&headers.collect(), NOW)
    }

    #[test]
    fn a_sane_request_id_is_kept() {
        assert_eq!(origin(&[(REQUEST_ID_HEADER, "abc-1")]).request_id(), "abc-1");
        let long = "a".repeat(MAX_REQUEST_ID + 1);
        for id in ["", "a b", long.as_str()] {
            let made: Uuid = origin(&[(REQUEST_ID_HEADER, id)]).request_id().parse().unwrap();
            assert_eq!(made.get_version_num(), 7);
        }
    }

    #[test]
    fn a_valid_traceparent_is_kept() {
        assert_eq!(origin(&[(TRACEPARENT_HEADER, TRACE)]).traceparent.as_deref(), Some(TRACE));
        for trace in [
            "",
            "00",
            &TRACE.replace("00-4", "01-4"),
            &TRACE.replace('f', "F"),
            &TRACE.replace("00f067aa0ba902b7", "0000000000000000"),
            &format!("{TRACE}-1"),
        ] {
            assert_eq!(origin(&[(TRACEPARENT_HEADER, trace)]).traceparent, None, "{trace}");
        }
    }

    #[test]
    fn a_stamp_is_of_its_time_and_of_no_other_event() {
        let (one, other) = (Stamp::new(NOW), Stamp::new(NOW));
        assert_ne!(one.event_id, other.event_id);
        let (seconds, nanos) = one.event_id.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanos), (1_700_000_000, 123_000_000));
    }
}
