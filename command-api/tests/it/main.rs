//! Tests the command side against real Kafka, MySQL and Redis. Each test has its own namespace.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounts;
mod commands;
mod gateway;
mod http;
mod idempotency;
mod leases;
mod limits;
mod media;
mod names;
mod outage;
mod outbox;
mod plans;
mod support;
mod topics;
mod uploads;
