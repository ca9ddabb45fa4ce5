//! The records that a view does not have: parked and discarded ones.

use std::collections::BTreeMap;

use anyhow::Context;
use vidlog_projection_engine::{
    dead_letters::{DeadLetterQueue, Discards},
    log::{Offsets, Partition, RecordKey},
    store::SharedStore,
};

/// The records that a view does not have, by partition.
///
/// The write that moves a view's position past a record also parks its key. So the keys that are parked when
/// a position is read, or later, include all that were parked before that position. Only a parked record can
/// be discarded, so a discarded record is not in the view, no matter when the discards are read.
#[derive(Clone, Debug, Default)]
pub(super) struct Excluded {
    /// The parked keys, each with the offset of its first parked record.
    parked: BTreeMap<Partition, BTreeMap<RecordKey, i64>>,
    /// The discarded records.
    discards: BTreeMap<Partition, Discards>,
}

impl Excluded {
    /// Reads the currently parked keys and discarded records.
    pub(super) async fn read(
        store: &SharedStore,
        dead_letters: &DeadLetterQueue,
        partitions: &[Partition],
    ) -> anyhow::Result<Self> {
        // In this order: a record is marked as discarded before it is unparked.
        let Self { parked, .. } = Self::default().with_parked(store).await?;
        let mut discards = BTreeMap::new();
        for partition in partitions {
            discards.insert(*partition, dead_letters.discards(store.projection().name(), *partition).await?);
        }
        Ok(Self { parked, discards })
    }

    /// Returns the same discards with the currently parked keys.
    pub(super) async fn with_parked(&self, store: &SharedStore) -> anyhow::Result<Self> {
        let parked = store
            .parked()
            .await
            .with_context(|| format!("failed to read the parked keys of {}", store.projection().name()))?;
        let firsts = |keys: vidlog_projection_engine::store::Parked| {
            keys.into_iter().map(|(key, parked)| (key, parked.first))
        };
        let parked = parked.into_iter().map(|(partition, keys)| (partition, firsts(keys).collect()));
        Ok(Self { parked: parked.collect(), discards: self.discards.clone() })
    }

    /// Returns whether the view does not have a record.
    pub(super) fn has(&self, partition: Partition, offset: i64, key: impl FnOnce() -> RecordKey) -> bool {
        if self.discards.get(&partition).is_some_and(|discards| discards.contains(&offset)) {
            return true;
        }
        let parked = self.parked.get(&partition).filter(|parked| !parked.is_empty());
        parked.and_then(|parked| parked.get(&key())).is_some_and(|first| *first <= offset)
    }

    /// Returns whether any key is parked.
    pub(super) fn has_parked(&self) -> bool {
        self.parked.values().any(|parked| !parked.is_empty())
    }

    /// Returns whether the keys that are parked from before some offsets are still parked in a later reading.
    pub(super) fn still_hold_in(&self, later: &Self, offsets: &Offsets) -> bool {
        self.parked.iter().all(|(partition, parked)| {
            let end = offsets.get(partition).copied().unwrap_or(0);
            let still = later.parked.get(partition);
            let mut before = parked.iter().filter(|(_, first)| **first < end);
            before.all(|(key, first)| still.and_then(|still| still.get(key)) == Some(first))
        })
    }
}
