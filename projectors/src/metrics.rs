//! Metrics of audits. Each has the label `projection`.

/// Gauge: Redis keys and MySQL rows that differed in the last audit of this process.
pub(crate) const AUDIT_DIFFERENCES: &str = "projector_audit_differences";
/// Gauge, seconds since 1970: end of the last audit.
pub(crate) const AUDIT_TIME: &str = "projector_audit_timestamp_seconds";
