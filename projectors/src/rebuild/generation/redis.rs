//! Generations in Redis: the generation is a part of each key's name, and readers look up the number of the live one.

use anyhow::Context;
use async_trait::async_trait;
use redis::cmd;
use vidlog_projection_engine::{
    desired_state::{self, hold::Hold},
    store::Stores,
    view::Projection,
};
use vidlog_schemas::keys::ViewKey;
use vidlog_service_kit::failpoint;

use super::store::GenerationStore;

/// Number of keys that are scanned, and deleted, per round trip.
const PAGE: usize = 1000;
/// Lua script that sets a field of a hash if it exists.
const PUBLISH_GENERATION: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then \
                                  return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 0";

/// Generations of a view in Redis.
pub(super) struct RedisGenerations {
    pub(super) projection: Projection,
    pub(super) target: Stores,
    pub(super) live: u32,
}

#[async_trait]
impl GenerationStore for RedisGenerations {
    async fn create_next(&self) -> anyhow::Result<Stores> {
        let keys = self.target.keys.of_generation(&self.projection.catalogued, self.live + 1);
        Ok(Stores { keys, ..self.target.clone() })
    }

    async fn take_over(&self, _: &mut Hold<'_>) -> anyhow::Result<bool> {
        failpoint::pass("redis-switch-before");
        if !desired_state::take_over(&self.target.mysql, &self.projection, self.live).await? {
            return Ok(false);
        }
        failpoint::pass("redis-switch-after");
        self.publish(self.live + 1).await.context(
            "the next generation is live, but publishing it in Redis failed; the projectors publish it, and --drop drops \
             the previous one",
        )?;
        Ok(true)
    }

    /// Readers of the new generation do not see what a process that has not read the switch writes.
    fn replaced(&self) -> anyhow::Result<Option<Stores>> {
        Ok(None)
    }

    async fn publish_live(&self) -> anyhow::Result<()> {
        self.publish(self.live).await
    }

    async fn drop_next(&self) -> anyhow::Result<()> {
        self.drop_generations(|generation| generation > self.live).await
    }

    async fn drop_before(&self, live: u32) -> anyhow::Result<()> {
        self.drop_generations(|generation| generation < live).await
    }
}

impl RedisGenerations {
    /// Publishes a generation to readers, unless the view is incomplete: then it is not published at all.
    async fn publish(&self, generation: u32) -> anyhow::Result<()> {
        let publish = cmd("EVAL")
            .arg(PUBLISH_GENERATION)
            .arg(1)
            .arg(self.target.keys.generations())
            .arg(self.projection.name())
            .arg(generation)
            .take();
        let _: i64 = self.target.redis.query(&publish).await?;
        Ok(())
    }

    async fn drop_generations(&self, is_dropped: impl Fn(u32) -> bool + Send + Sync) -> anyhow::Result<()> {
        let mut scan = self.target.redis.scan(&self.target.keys.pattern(), PAGE);
        while let Some(found) = scan.next().await? {
            let is_ours = |name: &String| {
                ViewKey::generation_of(name, &self.projection.catalogued).is_some_and(&is_dropped)
            };
            let unlinks: Vec<_> =
                found.into_iter().filter(is_ours).map(|name| cmd("UNLINK").arg(name).take()).collect();
            self.target.redis.pipeline(&unlinks).await?;
        }
        Ok(())
    }
}
