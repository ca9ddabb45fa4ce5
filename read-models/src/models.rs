//! The read models of one namespace.

use sqlx::MySqlPool;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;

use crate::{
    freshness::Freshness,
    media::MediaUrls,
    stores::{Tables, Views},
};

/// The read models. Clones share the stores.
#[derive(Clone)]
pub struct ReadModels {
    /// The names of everything in Redis.
    pub keys: Keys,
    /// Redis.
    pub views: Views,
    /// MySQL.
    pub tables: Tables,
    /// Waits for the writes that a reader must see.
    pub freshness: Freshness,
    /// The addresses of media.
    pub media: MediaUrls,
}

impl ReadModels {
    /// The read models of one namespace.
    pub fn new(keys: Keys, redis: Redis, mysql: MySqlPool, media: MediaUrls) -> Self {
        let views = Views::new(redis, keys.clone());
        let freshness = Freshness::new(keys.clone(), views.clone());
        Self { keys, views, tables: Tables::new(mysql), freshness, media }
    }
}
