//! The metrics of the engine. Each has the label `projection`.

/// Counter: records folded.
pub(crate) const RECORDS: &str = "projector_records_total";
/// Histogram, seconds: from taking a batch to its being applied.
pub(crate) const BATCH_SECONDS: &str = "projector_batch_seconds";
/// Counter: attempts to write a batch that the store did not take.
pub(crate) const FAILURES: &str = "projector_apply_failures_total";
/// Counter: times that a partition went back to the position that its store has.
pub(crate) const REWINDS: &str = "projector_rewinds_total";
/// Counter: records that went to the dead letters, by `class` too.
pub(crate) const DEAD_LETTERS: &str = "projector_dead_letters_total";
/// Gauge: keys of this instance's partitions whose records wait in the dead letters.
pub(crate) const PARKED: &str = "projector_parked_keys";
/// Gauge: partitions that can't go on without an operator.
pub(crate) const BLOCKED: &str = "projector_blocked_partitions";
