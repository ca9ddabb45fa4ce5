//! Dead letters: what becomes of records that can't be folded.
//!
//! Such a record parks its key. It, and every later record of the key, goes to the dead letters of its topic before the
//! atomic write that passes it, and that write holds which keys are parked (`batch_applier`). So other keys go on, no record
//! overtakes an earlier one of its key, and a retry (`retry`) folds what waits in order.

mod batch_applier;
pub mod letter;
mod limits;
mod queue;
mod retry;

pub use self::{
    batch_applier::{ApplyError, BatchApplier},
    letter::{DeadLetter, Discards},
    queue::DeadLetterQueue,
    retry::{NotParked, Outcome, Retry},
};
