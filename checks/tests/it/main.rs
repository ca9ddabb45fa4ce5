//! The checks, run on this repository and on sources that are written for the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod documents;
mod module_cycles;
mod sources;
