//! Metrics of projections beside those of the engine. Each has the label `projection`.

/// Gauge: Redis keys and MySQL rows that differed in the last audit of this process.
pub(crate) const AUDIT_DIFFERENCES: &str = "projector_audit_differences";
/// Gauge, seconds since 1970: end of the last audit.
pub(crate) const AUDIT_TIME: &str = "projector_audit_timestamp_seconds";
/// Gauge: partitions of this process that are blocked or stopped.
pub(crate) const BLOCKED: &str = "projector_blocked_partitions";
/// Gauge: records between a partition's visible position and its end; has the label `partition` too, as the following.
pub(crate) const LAG_RECORDS: &str = "projector_lag_records";
/// Gauge: age of the first record of a partition that is not folded.
pub(crate) const LAG_SECONDS: &str = "projector_lag_seconds";
/// Gauge: 1 for the state of a partition, 0 for the others; has the label `state` too.
pub(crate) const STATE: &str = "projector_partition_state";
