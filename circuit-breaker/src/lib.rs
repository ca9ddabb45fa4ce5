//! A circuit breaker: while a server is unreachable, calls fail at once instead of waiting for a timeout.
//!
//! A call without an answer does not show that its server is unreachable: it may be slow, wait for a connection, or have
//! lost its connection alone. So each such call starts a *trial*, a cheap command on the way that calls take, and counts
//! only if the trial fails. An error that the server answers with is an answer.

mod breaker;
mod metrics;
mod window;

pub use breaker::{AdmittedCall, CircuitBreaker, Outcome, Server};
