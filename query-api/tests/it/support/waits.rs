//! Waits for recent writes, observed by their metric.

use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::{sleep, timeout};
use vidlog_read_models::metrics::FRESHNESS_WAITS;

/// Far above the time until a read waits, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// The waits of the current test, whose tasks all run on its thread.
pub(crate) struct Waits {
    metrics: PrometheusHandle,
    _recorder: metrics::LocalRecorderGuard<'static>,
}

impl Waits {
    /// Starts to count waits.
    pub(crate) fn record() -> Self {
        // A guard borrows its recorder. A test leaks one.
        let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
        Self { metrics: recorder.handle(), _recorder: metrics::set_default_local_recorder(recorder) }
    }

    /// Returns once a read has begun to wait.
    pub(crate) async fn begin(&self) {
        self.reach(1).await;
    }

    /// Returns once a number of reads have begun to wait.
    pub(crate) async fn reach(&self, count: u64) {
        let begun = async {
            while self.count() < count {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, begun).await.expect("too few reads wait");
    }

    /// Returns the number of waits so far.
    pub(crate) fn count(&self) -> u64 {
        let text = self.metrics.render();
        let value = text.lines().find_map(|line| line.strip_prefix(FRESHNESS_WAITS));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }
}
