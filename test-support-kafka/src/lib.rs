//! Topics of one test on the Kafka under test: append events, read them back, break things on purpose.
//!
//! A crate apart from `vidlog-test-support`, so that `deny.toml` can keep query-api's tests away from events and Kafka.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

mod murmur2;
mod topics;

pub use murmur2::{murmur2, partition_of};
pub use topics::{Kafka, LoggedEvent, PARTITIONS, envelope, unreachable_kafka};
