//! Audits within a running process: on demand or periodic.

use std::{collections::BTreeMap, time::Duration};

use metrics::gauge;
use serde::Serialize;
use tokio::time::timeout;
use tracing::{error, info, warn};
use vidlog_service_kit::{clock::Clock, shutdown::Shutdown};

use super::jobs::{Job, JobState, Jobs, listed};
use crate::{
    metrics::{AUDIT_DIFFERENCES, AUDIT_TIME},
    operator::Operator,
};
use vidlog_projection_engine::view::Projection;

/// Audits of a process. Clones share them.
#[derive(Clone)]
pub(super) struct Audits {
    operator: Operator,
    jobs: Jobs<AuditResult>,
}

/// Result of an audit.
#[derive(Clone, Debug, Serialize)]
pub(super) struct AuditResult {
    /// Records folded.
    records: usize,
    /// Lines compared.
    lines: usize,
    /// Lines that differ.
    differences: usize,
    /// First differences.
    first: Vec<String>,
}

impl Audits {
    pub(super) fn new(operator: Operator) -> Self {
        Self { operator, jobs: Jobs::default() }
    }

    pub(super) const fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Returns the last audits of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, JobState<AuditResult>> {
        self.jobs.last(projections)
    }

    /// Starts an audit in the background. Returns false if one of this projection is in progress.
    pub(super) fn begin(&self, projection: Projection) -> bool {
        let Some(job) = self.jobs.claim(&projection) else {
            return false;
        };
        tokio::spawn(run(job, self.operator.clone(), projection));
        true
    }

    /// Audits some projections periodically until shutdown. Runs one audit at a time, which bounds the
    /// memory.
    pub(super) async fn run_periodically(
        self,
        every: Duration,
        projections: Vec<Projection>,
        shutdown: Shutdown,
    ) {
        while timeout(every, shutdown.wait()).await.is_err() {
            for projection in &projections {
                if !shutdown.is_requested()
                    && let Some(job) = self.jobs.claim(projection)
                {
                    run(job, self.operator.clone(), *projection).await;
                }
            }
        }
    }
}

async fn run(job: Job<AuditResult>, operator: Operator, projection: Projection) {
    let name = projection.name();
    let audited = job.run(|_| async move { audit(&operator, projection).await }).await;
    match audited {
        Ok(AuditResult { records, lines, differences, first }) => {
            if differences == 0 {
                info!(projection = name, records, lines, "audited");
            } else {
                error!(projection = name, differences, ?first, "view differs from the log");
            }
            let now_ms = u64::try_from(Clock::system().now_ms()).unwrap_or_default();
            gauge!(AUDIT_DIFFERENCES, "projection" => name).set(metric(differences));
            gauge!(AUDIT_TIME, "projection" => name).set(Duration::from_millis(now_ms).as_secs_f64());
        }
        Err(error) => warn!(projection = name, error, "audit failed"),
    }
}

async fn audit(operator: &Operator, projection: Projection) -> anyhow::Result<AuditResult> {
    let report = operator.audit(&[projection]).await?;
    Ok(AuditResult {
        records: report.records,
        lines: report.lines,
        differences: report.difference_count,
        first: listed(&report.differences),
    })
}

fn metric(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
