//! Audits in a process that runs: on demand, or again and again.

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

/// Differences that are kept for whoever asks; all are counted.
const KEPT: usize = 20;

/// The audits of a process, one of a projection at a time. Clones share them.
#[derive(Clone)]
pub(super) struct Audits {
    operator: Operator,
    last: Arc<Mutex<BTreeMap<&'static str, Audit>>>,
}

/// The last audit of a projection in this process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Audit {
    /// It goes on.
    Running {
        /// Since when, in ms since 1970.
        begun_ms: i64,
    },
    /// It was done.
    Done {
        /// When, in ms since 1970.
        ended_ms: i64,
        /// Records that were folded.
        records: usize,
        /// Lines that were compared.
        lines: usize,
        /// How many of them differ.
        differences: usize,
        /// The first of these.
        first: Vec<String>,
    },
    /// It could not be done.
    Failed {
        /// When, in ms since 1970.
        ended_ms: i64,
        /// Why.
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

    /// The last audits of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, Audit> {
        let last = self.locked();
        let of = |projection: &Projection| last.get_key_value(projection.name());
        projections.iter().filter_map(of).map(|(name, audit)| (*name, audit.clone())).collect()
    }

    /// Begins an audit, which goes on by itself; false if one goes on already.
    pub(super) fn begin(&self, projection: Projection) -> bool {
        let is_begun = self.claim(&projection);
        if is_begun {
            let audits = self.clone();
            tokio::spawn(async move { audits.run(projection).await });
        }
        is_begun
    }

    /// Audits some projections one after the other, again and again, until shutdown is given. One at a time, as an audit
    /// holds in memory what it compares.
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
        // A task of its own, so that it is noted also when it panics.
        let audited = tokio::spawn(async move { operator.audit(&[projection]).await }).await;
        let ended_ms = Clock::system().now_ms();
        let audit = match audited.map_err(anyhow::Error::from).flatten() {
            Ok(report) => {
                let count = report.difference_count;
                let first: Vec<_> = report.differences.iter().take(KEPT).map(ToString::to_string).collect();
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
