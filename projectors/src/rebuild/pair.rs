//! The live and the next generation of a view.

use std::collections::BTreeMap;

use anyhow::Context;
use vidlog_projection_engine::{
    log::{Offsets, Partition},
    store::{Position, SharedStore, Stores},
    view::Projection,
};
use vidlog_schemas::projections::View;

/// Number of remaining records below which a round of catching up is the last.
pub(super) const CATCH_UP_THRESHOLD: i64 = 2000;

/// The live and the next generation of a view.
pub(super) struct Pair {
    pub(super) projection: Projection,
    /// Partitions of the projection's streams.
    pub(super) partitions: Vec<Partition>,
    pub(super) live: Stores,
    pub(super) next: Stores,
}

impl Pair {
    pub(super) fn next_store(&self) -> SharedStore {
        self.next.view(self.projection)
    }

    /// Returns the live generation's position in every partition.
    pub(super) async fn live_positions(&self) -> anyhow::Result<BTreeMap<Partition, Position>> {
        let store = self.live.view(self.projection);
        let positions =
            store.positions(&self.partitions).await.context("failed to read the view's position")?;
        Ok(self.partitions.iter().copied().zip(positions).collect())
    }

    /// Returns the number of offsets that the next generation has left to fold up to some offsets.
    pub(super) async fn left(&self, until: &Offsets) -> anyhow::Result<i64> {
        let partitions: Vec<Partition> = until.keys().copied().collect();
        let positions = self.next_store().positions(&partitions).await?;
        Ok(positions.iter().zip(until.values()).map(|(at, end)| (end - at.lowest()).max(0)).sum())
    }

    /// Publishes the next generation's position to its readers before the switch.
    ///
    /// Only for Redis: in MySQL, readers do not distinguish generations, and both are at one position.
    pub(super) async fn publish_progress(&self, offsets: &Offsets) -> anyhow::Result<()> {
        if let View::Redis(_) = self.projection.catalogued.view {
            for (partition, next) in offsets {
                self.next_store().publish_progress(*partition, *next).await?;
            }
        }
        Ok(())
    }
}

/// Returns the lowest offset of each position: the records before it are in all parts of the view.
pub(super) fn lowest(positions: &BTreeMap<Partition, Position>) -> Offsets {
    positions.iter().map(|(partition, position)| (*partition, position.lowest())).collect()
}
