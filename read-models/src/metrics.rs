//! The metrics of the read side, by name.

/// Counter: reads that had to wait for a recent write.
pub const FRESHNESS_WAITS: &str = "vidlog_freshness_waits_total";
/// Histogram: how long they waited.
pub const FRESHNESS_WAIT_SECONDS: &str = "vidlog_freshness_wait_seconds";
/// Counter: waits that ran out; the answer said that it was stale.
pub const FRESHNESS_TIMEOUTS: &str = "vidlog_freshness_timeouts_total";
/// Counter: reads that MySQL answered because Redis was away, or a view not complete.
pub const FALLBACK_READS: &str = "vidlog_fallback_reads_total";
/// Counter, by `store`: calls that a store did not answer.
pub const STORE_FAILURES: &str = "vidlog_store_failures_total";
