//! The definition of a projection: a name, the streams that it folds, and one function.

pub(crate) mod writes;

use futures::future::BoxFuture;
use sqlx::MySqlConnection;
use vidlog_events::{Envelope, Stream};
use vidlog_schemas::{Keys, projections};

pub use self::writes::RedisWrites;
use crate::log::{Partition, Record};

/// Folds one event into writes. Pure and infallible: the engine passes decoded events only.
pub type RedisFold = fn(&Keys, &Envelope, &mut RedisWrites);

/// Folds a batch of one partition in the transaction that also moves its checkpoint. Loads the state of earlier
/// events in one read, decides the writes in a pure function, and sends them in a fixed number of statements.
pub type MySqlFold = for<'a> fn(&'a mut MySqlConnection, &'a [Record]) -> BoxFuture<'a, sqlx::Result<()>>;

/// A projection.
#[derive(Clone, Copy)]
pub struct Projection {
    /// The name and streams, from the catalogue that readers share.
    pub catalogued: projections::Projection,
    /// The fold function, by store.
    pub fold: Fold,
}

/// The fold function of a projection, by the store of its view.
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
    /// The name, which the checkpoint, the consumer group and the metrics use.
    pub const fn name(&self) -> &'static str {
        self.catalogued.name
    }

    /// Filters partitions to those of its streams.
    pub fn partitions(&self, all: &[Partition]) -> impl Iterator<Item = Partition> {
        all.iter().copied().filter(|partition| self.catalogued.streams.contains(&partition.stream.name()))
    }

    /// The streams that it folds.
    pub fn streams(&self) -> impl Iterator<Item = Stream> {
        Stream::ALL.into_iter().filter(|stream| self.catalogued.streams.contains(&stream.name()))
    }
}
