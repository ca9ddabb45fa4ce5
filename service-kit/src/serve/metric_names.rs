//! Names of the metrics.

/// Gauge: open connections, by `server`, without those that are being refused.
pub(super) const CONNECTIONS: &str = "vidlog_http_connections";
/// Counter: connections that were refused because all others were busy, by `server`.
pub(super) const CONNECTIONS_REFUSED: &str = "vidlog_http_connections_refused_total";
/// Counter: connections that the server closed, by `server` and `reason`.
pub(super) const CONNECTIONS_CLOSED: &str = "vidlog_http_connections_closed_total";
