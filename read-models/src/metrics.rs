//! The metrics of reads.

/// Counter: reads that waited for a recent write.
pub const FRESHNESS_WAITS: &str = "vidlog_freshness_waits_total";
/// Histogram: seconds of these waits.
pub const FRESHNESS_WAIT_SECONDS: &str = "vidlog_freshness_wait_seconds";
/// Counter: waits that timed out; the response has `Vidlog-Stale: true`.
pub const FRESHNESS_TIMEOUTS: &str = "vidlog_freshness_timeouts_total";
/// Counter: reads from MySQL because Redis is unavailable or a view is incomplete.
pub const FALLBACK_READS: &str = "vidlog_fallback_reads_total";
/// Counter, by `store`: calls that failed because the store was unreachable or slow, or refused them.
pub const STORE_FAILURES: &str = "vidlog_store_failures_total";
