//! The metrics of circuit breakers.

/// Gauge, by `store` and `node`: the open circuits of the server. A process has one per connection pool or Redis handle.
pub(crate) const CIRCUIT_OPEN: &str = "vidlog_circuit_open";
