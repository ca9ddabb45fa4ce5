//! End-to-end tests over HTTP: a `standalone` process with real Kafka, MySQL, Redis and ffmpeg. Each test has its own
//! process and namespace.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod app;
mod client;
mod dialects;
mod exactness;
mod faults;
mod openapi;
mod rebuild;
mod rules;
mod story;
