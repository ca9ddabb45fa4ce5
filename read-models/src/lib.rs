//! The shared read side of both APIs: what the read models say about users and videos, and how fresh that is.
//!
//! Answers come from the Redis views. While Redis is away, or a view is not complete, they come from the MySQL tables,
//! which are folded from the same log; [`freshness`] decides between the two and says so.

mod breaker;
mod cards;
mod error;
mod facts;
mod fallback;
pub mod freshness;
mod live;
mod media;
pub mod metrics;
mod position;
mod stores;

use sqlx::MySqlPool;
use vidlog_schemas::Keys;
use vidlog_service_kit::redis::Redis;

pub use error::{ReadError, Store};
pub use facts::{CommentFact, VideoFact};
pub use freshness::{Fresh, Freshness, Need};
pub use media::{MediaUrls, builtin};
pub use position::{Position, PositionError, Scope};
pub use stores::{Answers, Source, Tables, Views};

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
