//! The checks, run on crates that are written for the test.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod module_cycles;
