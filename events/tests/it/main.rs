//! The catalogue of events, against what is committed under `schemas/`: the schemas and every version of them that
//! there ever was, the examples, and the description of the topics.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod asyncapi;
mod catalogue;
mod compatibility;
mod damaged_records;
mod examples;
mod folder;
mod records;
