//! Tests of the client against a real and a simulated cluster.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cluster;
mod connection;
mod simulation;
