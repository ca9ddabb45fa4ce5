//! What a view is not to have: records that wait in the dead letters, or that an operator decided to pass over.

use std::collections::BTreeMap;

use anyhow::Context;
use vidlog_projection_engine::{
    dead_letters::{Discards, Post},
    log::{Offsets, Partition, RecordKey},
    store::SharedStore,
};

/// What a view is not to have, by partition.
///
/// The keys that are parked are known with the view's position: the write that moves it past a record also parks its key. So
/// what is parked after a position was seen is all that is parked before it; what came since is beyond. A record is only
/// ever discarded while it waits: so what is discarded, whenever it is looked up, is not in the view.
#[derive(Clone, Debug, Default)]
pub(super) struct Excluded {
    /// The keys that are parked, each from an offset on.
    parked: BTreeMap<Partition, BTreeMap<RecordKey, i64>>,
    /// Single records.
    discards: BTreeMap<Partition, Discards>,
}

impl Excluded {
    /// What a view is not to have by now.
    pub(super) async fn read(
        sink: &SharedStore,
        post: &Post,
        partitions: &[Partition],
    ) -> anyhow::Result<Self> {
        // In this order: what is discarded is unparked after that.
        let Self { parked, .. } = Self::default().with_parked(sink).await?;
        let mut discards = BTreeMap::new();
        for partition in partitions {
            discards.insert(*partition, post.discards(sink.projection().name(), *partition).await?);
        }
        Ok(Self { parked, discards })
    }

    /// The same with what is parked by now.
    pub(super) async fn with_parked(&self, sink: &SharedStore) -> anyhow::Result<Self> {
        let parked = sink
            .parked()
            .await
            .with_context(|| format!("failed to ask what waits of {}", sink.projection().name()))?;
        let firsts = |keys: vidlog_projection_engine::store::Parked| {
            keys.into_iter().map(|(key, parked)| (key, parked.first))
        };
        let parked = parked.into_iter().map(|(partition, keys)| (partition, firsts(keys).collect()));
        Ok(Self { parked: parked.collect(), discards: self.discards.clone() })
    }

    /// Whether a record is not to be in the view.
    pub(super) fn has(&self, partition: Partition, offset: i64, key: impl FnOnce() -> RecordKey) -> bool {
        if self.discards.get(&partition).is_some_and(|discards| discards.contains(&offset)) {
            return true;
        }
        let parked = self.parked.get(&partition).filter(|parked| !parked.is_empty());
        parked.and_then(|parked| parked.get(&key())).is_some_and(|first| *first <= offset)
    }

    /// Whether any key is parked.
    pub(super) fn has_parked(&self) -> bool {
        self.parked.values().any(|parked| !parked.is_empty())
    }

    /// Whether the keys that are parked from before some places on still are in a later look.
    pub(super) fn still_hold_in(&self, later: &Self, places: &Offsets) -> bool {
        self.parked.iter().all(|(partition, parked)| {
            let place = places.get(partition).copied().unwrap_or(0);
            let still = later.parked.get(partition);
            let mut before = parked.iter().filter(|(_, first)| **first < place);
            before.all(|(key, first)| still.and_then(|still| still.get(key)) == Some(first))
        })
    }
}
