//! Rebuilds within a running process, on demand. If the process ends during one, the next request continues
//! it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::rebuild::{IfDifferent, Rebuild};
use serde::Serialize;
use tracing::{error, info};
use vidlog_projection_engine::view::Projection;
use vidlog_service_kit::{
    clock::Clock,
    config::{Log, Stores},
};

/// Number of differences that the status lists; all are counted.
const MAX_LISTED: usize = 20;

/// Rebuilds of a process, at most one per projection at a time. Clones share them.
#[derive(Clone)]
pub(super) struct Rebuilds {
    log: Log,
    stores: Stores,
    last: Arc<Mutex<BTreeMap<&'static str, Rebuilt>>>,
}

/// Last rebuild of a projection in this process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Rebuilt {
    /// In progress.
    Running {
        /// Start, in ms since 1970.
        begun_ms: i64,
        /// Progress, as text.
        progress: String,
    },
    /// Completed.
    Done {
        /// End, in ms since 1970.
        ended_ms: i64,
        /// Generation that is live now: the previous one if the two differed and both were kept.
        generation: u32,
        /// Lines compared.
        lines: usize,
        /// Lines that differ; the comparison stops at [`ENOUGH`](crate::rebuild::ENOUGH).
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

impl Rebuilds {
    pub(super) fn new(log: &Log, stores: &Stores) -> Self {
        Self { log: log.clone(), stores: stores.clone(), last: Arc::default() }
    }

    /// Returns the last rebuilds of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, Rebuilt> {
        let last = self.locked();
        let of = |projection: &Projection| last.get_key_value(projection.name());
        projections.iter().filter_map(of).map(|(name, rebuilt)| (*name, rebuilt.clone())).collect()
    }

    /// Starts a rebuild in the background. Returns false if one of this projection is in progress.
    pub(super) fn begin(&self, projection: Projection, if_different: IfDifferent) -> bool {
        let name = projection.name();
        let begun_ms = Clock::system().now_ms();
        {
            let mut last = self.locked();
            if matches!(last.get(name), Some(Rebuilt::Running { .. })) {
                return false;
            }
            last.insert(name, Rebuilt::Running { begun_ms, progress: "beginning".to_owned() });
        }
        let rebuilds = self.clone();
        tokio::spawn(async move {
            // Runs as a separate task, so that a panic is recorded as a failure.
            let own = rebuilds.clone();
            let rebuilding =
                tokio::spawn(async move { own.rebuild(projection, if_different, begun_ms).await });
            let rebuilt = rebuilding.await.map_err(anyhow::Error::from).flatten().unwrap_or_else(|error| {
                let error = format!("{error:#}");
                error!(projection = name, error, "a rebuild could not be done");
                Rebuilt::Failed { ended_ms: Clock::system().now_ms(), error }
            });
            rebuilds.locked().insert(name, rebuilt);
        });
        true
    }

    /// Drops the next generation of a rebuild that was interrupted or found differences.
    pub(super) async fn drop_next(&self, projection: Projection) -> anyhow::Result<()> {
        Rebuild::begin(&self.log, &self.stores, projection).await?.drop_next().await
    }

    async fn rebuild(
        &self,
        projection: Projection,
        if_different: IfDifferent,
        begun_ms: i64,
    ) -> anyhow::Result<Rebuilt> {
        let name = projection.name();
        let rebuild = Rebuild::begin(&self.log, &self.stores, projection).await?;
        let mut progress = rebuild.progress();
        let running = rebuild.run(if_different);
        tokio::pin!(running);
        let outcome = loop {
            tokio::select! {
                outcome = &mut running => break outcome?,
                Ok(()) = progress.changed() => {
                    let progress = progress.borrow_and_update().to_string();
                    self.locked().insert(name, Rebuilt::Running { begun_ms, progress });
                }
            }
        };
        let (differences, (_, generation)) = (outcome.differences.len(), outcome.generation);
        info!(projection = name, generation, differences, "rebuilt");
        Ok(Rebuilt::Done {
            ended_ms: Clock::system().now_ms(),
            generation,
            lines: outcome.lines,
            differences,
            first: outcome.differences.iter().take(MAX_LISTED).map(ToString::to_string).collect(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, Rebuilt>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
