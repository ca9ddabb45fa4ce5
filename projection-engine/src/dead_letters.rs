//! Dead letters: records that cannot be folded.
//!
//! Such a record parks its key. `batch_applier` appends it, and every later record of the key, to the dead-letter
//! topic before the atomic write that moves the checkpoint past it; that write also stores which keys are parked. So
//! other keys continue, no record overtakes an earlier one of its key, and a retry (`retry`) folds the waiting
//! records in order.

mod batch_applier;
pub mod dead_letter;
mod limits;
mod queue;
mod retry;

pub use self::{
    batch_applier::{ApplyError, BatchApplier},
    dead_letter::{DeadLetter, Discards},
    queue::DeadLetterQueue,
    retry::{NotParked, Outcome, Retry},
};
