//! The handle to the read models.

use sqlx::MySqlPool;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;

use crate::{
    freshness::Freshness,
    media::MediaUrls,
    staleness::Staleness,
    stores::{Tables, Views},
};

/// The read models of one namespace. Clones share the connections.
#[derive(Clone)]
pub struct ReadModels {
    /// The names of the Redis keys.
    pub keys: Keys,
    /// The Redis views.
    pub views: Views,
    /// The MySQL tables.
    pub tables: Tables,
    /// Read-your-writes.
    pub freshness: Freshness,
    /// The URLs of media.
    pub media: MediaUrls,
}

impl ReadModels {
    /// Creates the read models of one namespace. `mysql` is a pool for reads only, see
    /// `vidlog_service_kit::mysql::open_for_reads`.
    pub fn new(keys: Keys, redis: Redis, mysql: MySqlPool, media: MediaUrls) -> Self {
        let views = Views::new(redis, keys.clone());
        let tables = Tables::new(mysql);
        let freshness = Freshness::new(keys.clone(), views.clone(), Staleness::new(tables.clone()));
        Self { keys, views, tables, freshness, media }
    }
}
