//! The metrics of the engine. Each has the label `projection`.

/// Counter: records folded.
pub(crate) const RECORDS: &str = "projector_records_total";
/// Histogram, seconds: time to apply a batch, with retries.
pub(crate) const BATCH_SECONDS: &str = "projector_batch_seconds";
/// Counter: failed attempts to write a batch.
pub(crate) const FAILURES: &str = "projector_apply_failures_total";
/// Counter: restarts of a partition at its store's position.
pub(crate) const REWINDS: &str = "projector_rewinds_total";
/// Counter: records sent to the dead letters; has the label `class` too.
pub(crate) const DEAD_LETTERS: &str = "projector_dead_letters_total";
/// Gauge: keys of this instance's partitions whose records wait in the dead letters.
pub(crate) const PARKED: &str = "projector_parked_keys";
