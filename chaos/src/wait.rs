//! Conditions with deadlines.

use std::time::Duration;

use anyhow::Context;
use vidlog_test_support::wait::within;

/// Deadline of what takes a second or two on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_mins(2);

/// Waits for a condition, until [`DEADLINE`].
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) -> anyhow::Result<()> {
    within(DEADLINE, condition).await.with_context(|| format!("waited too long until {what}"))
}
