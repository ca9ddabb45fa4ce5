//! The query side against real stores. Each test fills read models of its own, as the projectors would have.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod chat;
mod comments;
mod facts;
mod feed;
mod freshness;
mod generations;
mod http;
mod lists;
mod media;
mod outage;
mod relations;
mod support;
mod users;
