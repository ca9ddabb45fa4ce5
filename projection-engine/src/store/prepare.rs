//! Prepares the stores for views.

use std::time::Duration;

use ::redis::{RedisResult, cmd, from_redis_value};
use anyhow::{Context, bail, ensure};
use tracing::warn;
use vidlog_schemas::{MIGRATOR, projections::FEED};
use vidlog_service_kit::{mysql::migrate, shutdown::Shutdown};

use super::{StoreError, Target};

/// Between attempts to reach a store that is away at start.
const START_RETRY: Duration = Duration::from_secs(1);

/// Makes the stores ready for views: brings the tables up to date, and fixes the number of shards of the namespace, or
/// finds out that it was created with another, or that Redis drops keys. Waits while a store is away; gives up when
/// shutdown is given.
pub async fn prepare(target: &Target, shards: u16, shutdown: &Shutdown) -> anyhow::Result<()> {
    let ours = usize::from(shards);
    while !shutdown.is_given() {
        let prepared = async {
            migrate(&target.mysql, &MIGRATOR).await.context("MySQL is not ready")?;
            let created = created_shards(target, ours).await.context("Redis is not ready")?;
            anyhow::Ok((created, eviction(target).await.context("Redis is not ready")?))
        };
        match prepared.await {
            Ok((created, eviction)) => {
                ensure!(created == ours, StoreError::OtherShards { created, ours });
                if let Some(policy) = eviction {
                    bail!(
                        "a Redis that is full drops keys by itself (maxmemory-policy {policy}), and nobody would know \
                         that a view lacks them; set maxmemory-policy to noeviction"
                    );
                }
                return Ok(());
            }
            Err(error) => warn!(error = format!("{error:#}"), "waiting for the stores"),
        }
        _ = tokio::time::timeout(START_RETRY, shutdown.wait()).await;
    }
    Ok(())
}

/// The number of shards that the namespace was created with: ours, if it is new.
pub(super) async fn created_shards(target: &Target, ours: usize) -> RedisResult<usize> {
    let key = target.keys.shard_count();
    let _: bool = target.redis.query(cmd("SETNX").arg(&key).arg(ours)).await?;
    target.redis.query(cmd("GET").arg(&key)).await
}

/// What a Redis tells about its memory; nothing if it is not for us to ask.
const MEMORY: &str = "local told = redis.pcall('INFO', 'memory')
     return type(told) == 'string' and told or ''";

/// By which policy a Redis drops keys when it is full, if any of the servers does.
async fn eviction(target: &Target) -> RedisResult<Option<String>> {
    // By a key of each shard, so that every server of a cluster is asked that has any.
    let ask = |shard| cmd("EVAL").arg(MEMORY).arg(1).arg(target.keys.checkpoint(shard, &FEED)).take();
    let told = target.redis.all(&target.keys.shards().map(ask).collect::<Vec<_>>()).await?;
    let told = told.into_iter().map(from_redis_value).collect::<Result<Vec<String>, _>>()?;
    Ok(told.iter().find_map(|info| eviction_policy(info)))
}

fn eviction_policy(info: &str) -> Option<String> {
    let value = |name| info.lines().find_map(|line| line.trim().strip_prefix(name));
    let is_full_some_day = value("maxmemory:").is_some_and(|bytes| bytes != "0");
    value("maxmemory_policy:").filter(|policy| is_full_some_day && *policy != "noeviction").map(str::to_owned)
}
