//! The whole system as its users meet it: a `standalone` process over real Kafka, MySQL, Redis and ffmpeg, spoken to
//! over HTTP. Each test has a process and a namespace of its own.

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
