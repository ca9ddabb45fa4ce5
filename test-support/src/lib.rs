//! What the integration tests of several crates share: services under test, one namespace per test, an in-process API
//! client, deadlines, child processes, Redis servers and a TCP proxy.
//!
//! Knows neither an event nor Kafka, so that query-api's tests can use it; `vidlog-test-support-kafka` adds those.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking"
)]

pub mod api;
pub mod link;
pub mod namespace;
pub mod nginx;
pub mod plans;
pub mod process;
pub mod proxy;
pub mod redis_cluster;
pub mod redis_server;
pub mod wait;

pub use api::{Answer, Api, Call};
pub use link::{Condition, Link};
pub use namespace::{Namespace, UNREACHABLE_MYSQL, UNREACHABLE_REDIS};
pub use process::ChildProcess;
pub use proxy::Proxy;
pub use redis_cluster::RedisCluster;
pub use redis_server::RedisServer;
pub use wait::{DEADLINE, until};
