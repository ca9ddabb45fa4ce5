//! The metrics of audits. Each has the label `projection`.

/// Gauge: keys and rows that the last audit in this process found to differ.
pub(crate) const AUDIT_DIFFERENCES: &str = "projector_audit_differences";
/// Gauge, seconds since 1970: when that audit was done.
pub(crate) const AUDIT_TIME: &str = "projector_audit_timestamp_seconds";
