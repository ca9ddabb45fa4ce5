//! The stores of the views: a batch's writes and its position go in together, or neither does.

pub mod generation_marker;
pub mod key;
mod mysql;
mod parked;
pub mod prepare;
mod redis;
pub mod sink;

use ::redis::RedisError;
use sqlx::MySqlPool;
use thiserror::Error;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;

pub use self::parked::{Change, Changes, Class, Failure, Parked, ParkedKey};
use crate::log::Record;

/// The stores, and the keys to one namespace in them.
#[derive(Clone)]
pub struct Target {
    /// The keys.
    pub keys: Keys,
    /// Redis: views, and the progress of every projection.
    pub redis: Redis,
    /// MySQL: views.
    pub mysql: MySqlPool,
}

/// Where a store stands in a partition: the next offset, of each part of the view that has a checkpoint of its own.
/// A MySQL view has one part; a Redis view has its shards, which may differ after a crash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    parts: Vec<i64>,
}

impl Position {
    /// The offset to read from: parts that are further on ignore what they have.
    pub fn lowest(&self) -> i64 {
        self.parts.iter().copied().min().unwrap_or(0)
    }

    /// How far the furthest part is.
    pub fn highest(&self) -> i64 {
        self.parts.iter().copied().max().unwrap_or(0)
    }

    /// The offset to read from in a log with a log start offset. A part without a position has nothing and begins with
    /// what is left. `None` if a part has a position before the start: the records that it needs next are gone.
    pub fn read_from(&self, log_start: i64) -> Option<i64> {
        let has_missed = |part: &i64| (1..log_start).contains(part);
        (!self.parts.iter().any(has_missed)).then(|| self.lowest().max(log_start))
    }

    /// Whether a part has nothing of what another one has come past: all are brought to one place once a second, so the
    /// store lost what was there, but for the first second of a partition.
    pub fn lacks_parts(&self) -> bool {
        self.lowest() == 0 && self.highest() > 0
    }

    /// Takes the parts that are further than a place for no further than that.
    pub fn lower(&mut self, place: i64) {
        for part in &mut self.parts {
            *part = place.min(*part);
        }
    }

    /// Whether any part is behind where another position says it was: then the store lost writes.
    pub fn is_behind(&self, earlier: &Self) -> bool {
        self.parts.iter().zip(&earlier.parts).any(|(now, then)| now < then)
    }
}

/// Why a batch was not written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store is away or can't take it now. Try the same batch again: writing it twice is harmless.
    #[error("the store did not take the batch: {0}")]
    Retry(String),
    /// The store's position is before the batch: it lost writes, or this runner is ahead of it. Read again from the
    /// store's position.
    #[error("the store stands at {stored}, before the batch")]
    Behind {
        /// The store's position.
        stored: i64,
    },
    /// Another writer has brought the store further, and may have parked keys meanwhile. Read again from the store's
    /// position.
    #[error("another writer brought the store to {stored}")]
    Moved {
        /// The store's position.
        stored: i64,
    },
    /// Other keys are parked than the batch takes for parked. See which, and make the batch anew.
    #[error("other keys are parked than was known")]
    OtherParked,
    /// Redis holds the views of the namespace by another number of shards.
    #[error(
        "this namespace has {created} shards in Redis, but {ours} are configured; set VIDLOG_SHARDS={created}, or use \
         another namespace"
    )]
    OtherShards {
        /// What the namespace was created with.
        created: usize,
        /// What is configured.
        ours: usize,
    },
    /// The store can't take what one of the records says, now or later.
    #[error("a record can't be folded: {0}")]
    Unfoldable(String),
}

/// What goes into the store at once.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The records to fold.
    pub records: &'a [Record],
    /// The position after the batch.
    pub next: i64,
    /// What becomes of parked keys. The records that wait because of it are in the dead letters already.
    pub changes: &'a Changes,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(format!("MySQL: {error}"))
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self::Retry(format!("Redis: {error}"))
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
    fn a_loss_that_was_told_is_none_any_more_and_a_further_one_is() {
        let mut known = Position { parts: vec![100, 90, 30] };
        let stored = |parts| Position { parts };
        assert!(stored(vec![100, 40, 30]).is_behind(&known));
        known.lower(40);
        assert!(!stored(vec![100, 40, 30]).is_behind(&known));
        assert!(stored(vec![100, 40, 20]).is_behind(&known));
    }
}
