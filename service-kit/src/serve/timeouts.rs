//! Limits on the time of a connection.

use std::time::Duration;

/// Default of `--idle-timeout-s`, in seconds.
pub(super) const DEFAULT_IDLE_TIMEOUT_S: u64 = 75;

/// How long a connection may take for each of its phases.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From the connection's start, or the first byte of a later request, to the end of the request's head.
    pub head: Duration,
    /// From a response to the first byte of the next request.
    pub idle: Duration,
    /// Without progress in sending a response. A paused video player stops reading, too, and resumes with a range
    /// request.
    pub write: Duration,
    /// Reading what a client still sends after its request was refused.
    pub linger: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(DEFAULT_IDLE_TIMEOUT_S),
            write: Duration::from_mins(1),
            linger: Duration::from_secs(30),
        }
    }
}
