//! Audits within a running process: on demand or periodic.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::gauge;
use serde::Serialize;
use tokio::time::timeout;
use tracing::{error, info, warn};
use vidlog_service_kit::{clock::Clock, shutdown::Shutdown};

use crate::{
    metrics::{AUDIT_DIFFERENCES, AUDIT_TIME},
    operator::Operator,
};
use vidlog_projection_engine::view::Projection;

/// Number of differences that the status lists; all are counted.
const MAX_LISTED: usize = 20;

/// Audits of a process, at most one per projection at a time. Clones share them.
#[derive(Clone)]
pub(super) struct Audits {
    operator: Operator,
    last: Arc<Mutex<BTreeMap<&'static str, Audit>>>,
}

/// Last audit of a projection in this process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Audit {
    /// In progress.
    Running {
        /// Start, in ms since 1970.
        begun_ms: i64,
    },
    /// Completed.
    Done {
        /// End, in ms since 1970.
        ended_ms: i64,
        /// Records folded.
        records: usize,
        /// Lines compared.
        lines: usize,
        /// Lines that differ.
        differences: usize,
        /// First differences.
        first: Vec<String>,
    },
    /// Failed.
    Failed {
        /// End, in ms since 1970.
        ended_ms: i64,
        /// Error message.
        error: String,
    },
}

impl Audits {
    pub(super) fn new(operator: Operator) -> Self {
        Self { operator, last: Arc::default() }
    }

    pub(super) const fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Returns the last audits of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, Audit> {
        let last = self.locked();
        let of = |projection: &Projection| last.get_key_value(projection.name());
        projections.iter().filter_map(of).map(|(name, audit)| (*name, audit.clone())).collect()
    }

    /// Starts an audit in the background. Returns false if one of this projection is in progress.
    pub(super) fn begin(&self, projection: Projection) -> bool {
        let is_begun = self.claim(&projection);
        if is_begun {
            let audits = self.clone();
            tokio::spawn(async move { audits.run(projection).await });
        }
        is_begun
    }

    /// Audits some projections periodically until shutdown. Runs one audit at a time, which bounds the
    /// memory.
    pub(super) async fn stand(self, every: Duration, projections: Vec<Projection>, shutdown: Shutdown) {
        while timeout(every, shutdown.wait()).await.is_err() {
            for projection in &projections {
                if !shutdown.is_requested() && self.claim(projection) {
                    self.run(*projection).await;
                }
            }
        }
    }

    fn claim(&self, projection: &Projection) -> bool {
        let mut last = self.locked();
        if matches!(last.get(projection.name()), Some(Audit::Running { .. })) {
            return false;
        }
        last.insert(projection.name(), Audit::Running { begun_ms: Clock::system().now_ms() });
        true
    }

    async fn run(&self, projection: Projection) {
        let name = projection.name();
        let operator = self.operator.clone();
        // Runs as a separate task, so that a panic is recorded as a failure.
        let audited = tokio::spawn(async move { operator.audit(&[projection]).await }).await;
        let ended_ms = Clock::system().now_ms();
        let audit = match audited.map_err(anyhow::Error::from).flatten() {
            Ok(report) => {
                let count = report.difference_count;
                let first: Vec<_> =
                    report.differences.iter().take(MAX_LISTED).map(ToString::to_string).collect();
                if count == 0 {
                    info!(projection = name, records = report.records, lines = report.lines, "audited");
                } else {
                    error!(
                        projection = name,
                        differences = count,
                        ?first,
                        "the view is not what the log says"
                    );
                }
                gauge!(AUDIT_DIFFERENCES, "projection" => name).set(metric(count));
                gauge!(AUDIT_TIME, "projection" => name)
                    .set(Duration::from_millis(u64::try_from(ended_ms).unwrap_or_default()).as_secs_f64());
                let (records, lines) = (report.records, report.lines);
                Audit::Done { ended_ms, records, lines, differences: count, first }
            }
            Err(error) => {
                let error = format!("{error:#}");
                warn!(projection = name, error, "an audit could not be done");
                Audit::Failed { ended_ms, error }
            }
        };
        self.locked().insert(name, audit);
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, Audit>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn metric(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
