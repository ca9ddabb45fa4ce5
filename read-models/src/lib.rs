//! The read side that both APIs share: users, videos and facts from the read models, and read-your-writes.
//!
//! Reads use the Redis views. While Redis is unavailable or a view is incomplete, they use the MySQL tables, which are
//! folded from the same log; [`freshness`] chooses the store and decides whether the response is marked as stale.

mod bulkhead;
mod card;
mod cards;
mod error;
mod facts;
mod fallback;
pub mod freshness;
mod generation_cache;
mod media;
pub mod metrics;
mod models;
mod position;
mod staleness;
mod stores;

pub use error::{ReadError, Store};
pub use facts::{CommentFact, VideoFact};
pub use freshness::{Fresh, Freshness, FreshnessRequirement};
pub use media::{MediaUrls, builtin};
pub use models::ReadModels;
pub use position::{Position, PositionError, Scope};
pub use stores::{Replies, Source, Tables, Views};
