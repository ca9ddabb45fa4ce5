//! The seam to the stores: a batch's writes and its position go in together, or neither does.

mod key;
mod mysql;
mod parked;
mod redis;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use ::redis::{RedisError, RedisResult, cmd, from_redis_value};
use anyhow::{Context, bail, ensure};
use sqlx::MySqlPool;
use thiserror::Error;
use tracing::warn;
use vidlog_events::Stream;
use vidlog_redis_shards::Redis;
use vidlog_schemas::{
    Keys, MIGRATOR,
    keys::{Key, partition_field},
    projections::FEED,
};
use vidlog_service_kit::{failpoint, mysql::migrate, shutdown::Shutdown};

pub use self::{
    key::KeySink,
    parked::{Change, Changes, Class, Failure, Parked, ParkedKey, RecordKey},
    redis::RedisWrites,
};
use crate::{
    Record, keeper,
    projection::{Fold, Projection},
};

/// Between attempts to reach a store that is away at start.
const START_RETRY: Duration = Duration::from_secs(1);

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

/// A partition of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The stream.
    pub stream: Stream,
    /// The partition's number.
    pub number: i32,
}

impl Partition {
    /// The field under which positions in this partition are stored.
    pub fn field(self) -> String {
        partition_field(self.stream.name(), self.number)
    }
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
pub enum SinkError {
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

impl From<sqlx::Error> for SinkError {
    fn from(error: sqlx::Error) -> Self {
        Self::Retry(format!("MySQL: {error}"))
    }
}

impl From<RedisError> for SinkError {
    fn from(error: RedisError) -> Self {
        Self::Retry(format!("Redis: {error}"))
    }
}

/// The store of one projection.
#[derive(Clone)]
pub struct Sink {
    projection: Projection,
    target: Target,
}

impl Sink {
    /// The sink of a projection.
    pub const fn new(projection: Projection, target: Target) -> Self {
        Self { projection, target }
    }

    /// The generation of the view that is folded into.
    pub fn generation(&self) -> u32 {
        self.target.keys.generation(&self.projection.catalogued)
    }

    /// Goes on in another generation of a view in Redis. The next generation of a view in MySQL takes the place of the
    /// last by itself.
    pub fn set_generation(&self, generation: u32) {
        self.target.keys.set_generation(&self.projection.catalogued, generation);
    }

    /// Where the store stands in each of some partitions; an error if Redis has another number of shards.
    pub async fn positions(&self, partitions: &[Partition]) -> Result<Vec<Position>, SinkError> {
        match self.projection.fold {
            Fold::Redis(_) => {
                let fields: Vec<_> = partitions.iter().map(|partition| partition.field()).collect();
                redis::positions(&self.target, &self.projection, &fields).await
            }
            Fold::MySql(_) => mysql::positions(&self.target.mysql, &self.projection, partitions).await,
        }
    }

    /// Whether a view in Redis stands nowhere before another generation of it, which stands somewhere.
    pub(crate) async fn is_past_generation(&self, other: u32) -> Result<bool, SinkError> {
        redis::is_past_generation(&self.target, &self.projection, other).await
    }

    /// The first record of the log that each of some partitions was folded from, remembered from now on where the store
    /// does not know of any.
    pub async fn logs(&self, firsts: &[(Partition, String)]) -> Result<Vec<String>, SinkError> {
        match self.projection.fold {
            Fold::Redis(_) => redis::logs(&self.target, firsts).await,
            Fold::MySql(_) => mysql::logs(&self.target.mysql, firsts).await,
        }
    }

    /// Writes the records of a partition that the store does not have yet, and that it has all before `next`. The
    /// records follow `position`, which is moved on. An error may have moved some parts of the store, never a part
    /// without its writes.
    pub async fn apply(
        &self,
        partition: Partition,
        position: &mut Position,
        records: &[Record],
        next: i64,
    ) -> Result<(), SinkError> {
        self.apply_batch(partition, position, &Batch { records, next, changes: &Changes::new() }).await
    }

    /// Writes a batch that may park keys, as [`Sink::apply`] does.
    pub async fn apply_batch(
        &self,
        partition: Partition,
        position: &mut Position,
        batch: &Batch<'_>,
    ) -> Result<(), SinkError> {
        match self.projection.fold {
            Fold::Redis(fold) => self.redis_view(partition).apply(fold, &mut position.parts, batch).await,
            Fold::MySql(fold) => self.mysql_view(partition).apply(fold, &mut position.parts, batch).await,
        }
    }

    /// The keys that are parked, of every partition that has any.
    pub async fn parked(&self) -> Result<BTreeMap<Partition, Parked>, SinkError> {
        match self.projection.fold {
            Fold::Redis(_) => redis::parked(&self.target, &self.projection).await,
            Fold::MySql(_) => mysql::parked(&self.target.mysql, &self.projection).await,
        }
    }

    /// How many records wait in the dead letters, by the partition's field.
    pub async fn waiting(&self) -> Result<BTreeMap<String, i64>, SinkError> {
        let parked = self.parked().await?;
        let waiting = |(partition, keys): (Partition, Parked)| {
            (partition.field(), keys.values().map(|parked| parked.waiting).sum())
        };
        Ok(parked.into_iter().map(waiting).collect())
    }

    /// Brings every part of the store to `next`, of which it is known that it has all that is its own before that: a
    /// batch moves only the parts that it writes to.
    pub async fn settle(
        &self,
        partition: Partition,
        position: &mut Position,
        next: i64,
    ) -> Result<(), SinkError> {
        if position.lowest() >= next {
            return Ok(());
        }
        match self.projection.fold {
            Fold::Redis(_) => self.redis_view(partition).settle(&mut position.parts, next).await,
            // A transaction moves all there is.
            Fold::MySql(_) => Ok(()),
        }
    }

    /// Says that the store lost writes: readers must not take the view as complete any more, until it is filled up
    /// again. Nothing to say of a view in MySQL: its readers have no other. A Redis that lost everything does not know the
    /// number of shards either, so that is claimed again.
    pub async fn forget_complete(&self) -> Result<(), SinkError> {
        match self.projection.fold {
            Fold::Redis(_) => {
                keeper::forget(&self.target, &self.projection).await?;
                // If another process was faster, with another number, that is found where the store stands.
                created_shards(&self.target, self.target.keys.shards().count()).await?;
                Ok(())
            }
            Fold::MySql(_) => Ok(()),
        }
    }

    /// The Redis keys that folding some records writes to; none of a view in MySQL.
    pub fn keys_written(&self, records: &[Record]) -> BTreeSet<Key> {
        match self.projection.fold {
            Fold::Redis(fold) => redis::fold(&self.target.keys, fold, records).keys(),
            Fold::MySql(_) => BTreeSet::new(),
        }
    }

    /// Tells readers how far the view is.
    pub async fn publish_progress(&self, partition: Partition, next: i64) -> Result<(), SinkError> {
        let key = self.target.keys.progress(&self.projection.catalogued);
        let command = cmd("HSET").arg(&key).arg(partition.field()).arg(next).take();
        failpoint::pass("progress-before");
        self.target.redis.query::<()>(&command).await?;
        failpoint::pass("progress-after");
        Ok(())
    }

    /// The projection.
    pub const fn projection(&self) -> &Projection {
        &self.projection
    }

    /// The stores.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    const fn mysql_view(&self, partition: Partition) -> mysql::View<'_> {
        let (pool, projection) = (&self.target.mysql, &self.projection);
        mysql::View { pool, projection, partition, record_key: mysql::WHOLE }
    }

    fn redis_view(&self, partition: Partition) -> redis::View<'_> {
        redis::View { target: &self.target, projection: &self.projection, field: partition.field() }
    }
}

/// Makes the stores ready for views: brings the tables up to date, and fixes the number of shards of the namespace, or
/// finds out that it was created with another, or that Redis drops keys. Waits while a store is away; gives up when
/// shutdown is given.
pub async fn prepare(target: &Target, shards: u16, shutdown: &Shutdown) -> anyhow::Result<()> {
    let ours = usize::from(shards);
    while !shutdown.is_given() {
        let prepared = async {
            migrate(&target.mysql, &MIGRATOR).await.context("MySQL is not ready")?;
            let created = created_shards(target, ours).await.context("Redis is not ready")?;
            anyhow::Ok((created, eviction(target).await.context("Redis is not ready")?))
        };
        match prepared.await {
            Ok((created, eviction)) => {
                ensure!(created == ours, SinkError::OtherShards { created, ours });
                if let Some(policy) = eviction {
                    bail!(
                        "a Redis that is full drops keys by itself (maxmemory-policy {policy}), and nobody would know \
                         that a view lacks them; set maxmemory-policy to noeviction"
                    );
                }
                return Ok(());
            }
            Err(error) => warn!(error = format!("{error:#}"), "waiting for the stores"),
        }
        _ = tokio::time::timeout(START_RETRY, shutdown.wait()).await;
    }
    Ok(())
}

/// The number of shards that the namespace was created with: ours, if it is new.
async fn created_shards(target: &Target, ours: usize) -> RedisResult<usize> {
    let key = target.keys.shard_count();
    let _: bool = target.redis.query(cmd("SETNX").arg(&key).arg(ours)).await?;
    target.redis.query(cmd("GET").arg(&key)).await
}

/// What a Redis tells about its memory; nothing if it is not for us to ask.
const MEMORY: &str = "local told = redis.pcall('INFO', 'memory')
     return type(told) == 'string' and told or ''";

/// By which policy a Redis drops keys when it is full, if any of the servers does.
async fn eviction(target: &Target) -> RedisResult<Option<String>> {
    // By a key of each shard, so that every server of a cluster is asked that has any.
    let ask = |shard| cmd("EVAL").arg(MEMORY).arg(1).arg(target.keys.checkpoint(shard, &FEED)).take();
    let told = target.redis.all(&target.keys.shards().map(ask).collect::<Vec<_>>()).await?;
    let told = told.into_iter().map(from_redis_value).collect::<Result<Vec<String>, _>>()?;
    Ok(told.iter().find_map(|info| eviction_policy(info)))
}

fn eviction_policy(info: &str) -> Option<String> {
    let value = |name| info.lines().find_map(|line| line.trim().strip_prefix(name));
    let is_full_some_day = value("maxmemory:").is_some_and(|bytes| bytes != "0");
    value("maxmemory_policy:").filter(|policy| is_full_some_day && *policy != "noeviction").map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

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
