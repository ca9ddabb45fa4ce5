//! The query API against real stores. Each test fills read models in its own namespace, as the projectors do.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod chat;
mod cluster;
mod comments;
mod facts;
mod feed;
mod freshness;
mod gateway;
mod generations;
mod http;
mod limits;
mod lists;
mod media;
mod outage;
mod plans;
mod relations;
mod slow;
mod staleness;
mod support;
mod top;
mod users;
