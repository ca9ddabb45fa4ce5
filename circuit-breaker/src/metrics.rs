//! The metrics of circuit breakers.

/// Gauge, by `store` and `node`: 1 while calls fail because the server is unreachable, else 0.
pub(crate) const CIRCUIT_OPEN: &str = "vidlog_circuit_open";
