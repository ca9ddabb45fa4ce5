//! Conditions with deadlines.

use std::time::Duration;

use tokio::time::{error::Elapsed, sleep, timeout};

/// Deadline of what takes a second or two on an idle machine: the machine may run other tests.
pub const DEADLINE: Duration = Duration::from_mins(3);
pub(crate) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits for a condition; panics with its description after [`DEADLINE`].
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    within(DEADLINE, condition).await.unwrap_or_else(|_| panic!("waited too long until {what}"));
}

/// Waits for a condition until a deadline.
pub async fn within(deadline: Duration, condition: impl AsyncFn() -> bool) -> Result<(), Elapsed> {
    let reached = async {
        while !condition().await {
            sleep(POLL_INTERVAL).await;
        }
    };
    timeout(deadline, reached).await
}
