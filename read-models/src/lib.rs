//! The shared read side of both APIs: what the read models say about users and videos, and how fresh that is.
//!
//! Replies come from the Redis views. While Redis is away, or a view is not complete, they come from the MySQL tables,
//! which are folded from the same log; [`freshness`] decides between the two and says so.

mod breaker;
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
mod stores;

pub use error::{ReadError, Store};
pub use facts::{CommentFact, VideoFact};
pub use freshness::{Fresh, Freshness, FreshnessRequirement};
pub use media::{MediaUrls, builtin};
pub use models::ReadModels;
pub use position::{Position, PositionError, Scope};
pub use stores::{Replies, Source, Tables, Views};
