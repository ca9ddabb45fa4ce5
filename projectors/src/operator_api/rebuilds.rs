//! Rebuilds within a running process, on demand. If the process ends during one, the next request continues
//! it.

use std::collections::BTreeMap;

use crate::rebuild::{IfDifferent, Rebuild};
use serde::Serialize;
use tracing::{error, info};
use vidlog_projection_engine::view::Projection;
use vidlog_service_kit::config::{Kafka, Stores};

use super::jobs::{Job, JobState, Jobs, listed};

/// Rebuilds of a process. Clones share them.
#[derive(Clone)]
pub(super) struct Rebuilds {
    kafka: Kafka,
    stores: Stores,
    jobs: Jobs<RebuildResult>,
}

/// Result of a rebuild.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RebuildResult {
    /// Generation that is live now: the previous one if the two differed and both were kept.
    generation: u32,
    /// Lines compared.
    lines: usize,
    /// Lines that differ; the comparison stops at [`MAX_DIFFERENCES`](crate::rebuild::MAX_DIFFERENCES).
    differences: usize,
    /// First differences.
    first: Vec<String>,
}

impl Rebuilds {
    pub(super) fn new(kafka: &Kafka, stores: &Stores) -> Self {
        Self { kafka: kafka.clone(), stores: stores.clone(), jobs: Jobs::default() }
    }

    /// Returns the last rebuilds of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, JobState<RebuildResult>> {
        self.jobs.last(projections)
    }

    /// Starts a rebuild in the background. Returns false if one of this projection is in progress.
    pub(super) fn begin(&self, projection: Projection, if_different: IfDifferent) -> bool {
        let Some(job) = self.jobs.claim(&projection) else {
            return false;
        };
        job.set_progress("preparing".to_owned());
        let rebuilds = self.clone();
        tokio::spawn(async move {
            let name = projection.name();
            let rebuilt =
                job.run(|job| async move { rebuilds.rebuild(projection, if_different, &job).await }).await;
            match rebuilt {
                Ok(RebuildResult { generation, differences, .. }) => {
                    info!(projection = name, generation, differences, "rebuilt");
                }
                Err(error) => error!(projection = name, error, "rebuild failed"),
            }
        });
        true
    }

    /// Drops the next generation of a rebuild that was interrupted or found differences.
    pub(super) async fn drop_next(&self, projection: Projection) -> anyhow::Result<()> {
        Rebuild::begin(&self.kafka, &self.stores, projection).await?.drop_next().await
    }

    async fn rebuild(
        &self,
        projection: Projection,
        if_different: IfDifferent,
        job: &Job<RebuildResult>,
    ) -> anyhow::Result<RebuildResult> {
        let rebuild = Rebuild::begin(&self.kafka, &self.stores, projection).await?;
        let mut progress = rebuild.progress();
        let running = rebuild.run(if_different);
        tokio::pin!(running);
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome?,
                Ok(()) = progress.changed() => job.set_progress(progress.borrow_and_update().to_string()),
            }
        };
        Ok(RebuildResult {
            generation: outcome.generation.1,
            lines: outcome.lines,
            differences: outcome.differences.len(),
            first: listed(&outcome.differences),
        })
    }
}
