//! The command side against a real broker and real stores. Each test has a namespace of its own.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod accounts;
mod commands;
mod http;
mod idempotency;
mod leases;
mod media;
mod outage;
mod outbox;
mod support;
mod topics;
mod uploads;
