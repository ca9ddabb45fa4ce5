//! The metrics of the query side, by name.

/// Histogram, by `route` and `status`: how long requests took, to the head of the answer.
pub const REQUEST_SECONDS: &str = "vidlog_query_request_seconds";
/// Counter: requests that were turned away because too many were worked on.
pub const REQUESTS_TURNED_AWAY: &str = "vidlog_query_requests_turned_away_total";
/// Counter: handlers that panicked.
pub const PANICS: &str = "vidlog_query_panics_total";
