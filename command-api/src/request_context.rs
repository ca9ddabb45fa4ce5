//! A request's id and trace context, which every event that it causes carries.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use uuid::{NoContext, Timestamp, Uuid};
use vidlog_events::{Envelope, Event};
use vidlog_service_kit::clock::Clock;

/// Request id: taken from the request if valid, otherwise generated; always in the response.
pub const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT_HEADER: HeaderName = HeaderName::from_static("traceparent");
/// `ce_source` of the events of this service.
const SOURCE: &str = "/vidlog/command-api";
/// Maximum length of a client's request id: every log line and event carries it.
const MAX_REQUEST_ID: usize = 128;

/// A request's id and trace context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    request_id: String,
    traceparent: Option<String>,
}

/// Id and time of an event; all appends of one event share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventIdentity {
    /// The `ce_id`.
    pub event_id: Uuid,
    /// The `ce_time`, milliseconds since 1970.
    pub time_ms: i64,
}

impl EventIdentity {
    /// A new event id at the given time.
    pub fn new(now_ms: i64) -> Self {
        Self { event_id: uuid_v7_at(now_ms), time_ms: now_ms }
    }
}

impl RequestContext {
    /// Reads the context from a request's headers.
    pub fn from_headers(headers: &HeaderMap, now_ms: i64) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let request_id = text(REQUEST_ID_HEADER)
            .filter(|id| is_valid_request_id(id))
            .map_or_else(|| uuid_v7_at(now_ms).to_string(), str::to_owned);
        let traceparent = text(TRACEPARENT_HEADER).filter(|trace| is_traceparent(trace)).map(str::to_owned);
        Self { request_id, traceparent }
    }

    /// The request id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Envelope of an event that this request causes.
    pub fn envelope(&self, identity: EventIdentity, event: Event) -> Envelope {
        Envelope {
            id: identity.event_id,
            source: SOURCE.to_owned(),
            time_ms: identity.time_ms,
            traceparent: self.traceparent.clone(),
            correlation_id: Some(self.request_id.clone()),
            causation_id: None,
            event,
        }
    }
}

/// Middleware: attaches the context to the request, and the request id to the response.
pub(crate) async fn attach(State(clock): State<Clock>, mut request: Request, next: Next) -> Response {
    let context = RequestContext::from_headers(request.headers(), clock.now_ms());
    let request_id = HeaderValue::from_str(context.request_id());
    request.extensions_mut().insert(context);
    let mut response = next.run(request).await;
    if let Ok(request_id) = request_id {
        response.headers_mut().insert(REQUEST_ID_HEADER, request_id);
    }
    response
}

/// A `UUIDv7` of the given time instead of the system's.
fn uuid_v7_at(now_ms: i64) -> Uuid {
    let seconds = u64::try_from(now_ms.div_euclid(1000)).unwrap_or_default();
    let millis = u32::try_from(now_ms.rem_euclid(1000)).unwrap_or_default();
    Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, millis * 1_000_000))
}

fn is_valid_request_id(id: &str) -> bool {
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

    fn context(pairs: &[(HeaderName, &str)]) -> RequestContext {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()));
        RequestContext::from_headers(&headers.collect(), NOW)
    }

    #[test]
    fn valid_request_id_is_kept() {
        assert_eq!(context(&[(REQUEST_ID_HEADER, "abc-1")]).request_id(), "abc-1");
        let long = "a".repeat(MAX_REQUEST_ID + 1);
        for id in ["", "a b", long.as_str()] {
            let made: Uuid = context(&[(REQUEST_ID_HEADER, id)]).request_id().parse().unwrap();
            assert_eq!(made.get_version_num(), 7);
        }
    }

    #[test]
    fn valid_traceparent_is_kept() {
        assert_eq!(context(&[(TRACEPARENT_HEADER, TRACE)]).traceparent.as_deref(), Some(TRACE));
        for trace in [
            "",
            "00",
            &TRACE.replace("00-4", "01-4"),
            &TRACE.replace('f', "F"),
            &TRACE.replace("00f067aa0ba902b7", "0000000000000000"),
            &format!("{TRACE}-1"),
        ] {
            assert_eq!(context(&[(TRACEPARENT_HEADER, trace)]).traceparent, None, "{trace}");
        }
    }

    #[test]
    fn event_ids_are_unique_and_carry_their_time() {
        let (one, other) = (EventIdentity::new(NOW), EventIdentity::new(NOW));
        assert_ne!(one.event_id, other.event_id);
        let (seconds, nanos) = one.event_id.get_timestamp().unwrap().to_unix();
        assert_eq!((seconds, nanos), (1_700_000_000, 123_000_000));
    }
}
