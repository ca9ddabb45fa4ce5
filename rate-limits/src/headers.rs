//! The header fields of rate limits, structured fields of draft-ietf-httpapi-ratelimit-headers-10.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};

use crate::{gcra::Decision, limiter::Bucket};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Adds the fields about the buckets that a call was charged to: the quota (`q` calls in `w` seconds), what remains of it
/// (`r` calls; the whole quota after `t` seconds), and when a refused call can be repeated.
pub(crate) fn add(headers: &mut HeaderMap, charged: &[(Bucket, Decision)]) {
    let policy = |(bucket, _): &(Bucket, Decision)| {
        format!("\"{}\";q={};w={}", bucket.limit.name(), bucket.rate.calls, bucket.rate.window_s)
    };
    let state = |(bucket, decision): &(Bucket, Decision)| {
        let (remaining, reset_s) = (decision.remaining(bucket.rate), decision.reset_s());
        format!("\"{}\";r={remaining};t={reset_s}", bucket.limit.name())
    };
    let retry_after = charged
        .iter()
        .filter(|(_, decision)| !decision.is_admitted)
        .map(|(bucket, decision)| decision.retry_after_s(bucket.rate))
        .max();
    let join =
        |items: Vec<String>| HeaderValue::try_from(items.join(", ")).ok().filter(|list| !list.is_empty());
    if let Some(list) = join(charged.iter().map(policy).collect()) {
        headers.insert(RATE_LIMIT_POLICY, list);
    }
    if let Some(list) = join(charged.iter().map(state).collect()) {
        headers.insert(RATE_LIMIT, list);
    }
    if let Some(seconds) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
}
