//! The metrics of the query API.

/// Histogram, by `route` and `status`: seconds until the response headers.
pub const REQUEST_SECONDS: &str = "vidlog_query_request_seconds";
/// Counter: requests rejected because of `--query-max-requests`.
pub const REQUESTS_REJECTED: &str = "vidlog_query_requests_turned_away_total";
/// Counter: panics in handlers.
pub const PANICS: &str = "vidlog_query_panics_total";
