//! The projection engine: folds the event log into views in Redis and MySQL.
//!
//! A projection is one pure function. The engine owns everything else: consuming, batching, checkpoints, dead letters,
//! retries, metrics. A batch's writes and its position are one atomic write in the store that holds the view, and the
//! store refuses a batch that does not follow its position. So every record counts exactly once, no matter which process
//! crashes or when.
//!
//! To the engine an event is opaque: it decodes envelopes, and never matches on an event. Modules depend on earlier ones
//! only: log, view, store, desired state, dead letters, then runner, replay and completeness.

pub mod completeness;
pub mod dead_letters;
pub mod desired_state;
pub mod log;
mod metrics;
pub mod replay;
pub mod runner;
pub mod store;
pub mod view;
