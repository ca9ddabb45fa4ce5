//! The two generations of a view that a rebuild compares.

use std::collections::BTreeMap;

use anyhow::Context;
use vidlog_projection_engine::{
    log::{Offsets, Partition},
    store::{Position, SharedStore, Stores},
    view::Projection,
};
use vidlog_schemas::projections::View;

/// A round of catching up that leaves fewer records than this to the next is the last.
pub(super) const NEARLY_THERE: i64 = 2000;

/// The live and the next generation of a view.
pub(super) struct Pair {
    pub(super) projection: Projection,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
    pub(super) live: Stores,
    pub(super) next: Stores,
}

impl Pair {
    pub(super) fn next_sink(&self) -> SharedStore {
        self.next.view(self.projection)
    }

    /// Where the live generation stands in every partition.
    pub(super) async fn live_positions(&self) -> anyhow::Result<BTreeMap<Partition, Position>> {
        let sink = self.live.view(self.projection);
        let positions =
            sink.positions(&self.partitions).await.context("the store does not say where it stands")?;
        Ok(self.partitions.iter().copied().zip(positions).collect())
    }

    /// How many records are left to some places.
    pub(super) async fn left(&self, until: &Offsets) -> anyhow::Result<i64> {
        let partitions: Vec<Partition> = until.keys().copied().collect();
        let positions = self.next_sink().positions(&partitions).await?;
        Ok(positions.iter().zip(until.values()).map(|(at, end)| (end - at.lowest()).max(0)).sum())
    }

    /// Tells readers how far the next generation is, before it is theirs. Those of a view in MySQL do not tell generations
    /// apart, and the two are at one position.
    pub(super) async fn publish_progress(&self, places: &Offsets) -> anyhow::Result<()> {
        if let View::Redis(_) = self.projection.catalogued.view {
            for (partition, next) in places {
                self.next_sink().publish_progress(*partition, *next).await?;
            }
        }
        Ok(())
    }
}

/// The lowest of some positions: what all parts of a view have.
pub(super) fn lowest(positions: &BTreeMap<Partition, Position>) -> Offsets {
    positions.iter().map(|(partition, position)| (*partition, position.lowest())).collect()
}
