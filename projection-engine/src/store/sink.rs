//! The store of one projection's view.

use std::collections::{BTreeMap, BTreeSet};

use ::redis::cmd;
use vidlog_schemas::keys::Key;
use vidlog_service_kit::failpoint;

use super::{
    Batch, Changes, Parked, Position, StoreError, Target, generation_marker, mysql, prepare::created_shards,
    redis,
};
use crate::{
    log::{Partition, Record},
    view::{Fold, Projection},
};

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
    pub async fn positions(&self, partitions: &[Partition]) -> Result<Vec<Position>, StoreError> {
        match self.projection.fold {
            Fold::Redis(_) => {
                let fields: Vec<_> = partitions.iter().map(|partition| partition.field()).collect();
                redis::positions(&self.target, &self.projection, &fields).await
            }
            Fold::MySql(_) => mysql::positions(&self.target.mysql, &self.projection, partitions).await,
        }
    }

    /// Whether a view in Redis stands nowhere before another generation of it, which stands somewhere.
    pub(crate) async fn is_past_generation(&self, other: u32) -> Result<bool, StoreError> {
        redis::is_past_generation(&self.target, &self.projection, other).await
    }

    /// The first record of the log that each of some partitions was folded from, remembered from now on where the store
    /// does not know of any.
    pub async fn logs(&self, firsts: &[(Partition, String)]) -> Result<Vec<String>, StoreError> {
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
    ) -> Result<(), StoreError> {
        self.apply_batch(partition, position, &Batch { records, next, changes: &Changes::new() }).await
    }

    /// Writes a batch that may park keys, as [`Sink::apply`] does.
    pub async fn apply_batch(
        &self,
        partition: Partition,
        position: &mut Position,
        batch: &Batch<'_>,
    ) -> Result<(), StoreError> {
        match self.projection.fold {
            Fold::Redis(fold) => self.redis_view(partition).apply(fold, &mut position.parts, batch).await,
            Fold::MySql(fold) => self.mysql_view(partition).apply(fold, &mut position.parts, batch).await,
        }
    }

    /// The keys that are parked, of every partition that has any.
    pub async fn parked(&self) -> Result<BTreeMap<Partition, Parked>, StoreError> {
        match self.projection.fold {
            Fold::Redis(_) => redis::parked::parked(&self.target, &self.projection).await,
            Fold::MySql(_) => mysql::parked(&self.target.mysql, &self.projection).await,
        }
    }

    /// How many records wait in the dead letters, by the partition's field.
    pub async fn waiting(&self) -> Result<BTreeMap<String, i64>, StoreError> {
        let parked = self.parked().await?;
        let waiting = |(partition, keys): (Partition, Parked)| {
            (partition.field(), keys.values().map(|parked| parked.waiting).sum())
        };
        Ok(parked.into_iter().map(waiting).collect())
    }

    /// Brings every part of the store to `next`, of which it is known that it has all that is its own before that: a
    /// batch moves only the parts that it writes to, and no batch moves past offsets that hold no record.
    pub async fn settle(
        &self,
        partition: Partition,
        position: &mut Position,
        next: i64,
    ) -> Result<(), StoreError> {
        if position.lowest() >= next {
            return Ok(());
        }
        match self.projection.fold {
            Fold::Redis(_) => self.redis_view(partition).settle(&mut position.parts, next).await,
            Fold::MySql(_) => self.mysql_view(partition).settle(&mut position.parts, next).await,
        }
    }

    /// Says that the store lost writes: readers must not take the view as complete any more, until it is filled up
    /// again. Nothing to say of a view in MySQL: its readers have no other. A Redis that lost everything does not know the
    /// number of shards either, so that is claimed again.
    pub async fn forget_complete(&self) -> Result<(), StoreError> {
        match self.projection.fold {
            Fold::Redis(_) => {
                generation_marker::remove(&self.target, &self.projection).await?;
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
    pub async fn publish_progress(&self, partition: Partition, next: i64) -> Result<(), StoreError> {
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

    pub(super) const fn mysql_view(&self, partition: Partition) -> mysql::View<'_> {
        let (pool, projection) = (&self.target.mysql, &self.projection);
        mysql::View { pool, projection, partition, record_key: mysql::WHOLE }
    }

    fn redis_view(&self, partition: Partition) -> redis::View<'_> {
        redis::View { target: &self.target, projection: &self.projection, field: partition.field() }
    }
}
