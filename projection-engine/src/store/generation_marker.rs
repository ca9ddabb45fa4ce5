//! The field of the hash of generations that says to readers which generation of a view is complete.

use redis::{RedisResult, cmd};

use super::Target;
use crate::view::Projection;

/// Has readers take a view as incomplete, and every keeper of it begin again.
pub(crate) async fn remove(target: &Target, projection: &Projection) -> RedisResult<()> {
    let fields = [projection.name().to_owned(), filling(projection)];
    let _: i64 = target.redis.query(cmd("HDEL").arg(target.keys.generations()).arg(&fields)).await?;
    Ok(())
}

/// The field of a token.
pub(crate) fn filling(projection: &Projection) -> String {
    format!("{}:filling", projection.name())
}
