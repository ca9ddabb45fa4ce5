//! Operator actions on dead letters: list, retry and discard.

use std::fmt;

use anyhow::Context;
use futures::future::join_all;
use serde_json::{Value, json};
use vidlog_projection_engine::{
    dead_letters::{DeadLetterQueue, Outcome, Retry},
    desired_state::{self, view_lock::ViewLock},
    log::{Partition, RecordKey},
    store::{Parked, ParkedKey, Stores},
    view::Projection,
};

use crate::projections;

/// Result of the retry of a key.
pub(crate) struct Retried {
    partition: Partition,
    key: RecordKey,
    outcome: Outcome,
}

/// Folds the parked records of a projection, or of one key of it, in order. Calls `report` with the result of
/// each key.
pub(crate) async fn retry(
    target: &Stores,
    dead_letters: &DeadLetterQueue,
    projection: Projection,
    key: Option<&RecordKey>,
    mut report: impl FnMut(Retried),
) -> anyhow::Result<()> {
    let lock = lock_view(target, projection).await?;
    let retry = Retry::new(target.view(projection), dead_letters.clone());
    for ParkedEntry { partition, key: parked, .. } in parked_keys(target, projection).await? {
        if key.is_none_or(|key| *key == parked) {
            lock.ensure_held().await?;
            let outcome = retry.key(partition, &parked).await;
            let outcome = outcome.with_context(|| format!("in {} key {parked}", partition.id()))?;
            report(Retried { partition, key: parked, outcome });
        }
    }
    Ok(())
}

/// Skips the first parked record of a key, and folds the rest.
pub(crate) async fn discard(
    target: &Stores,
    dead_letters: &DeadLetterQueue,
    projection: Projection,
    (partition, offset): (Partition, i64),
) -> anyhow::Result<Retried> {
    let _lock = lock_view(target, projection).await?;
    let retry = Retry::new(target.view(projection), dead_letters.clone());
    let (key, outcome) = retry.discard(partition, offset).await?;
    Ok(Retried { partition, key, outcome })
}

/// Takes the view's lock, which excludes rebuilds: folding parked records moves no position, so a rebuild
/// could not detect it.
async fn lock_view(target: &Stores, projection: Projection) -> anyhow::Result<ViewLock> {
    let lock = ViewLock::take(&target.mysql, projection).await?;
    load_generations(target).await?;
    Ok(lock)
}

async fn load_generations(target: &Stores) -> anyhow::Result<()> {
    let states =
        desired_state::read(&target.mysql).await.context("failed to read the live generations from MySQL")?;
    for projection in projections::ALL {
        let generation = states.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }
    Ok(())
}

/// Parked key of a projection.
pub(crate) struct ParkedEntry {
    pub(crate) projection: &'static str,
    pub(crate) partition: Partition,
    pub(crate) key: RecordKey,
    pub(crate) parked: ParkedKey,
}

/// Returns the parked keys of a projection.
pub(crate) async fn parked_keys(target: &Stores, projection: Projection) -> anyhow::Result<Vec<ParkedEntry>> {
    let (waiting, unavailable) = available_parked_keys(target, &[projection]).await?;
    unavailable.into_iter().next().map_or(Ok(waiting), Err)
}

/// Returns the parked keys of some projections, and an error for each projection whose store is unavailable.
pub(crate) async fn available_parked_keys(
    target: &Stores,
    projections: &[Projection],
) -> anyhow::Result<(Vec<ParkedEntry>, Vec<anyhow::Error>)> {
    load_generations(target).await?;
    let read = join_all(projections.iter().map(async |projection| {
        let (store, projection) = (target.view(*projection), projection.name());
        let parked = store.parked().await.with_context(|| format!("parked keys of {projection}"))?;
        let of_partition = |(partition, keys): (Partition, Parked)| {
            keys.into_iter().map(move |(key, parked)| ParkedEntry { projection, partition, key, parked })
        };
        anyhow::Ok(parked.into_iter().flat_map(of_partition).collect::<Vec<_>>())
    }));
    let (mut all, mut unavailable) = (Vec::new(), Vec::new());
    for result in read.await {
        match result {
            Ok(waiting) => all.extend(waiting),
            Err(error) => unavailable.push(error),
        }
    }
    Ok((all, unavailable))
}

/// Returns parked keys as JSON.
pub(crate) fn as_json(waiting: &[ParkedEntry]) -> Value {
    let value = |ParkedEntry { projection, partition, key, parked }: &ParkedEntry| {
        json!({
            "projection": projection,
            "partition": partition.id(),
            "key": key.as_str(),
            "first_offset": parked.first,
            "last_offset": parked.last,
            "waiting": parked.waiting,
            "class": parked.failure.class.name(),
            "message": parked.failure.message,
        })
    };
    Value::Array(waiting.iter().map(value).collect())
}

impl Retried {
    /// Returns whether the key has no parked records left.
    pub(crate) const fn is_folded(&self) -> bool {
        matches!(self.outcome, Outcome::Folded)
    }
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, key, outcome } = self;
        match outcome {
            Outcome::Folded => write!(f, "{} key {key}: all records folded", partition.id()),
            Outcome::Waits(ParkedKey { first, waiting, failure, .. }) => write!(
                f,
                "{} key {key}: {waiting} records stay parked from offset {first} on, {}: {}",
                partition.id(),
                failure.class,
                failure.message
            ),
            Outcome::Lost { parked: ParkedKey { waiting, .. }, found } => write!(
                f,
                "{} key {key}: {waiting} records are parked, but the dead-letter topic has {found}; rebuild the view",
                partition.id()
            ),
        }
    }
}
