//! The server over real sockets.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod room;
mod serve;
mod server;
