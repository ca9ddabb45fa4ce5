//! What a projection is: a name, the streams that it folds, and one function.

pub(crate) mod writes;

use futures::future::BoxFuture;
use sqlx::MySqlConnection;
use vidlog_events::{Envelope, Stream};
use vidlog_schemas::{Keys, projections};

pub use self::writes::RedisWrites;
use crate::log::{Partition, Record};

/// Folds one event into writes. Pure; it can't fail, as what does not decode never gets here.
pub type RedisFold = fn(&Keys, &Envelope, &mut RedisWrites);

/// Folds a batch of one partition within the transaction that also moves its checkpoint. What it has to know of
/// earlier events it loads in one read; what it writes is decided by a pure function and goes in a fixed number of
/// statements.
pub type MySqlFold = for<'a> fn(&'a mut MySqlConnection, &'a [Record]) -> BoxFuture<'a, sqlx::Result<()>>;

/// A projection.
#[derive(Clone, Copy)]
pub struct Projection {
    /// Its name and streams, as readers know them.
    pub catalogued: projections::Projection,
    /// What it does, and where.
    pub fold: Fold,
}

/// What a projection does, by the store that holds its view.
#[derive(Clone, Copy)]
pub enum Fold {
    /// The view is in Redis.
    Redis(RedisFold),
    /// The view is in MySQL.
    MySql(MySqlFold),
}

impl std::fmt::Debug for Projection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Projection {
    /// The name: of its checkpoint, its consumer group, its metrics.
    pub const fn name(&self) -> &'static str {
        self.catalogued.name
    }

    /// Those of some partitions that it folds.
    pub fn partitions(&self, all: &[Partition]) -> impl Iterator<Item = Partition> {
        all.iter().copied().filter(|partition| self.catalogued.streams.contains(&partition.stream.name()))
    }

    /// The streams that it folds.
    pub fn streams(&self) -> impl Iterator<Item = Stream> {
        Stream::ALL.into_iter().filter(|stream| self.catalogued.streams.contains(&stream.name()))
    }
}
