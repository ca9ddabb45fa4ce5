//! The stores of the views. A batch's writes and its position are one atomic write in the store that holds the view.

pub mod generation_marker;
pub mod mysql;
pub mod open;
mod parked;
pub mod parked_key;
pub mod redis;
mod unavailable;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ::redis::{RedisError, cmd};
use async_trait::async_trait;
use sqlx::MySqlPool;
use thiserror::Error;
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, keys::Key};
use vidlog_service_kit::failpoint;

pub use self::{
    parked::{Change, Changes, Class, Failure, Parked, ParkedKey},
    unavailable::Unavailable,
};
use crate::{
    log::{Offsets, Partition, Record, RecordKey},
    view::Projection,
};

/// The connections to both stores, and the keys of one namespace in them.
#[derive(Clone)]
pub struct Stores {
    /// The keys.
    pub keys: Keys,
    /// Redis: views, and the progress of every projection.
    pub redis: Redis,
    /// MySQL: views, and the desired state of every projection.
    pub mysql: MySqlPool,
}

/// The store of one projection's view.
#[async_trait]
pub trait ViewStore: Send + Sync {
    /// The projection.
    fn projection(&self) -> &Projection;

    /// The connections.
    fn stores(&self) -> &Stores;

    /// Returns the view's position in each of some partitions.
    async fn positions(&self, partitions: &[Partition]) -> Result<Vec<Position>, StoreError>;

    /// Returns, for each of some partitions, the offset before which all records are visible to readers.
    async fn visible_offsets(&self, partitions: &[Partition]) -> Result<Offsets, StoreError>;

    /// Returns the id of the first record of the log that each partition was folded from. Stores the given id where
    /// there is none yet.
    async fn log_identities(&self, firsts: &[(Partition, String)]) -> Result<Vec<String>, StoreError>;

    /// Writes the records of a batch that the store does not have yet, and moves the checkpoint and `position` behind the
    /// batch. The records follow `position`. An error may have moved some parts of the store, never a part without its
    /// writes.
    async fn write(
        &self,
        checkpoint: &Checkpoint,
        position: &mut Position,
        batch: &Batch<'_>,
    ) -> Result<(), StoreError>;

    /// Moves every part of the view to `next`, when all records before `next` were written. A batch moves only the parts that
    /// it writes to, and no batch moves past offsets that hold no record.
    async fn align(&self, partition: Partition, position: &mut Position, next: i64)
    -> Result<(), StoreError>;

    /// Returns the parked keys of every partition that has any.
    async fn parked(&self) -> Result<BTreeMap<Partition, Parked>, StoreError>;

    /// Creates the checkpoint of a parked key at an offset, or moves it there if it is before. Returns its position.
    async fn create_checkpoint(&self, key: &Checkpoint, offset: i64) -> Result<Position, StoreError>;

    /// Unparks a key and deletes its checkpoint, if its first and last offsets are as expected. Returns whether they are.
    async fn unpark(&self, key: &Checkpoint, expected: &ParkedKey) -> Result<bool, StoreError>;

    /// Moves the first offset of a parked key, if it is as expected. Returns whether it is.
    async fn repark(&self, key: &Checkpoint, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError>;

    /// Marks the view incomplete after its store lost writes, so that readers do not use it until it is refilled.
    async fn mark_incomplete(&self) -> Result<(), StoreError>;

    /// The members of Redis keys that folding some records may change; none of a view in MySQL.
    fn members_written(&self, records: &[Record]) -> BTreeSet<(Key, String)>;

    /// Whether the view survives a loss of Redis, where its progress is. Then the progress is published again now and
    /// then. Otherwise it must not be: it would be ahead of the view until the loss is detected.
    fn survives_redis(&self) -> bool;
}

impl dyn ViewStore {
    /// The generation of the view that the store writes to.
    pub fn generation(&self) -> u32 {
        self.stores().keys.generation(&self.projection().catalogued)
    }

    /// Switches to another generation of a view in Redis. The next generation of a view in MySQL takes over by renaming
    /// tables.
    pub fn set_generation(&self, generation: u32) {
        self.stores().keys.set_generation(&self.projection().catalogued, generation);
    }

    /// Writes records of a partition, none of which parks a key.
    pub async fn apply(
        &self,
        partition: Partition,
        position: &mut Position,
        records: &[Record],
        next: i64,
    ) -> Result<(), StoreError> {
        let batch = Batch { records, next, changes: &Changes::new() };
        self.write(&partition.into(), position, &batch).await
    }

    /// Publishes the view's position in a partition to readers.
    pub async fn publish_progress(&self, partition: Partition, next: i64) -> Result<(), StoreError> {
        let key = self.stores().keys.progress(&self.projection().catalogued);
        let command = cmd("HSET").arg(&key).arg(partition.id()).arg(next).take();
        failpoint::pass("progress-before");
        self.stores().redis.query::<()>(&command).await?;
        failpoint::pass("progress-after");
        Ok(())
    }

    /// Returns the number of records in the dead letters by partition.
    pub async fn dead_letter_counts(&self) -> Result<BTreeMap<Partition, i64>, StoreError> {
        let count = |keys: Parked| keys.values().map(|parked| parked.waiting).sum();
        Ok(self.parked().await?.into_iter().map(|(partition, keys)| (partition, count(keys))).collect())
    }
}

/// A shared handle to a view's store.
pub type SharedStore = Arc<dyn ViewStore>;

/// What a stored position belongs to: a partition, or one parked key of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The partition.
    pub partition: Partition,
    /// The parked key.
    pub key: Option<RecordKey>,
}

impl From<Partition> for Checkpoint {
    fn from(partition: Partition) -> Self {
        Self { partition, key: None }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.partition.id())?;
        self.key.as_ref().map_or(Ok(()), |key| write!(f, ":{key}"))
    }
}

/// A view's position in a partition: the next offset of each part of the view that has a checkpoint of its own. A MySQL
/// view has one part. A Redis view has two for each shard, and these may differ after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    parts: Vec<i64>,
}

impl Position {
    /// The offset to read from: parts that are further ahead ignore records that they have.
    pub fn lowest(&self) -> i64 {
        self.parts.iter().copied().min().unwrap_or(0)
    }

    /// The offset of the part that is furthest ahead.
    pub fn highest(&self) -> i64 {
        self.parts.iter().copied().max().unwrap_or(0)
    }

    /// The offset to read from in a log with a log start offset. A part without a position has nothing and begins
    /// with what is left. `None` if a part has a position before the start: the log no longer has the records that it
    /// needs next.
    pub fn read_from(&self, log_start: i64) -> Option<i64> {
        let has_missed = |part: &i64| (1..log_start).contains(part);
        (!self.parts.iter().any(has_missed)).then(|| self.lowest().max(log_start))
    }

    /// Whether a part has no record although another one has some. Parts are aligned once a second, so the store lost the
    /// part, except in the first second of a partition.
    pub fn has_unwritten_parts(&self) -> bool {
        self.lowest() == 0 && self.highest() > 0
    }

    /// Lowers parts that are ahead of an offset to it.
    pub fn cap_at(&mut self, offset: i64) {
        for part in &mut self.parts {
            *part = offset.min(*part);
        }
    }

    /// Whether any part is behind the same part of an earlier position: then the store lost writes.
    pub fn is_behind(&self, earlier: &Self) -> bool {
        self.parts.iter().zip(&earlier.parts).any(|(now, then)| now < then)
    }
}

/// A batch of records to write.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The records to fold.
    pub records: &'a [Record],
    /// The position after the batch.
    pub next: i64,
    /// Changes of parked keys. Records of these keys are in the dead letters already.
    pub changes: &'a Changes,
}

/// Why a batch was not written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store is unavailable. Retry the same batch: writing it twice is harmless.
    #[error("store unavailable: {0}")]
    Retry(Unavailable),
    /// The store's position is before the batch: it lost writes, or this writer skipped records. Restart at the store's
    /// position.
    #[error("the store is at {stored}, before the batch")]
    Behind {
        /// The store's position.
        stored: i64,
    },
    /// Another writer moved the store further and may have parked keys. Restart at the store's position.
    #[error("another writer moved the store to {stored}")]
    Moved {
        /// The store's position.
        stored: i64,
    },
    /// The parked keys differ from those that the batch was made for. Reload them, and make the batch again.
    #[error("the parked keys changed")]
    ParkedKeysChanged,
    /// The namespace has another number of shards in Redis.
    #[error(
        "this namespace has {created} shards in Redis, but {configured} are configured; set VIDLOG_SHARDS={created}, or \
         use another namespace"
    )]
    ShardCountMismatch {
        /// The number that the namespace was created with.
        created: usize,
        /// The number that is configured.
        configured: usize,
    },
    /// The store rejects the content of a record, now and later.
    #[error("record rejected by the store: {0}")]
    Unfoldable(String),
}

impl StoreError {
    /// The store is unavailable, for a reason without internals.
    pub fn retry(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self::Retry(Unavailable { detail: reason.clone(), reason })
    }

    /// The reason for `/readyz` and status: without addresses, users, and names of databases.
    pub fn reason(&self) -> String {
        match self {
            Self::Retry(Unavailable { reason, .. }) => reason.clone(),
            other => other.to_string(),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(Unavailable {
            reason: unavailable::mysql_reason(&error),
            detail: format!("MySQL: {error}"),
        })
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self::Retry(Unavailable {
            reason: unavailable::redis_reason(&error),
            detail: format!("Redis: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn view_begins_with_a_cut_log_only_without_a_position() {
        let from = |parts: &[i64], first| Position { parts: parts.to_vec() }.read_from(first);
        assert_eq!(from(&[7, 9], 0), Some(7));
        assert_eq!(from(&[7, 9], 7), Some(7));
        assert_eq!(from(&[0, 0], 7), Some(7));
        // One shard was lost.
        assert_eq!(from(&[0, 9], 7), Some(7));
        assert_eq!(from(&[6, 9], 7), None);
        assert_eq!(from(&[0, 6], 7), None);
    }

    #[test]
    fn known_loss_is_not_reported_again() {
        let mut known = Position { parts: vec![100, 90, 30] };
        let stored = |parts| Position { parts };
        assert!(stored(vec![100, 40, 30]).is_behind(&known));
        known.cap_at(40);
        assert!(!stored(vec![100, 40, 30]).is_behind(&known));
        assert!(stored(vec![100, 40, 20]).is_behind(&known));
    }
}
