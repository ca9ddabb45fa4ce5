//! Tests of the projectors against real Kafka, MySQL and Redis. Each has a namespace of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod as_of;
mod audit;
mod blocked;
mod cluster;
mod completeness;
mod contention;
mod dead_letters;
mod diverting;
mod faults;
mod folding;
mod leaders;
mod log_end;
mod operate;
mod plans;
mod rebuild;
mod support;
mod upgrade;
