//! Creates, switches and drops the generations of a view, under the view's lock.

mod mysql;
mod redis;
mod store;

use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;
use vidlog_projection_engine::{
    desired_state::{self, hold::Hold, view_lock::ViewLock},
    store::Stores,
    view::Projection,
};
use vidlog_schemas::projections::View;

use self::{mysql::MySqlGenerations, redis::RedisGenerations, store::GenerationStore};

/// Time for which the old generation is kept: requests that read it end within 5 s.
pub(super) const GRACE: Duration = Duration::from_secs(8);

/// Generations of one view.
pub(super) struct Generations {
    /// Number of the live generation when the lock was taken.
    pub(super) live: u32,
    store: Box<dyn GenerationStore>,
    lock: ViewLock,
}

impl Generations {
    /// Takes the view's lock and points the target's keys at the live generation.
    pub(super) async fn lock(projection: Projection, target: Stores) -> anyhow::Result<Self> {
        let lock = ViewLock::take(&target.mysql, projection).await?;
        let states = desired_state::read(&target.mysql)
            .await
            .context("failed to read the live generation from MySQL")?;
        let live = states.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, live);
        let store: Box<dyn GenerationStore> = match projection.catalogued.view {
            View::Redis(_) => Box::new(RedisGenerations { projection, target, live }),
            View::MySql(tables) => Box::new(MySqlGenerations { projection, tables, target, live }),
        };
        Ok(Self { live, store, lock })
    }

    /// Number of the next generation.
    pub(super) const fn next_number(&self) -> u32 {
        self.live + 1
    }

    /// Creates the next generation, or finds the one of an earlier rebuild. Returns its stores.
    pub(super) async fn create_next(&self) -> anyhow::Result<Stores> {
        self.store.create_next().await
    }

    /// Makes the next generation the live one, in one step that requires the hold and ends it. Returns false
    /// if the hold has ended before, or if a long read blocked the switch.
    pub(super) async fn take_over(&self, hold: &mut Hold<'_>) -> anyhow::Result<bool> {
        self.lock.ensure_held().await?;
        self.store.take_over(hold).await
    }

    /// Returns the stores of the generation that was live until the switch, if it may have late writes.
    pub(super) fn replaced(&self) -> anyhow::Result<Option<Stores>> {
        self.store.replaced()
    }

    /// Drops the generations before the one that took over.
    pub(super) async fn drop_old(&self) -> anyhow::Result<()> {
        self.lock.ensure_held().await?;
        self.store.drop_before(self.next_number()).await
    }

    /// Drops what interrupted rebuilds left.
    pub(super) async fn drop_all_but_live(&self) -> anyhow::Result<()> {
        self.store.publish_live().await?;
        self.store.drop_next().await?;
        // Readers may still read a generation that was live until recently.
        sleep(GRACE).await;
        self.store.drop_before(self.live).await
    }

    /// Drops the next generation, and what a switch left.
    pub(super) async fn drop_next(&self) -> anyhow::Result<()> {
        self.store.drop_next().await
    }
}
