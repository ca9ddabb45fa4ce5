//! The marker of a complete view in Redis: a field of the hash of generations with the generation that readers use.
//! While it is missing, readers read MySQL.
//!
//! During a refill, another field of the hash has a random token instead.

use redis::{RedisResult, cmd};
use uuid::Uuid;

use super::Stores;
use crate::view::Projection;

/// Replaces one field of a hash by another one, if it has the expected value and the other one does not exist.
const REPLACE: &str = "
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
    return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('HSETNX', KEYS[1], ARGV[3], ARGV[4])";

/// The generation marker of one view.
pub struct GenerationMarker<'a> {
    stores: &'a Stores,
    published: &'static str,
    refilling: String,
}

/// The content of the marker.
#[derive(Clone, Copy, Debug)]
pub enum Marker<'a> {
    /// A complete generation.
    Published(u32),
    /// The token of a refill.
    Refilling(&'a str),
}

impl<'a> GenerationMarker<'a> {
    /// The marker of a projection's view.
    pub fn new(stores: &'a Stores, projection: &Projection) -> Self {
        let published = projection.name();
        Self { stores, published, refilling: format!("{published}:filling") }
    }

    /// Returns the generation that readers read.
    pub async fn published_generation(&self) -> RedisResult<Option<u32>> {
        self.stores.redis.query(cmd("HGET").arg(self.stores.keys.generations()).arg(self.published)).await
    }

    /// Returns the token of the current refill. Sets a new one if there is none.
    pub async fn claim_token(&self) -> RedisResult<String> {
        let key = self.stores.keys.generations();
        let new = new_token();
        let redis = &self.stores.redis;
        let _: bool = redis.query(cmd("HSETNX").arg(&key).arg(&self.refilling).arg(&new)).await?;
        let token: Option<String> = redis.query(cmd("HGET").arg(&key).arg(&self.refilling)).await?;
        // A token that is gone already does not come back: publishing fails, and the refill starts again.
        Ok(token.unwrap_or(new))
    }

    /// Replaces the content of the marker. Returns false if it is not as expected.
    pub async fn replace(&self, expected: Marker<'_>, new: Marker<'_>) -> RedisResult<bool> {
        let mut command = cmd("EVAL");
        command.arg(REPLACE).arg(1).arg(self.stores.keys.generations());
        for marker in [expected, new] {
            match marker {
                Marker::Published(generation) => command.arg(self.published).arg(generation),
                Marker::Refilling(token) => command.arg(&self.refilling).arg(token),
            };
        }
        self.stores.redis.query(&command).await
    }

    /// Removes the marker, so that readers read MySQL and every refill of the view starts again.
    pub async fn remove(&self) -> RedisResult<()> {
        let mut command = cmd("HDEL");
        command.arg(self.stores.keys.generations()).arg(self.published).arg(&self.refilling);
        let _: i64 = self.stores.redis.query(&command).await?;
        Ok(())
    }
}

/// A random token.
pub fn new_token() -> String {
    Uuid::new_v4().to_string()
}
