//! View under audit: its position, its parked keys and its lock.

use anyhow::{Context, ensure};
use vidlog_projection_engine::{
    dead_letters::DeadLetterQueue,
    desired_state::view_lock::ViewLock,
    log::{Offsets, Partition},
    store::{Position, SharedStore},
    view::Projection,
};

use super::{
    excluded::Excluded,
    fold::{Folding, Step},
};

/// View under audit.
pub(super) struct View {
    pub(super) store: SharedStore,
    pub(super) dead_letters: DeadLetterQueue,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
}

impl View {
    pub(super) fn projection(&self) -> Projection {
        *self.store.projection()
    }

    pub(super) async fn positions(&self) -> anyhow::Result<Vec<Position>> {
        self.store.positions(&self.partitions).await.context("failed to read the view's position")
    }

    /// Returns the offsets that all parts of the view have folded.
    pub(super) fn lowest(&self, positions: &[Position]) -> Offsets {
        self.partitions.iter().copied().zip(positions.iter().map(Position::lowest)).collect()
    }

    /// Returns the records that the view does not have at its current position. Fails if a key that was
    /// parked in the folded part is not parked any more.
    pub(super) async fn excluded(&self, folding: &Folding) -> anyhow::Result<Excluded> {
        let excluded = Excluded::read(&self.store, &self.dead_letters, &self.partitions).await?;
        self.ensure_still_parked(&folding.excluded, &excluded, &folding.at)?;
        Ok(excluded)
    }

    pub(super) fn ensure_still_parked(
        &self,
        before: &Excluded,
        later: &Excluded,
        offsets: &Offsets,
    ) -> anyhow::Result<()> {
        ensure!(
            before.still_hold_in(later, offsets),
            "parked records of {} were folded during the audit; run it again",
            self.projection().name()
        );
        Ok(())
    }

    /// Returns whether any process has the view's lock. Only that process can fold parked records now.
    pub(super) async fn is_locked(&self) -> anyhow::Result<bool> {
        Ok(ViewLock::is_taken(&self.store.stores().mysql, self.projection()).await?)
    }

    /// Returns the next step of a fold: to the offsets that all parts of the view have folded.
    pub(super) async fn step(&self, mut folding: Folding) -> anyhow::Result<Step> {
        let until = self.lowest(&self.positions().await?);
        // In this order, so that every key that is parked before the position is excluded.
        folding.excluded = self.excluded(&folding).await?;
        Ok((folding, until))
    }
}
