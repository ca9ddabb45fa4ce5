//! All metric names of rate limits.

/// Counter: refused calls, by `limit`.
pub(crate) const LIMITED_CALLS: &str = "vidlog_limited_calls_total";
/// Counter: calls that this process counted alone, because Redis was unavailable or slow.
pub(crate) const LOCALLY_LIMITED_CALLS: &str = "vidlog_locally_limited_calls_total";
/// Counter: calls without a limit of an address, because a proxy forwarded them and no trusted hops are configured.
pub(crate) const UNATTRIBUTED_CALLS: &str = "vidlog_unattributed_calls_total";
