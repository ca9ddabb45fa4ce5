//! Tests of the client against a simulated cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod simulation;
