//! Rebuilds that a process was asked for. What one had begun when its process ended is gone on with when it is asked for
//! again.

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

/// Differences that are kept for whoever asks; all are counted.
const KEPT: usize = 20;

/// The rebuilds of a process, one of a projection at a time. Clones share them.
#[derive(Clone)]
pub(super) struct Rebuilds {
    log: Log,
    stores: Stores,
    last: Arc<Mutex<BTreeMap<&'static str, Rebuilt>>>,
}

/// The last rebuild of a projection in this process.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum Rebuilt {
    /// It goes on.
    Running {
        /// Since when, in ms since 1970.
        begun_ms: i64,
        /// How far it is, in words.
        progress: String,
    },
    /// It was done.
    Done {
        /// When, in ms since 1970.
        ended_ms: i64,
        /// The generation that is live now. That of before, if the two differed.
        generation: u32,
        /// Lines that were compared.
        lines: usize,
        /// How many of them differ; with [`ENOUGH`](crate::rebuild::ENOUGH) the comparison ended.
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

impl Rebuilds {
    pub(super) fn new(log: &Log, stores: &Stores) -> Self {
        Self { log: log.clone(), stores: stores.clone(), last: Arc::default() }
    }

    /// The last rebuilds of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, Rebuilt> {
        let last = self.locked();
        let of = |projection: &Projection| last.get_key_value(projection.name());
        projections.iter().filter_map(of).map(|(name, rebuilt)| (*name, rebuilt.clone())).collect()
    }

    /// Begins a rebuild, which goes on by itself; false if one goes on already.
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
            // A task of its own, so that it is noted also when it panics.
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

    /// Drops what a rebuild left that was cut off, or that found differences.
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
            first: outcome.differences.iter().take(KEPT).map(ToString::to_string).collect(),
        })
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<&'static str, Rebuilt>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
