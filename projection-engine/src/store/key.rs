//! A parked key as a partition of its own: how what waits is folded when it can be, with a checkpoint of its own, so that
//! a retry which was cut off is simply made again.

use super::{Batch, Changes, ParkedKey, Position, StoreError, mysql, redis, sink::Sink};
use crate::{
    log::{Partition, Record, RecordKey},
    view::Fold,
};

/// The store of a parked key.
///
/// Its checkpoint counts from 1, not 0: a writer that has waited for too long always knows of a position, and finds that
/// there is none any more.
pub struct KeySink {
    sink: Sink,
    partition: Partition,
    key: RecordKey,
}

impl KeySink {
    /// The sink of a key of a partition.
    pub const fn new(sink: Sink, partition: Partition, key: RecordKey) -> Self {
        Self { sink, partition, key }
    }

    /// Creates the checkpoint, if there is none, and says where it stands; nothing if the key is not parked from there
    /// any more.
    pub async fn begin(&self, parked: &ParkedKey) -> Result<Option<Position>, StoreError> {
        let place = parked.first + 1;
        let position = match self.sink.projection().fold {
            Fold::Redis(_) => {
                let view = self.redis_view();
                view.begin(place).await?;
                let mut found = redis::positions(view.target, view.projection, &[view.field]).await?;
                found.pop().ok_or_else(|| StoreError::Retry("Redis told no position".to_owned()))?
            }
            Fold::MySql(_) => Position { parts: vec![self.mysql_view().begin(place).await?] },
        };
        // Only now: if another retry unparked the key before, this checkpoint is one that nobody will remove, and what
        // has come since would be overtaken by what waited. If one unparks it from now on, it removes the checkpoint.
        let mut all = self.sink.parked().await?;
        let now = all.remove(&self.partition).and_then(|mut keys| keys.remove(&self.key));
        Ok(now.filter(|now| now.first == parked.first).map(|_| position))
    }

    /// Folds records of the key that the store does not have yet.
    pub async fn apply(&self, position: &mut Position, records: &[Record]) -> Result<(), StoreError> {
        let records: Vec<_> = records
            .iter()
            .map(|record| Record { offset: record.offset + 1, envelope: record.envelope.clone() })
            .collect();
        let Some(next) = records.last().map(|record| record.offset + 1) else {
            return Ok(());
        };
        let batch = Batch { records: &records, next, changes: &Changes::new() };
        match self.sink.projection().fold {
            Fold::Redis(fold) => self.redis_view().apply(fold, &mut position.parts, &batch).await,
            Fold::MySql(fold) => self.mysql_view().apply(fold, &mut position.parts, &batch).await,
        }
    }

    /// Parks the key no longer, as all that waited is folded; false if it is parked otherwise than was known.
    pub async fn unpark(&self, parked: &ParkedKey) -> Result<bool, StoreError> {
        match self.sink.projection().fold {
            Fold::Redis(_) => self.redis_view().unpark(parked).await,
            Fold::MySql(_) => self.mysql_view().unpark(parked).await,
        }
    }

    /// Parks the key from a later record on, as those before it are folded; false if it is parked otherwise than was
    /// known.
    pub async fn park_from(&self, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        match self.sink.projection().fold {
            Fold::Redis(_) => self.redis_view().park_from(from, to).await,
            Fold::MySql(_) => self.mysql_view().park_from(from, to).await,
        }
    }

    fn redis_view(&self) -> redis::View<'_> {
        let field = format!("{}:{}", self.partition.field(), self.key);
        redis::View { target: self.sink.target(), projection: self.sink.projection(), field }
    }

    fn mysql_view(&self) -> mysql::View<'_> {
        mysql::View { record_key: self.key.as_str(), ..self.sink.mysql_view(self.partition) }
    }
}
