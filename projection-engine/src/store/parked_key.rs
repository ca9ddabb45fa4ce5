//! The store of a parked key: folds its records with a checkpoint of their own, so an interrupted retry can run again.

use super::{Batch, Changes, Checkpoint, ParkedKey, Position, SharedStore, StoreError};
use crate::log::{Partition, Record, RecordKey};

/// The store of a parked key.
///
/// Its checkpoint counts from 1, not 0: a delayed writer always has a position, and detects that the checkpoint was
/// deleted.
pub struct ParkedKeyStore {
    store: SharedStore,
    checkpoint: Checkpoint,
}

impl ParkedKeyStore {
    /// The store of a key of a partition.
    pub const fn new(store: SharedStore, partition: Partition, key: RecordKey) -> Self {
        Self { store, checkpoint: Checkpoint { partition, key: Some(key) } }
    }

    /// Creates the checkpoint, unless there is one, and returns its position. Returns `None` if the key is no longer
    /// parked from the same record on.
    pub async fn begin(&self, parked: &ParkedKey) -> Result<Option<Position>, StoreError> {
        let position = self.store.create_checkpoint(&self.checkpoint, parked.first + 1).await?;
        // Read after the checkpoint was created. If another retry unparked the key before, nothing deletes this checkpoint,
        // and its records would be folded after later ones. A retry that unparks the key from now on deletes it.
        let mut all = self.store.parked().await?;
        let keys = all.remove(&self.checkpoint.partition).unwrap_or_default();
        let now = self.checkpoint.key.as_ref().and_then(|key| keys.get(key));
        Ok(now.filter(|now| now.first == parked.first).map(|_| position))
    }

    /// Folds records of the key that the store does not have yet.
    pub async fn apply(&self, position: &mut Position, records: &[Record]) -> Result<(), StoreError> {
        let shift = |record: &Record| Record { offset: record.offset + 1, envelope: record.envelope.clone() };
        let records: Vec<_> = records.iter().map(shift).collect();
        let Some(next) = records.last().map(|record| record.offset + 1) else {
            return Ok(());
        };
        let batch = Batch { records: &records, next, changes: &Changes::new() };
        self.store.write(&self.checkpoint, position, &batch).await
    }

    /// Unparks the key, all records of which are folded. Returns false if it is parked otherwise than expected.
    pub async fn unpark(&self, expected: &ParkedKey) -> Result<bool, StoreError> {
        self.store.unpark(&self.checkpoint, expected).await
    }

    /// Parks the key from a later record on, as those before it are folded. Returns false if it is parked otherwise than
    /// expected.
    pub async fn repark(&self, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        self.store.repark(&self.checkpoint, from, to).await
    }
}
