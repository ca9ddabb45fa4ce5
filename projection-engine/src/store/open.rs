//! Connects to the stores, and prepares them for views.

use std::{sync::Arc, time::Duration};

use ::redis::{RedisResult, cmd, from_redis_value};
use anyhow::{Context, bail, ensure};
use tokio::time::timeout;
use tracing::warn;
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, MIGRATOR, projections::FEED};
use vidlog_service_kit::{config, mysql, shutdown::Shutdown};

use super::{
    SharedStore, StoreError, Stores,
    mysql::MySqlStore,
    redis::{RedisStore, create_shards},
};
use crate::view::{Fold, Projection};

/// Interval between attempts to reach an unavailable store at start.
const START_RETRY: Duration = Duration::from_secs(1);

/// Limit on the wait for a row lock. A batch that waits has locked other rows, such as the counts of users, for which other
/// partitions wait. So it gives up soon, and its partition retries later.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// The memory section of a Redis server's `INFO`; empty if the user may not read it.
const MEMORY_INFO: &str = "local info = redis.pcall('INFO', 'memory')
     return type(info) == 'string' and info or ''";

impl Stores {
    /// Connects to the stores on first use, with at most some connections to MySQL.
    pub fn open(settings: &config::Stores, mysql_connections: u32) -> anyhow::Result<Self> {
        Ok(Self {
            keys: Keys::new(&settings.namespace, settings.shards),
            redis: Redis::open(settings.redis_url.reveal()).context("failed to parse the Redis address")?,
            mysql: mysql::pool(mysql_connections, LOCK_WAIT)
                .connect_lazy(settings.mysql_url.reveal())
                .context("failed to parse the MySQL address")?,
        })
    }

    /// The same stores, with another database on the MySQL server.
    #[must_use]
    pub fn with_database(&self, database: &str, mysql_connections: u32) -> Self {
        let options = self.mysql.connect_options().as_ref().clone().database(database);
        Self { mysql: mysql::pool(mysql_connections, LOCK_WAIT).connect_lazy_with(options), ..self.clone() }
    }

    /// The name of the MySQL database.
    pub fn database(&self) -> anyhow::Result<String> {
        let options = self.mysql.connect_options();
        options.get_database().map(str::to_owned).context("the MySQL address has no database name")
    }

    /// The store of a projection's view.
    pub fn view(&self, projection: Projection) -> SharedStore {
        match projection.fold {
            Fold::Redis(fold) => Arc::new(RedisStore::new(projection, fold, self.clone())),
            Fold::MySql(fold) => Arc::new(MySqlStore::new(projection, fold, self.clone())),
        }
    }

    /// Prepares the stores: migrates the tables, and stores the number of shards of a new namespace. Fails if the namespace
    /// has another number of shards, or if Redis evicts keys. Retries while a store is unavailable, until shutdown.
    pub async fn prepare(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let configured = self.keys.shards().count();
        while !shutdown.is_requested() {
            let prepared = async {
                mysql::migrate(&self.mysql, &MIGRATOR).await.context("MySQL is not ready")?;
                let created = create_shards(self).await.context("Redis is not ready")?;
                anyhow::Ok((created, self.eviction_policy().await.context("Redis is not ready")?))
            };
            match prepared.await {
                Ok((created, eviction)) => {
                    ensure!(created == configured, StoreError::ShardCountMismatch { created, configured });
                    if let Some(policy) = eviction {
                        bail!(
                            "Redis evicts keys when it is full (maxmemory-policy {policy}), which would leave views \
                             incomplete unnoticed; set maxmemory-policy to noeviction"
                        );
                    }
                    return Ok(());
                }
                Err(error) => warn!(error = format!("{error:#}"), "waiting for the stores"),
            }
            _ = timeout(START_RETRY, shutdown.wait()).await;
        }
        Ok(())
    }

    /// Returns the policy by which a Redis server evicts keys, if any of them does.
    async fn eviction_policy(&self) -> RedisResult<Option<String>> {
        // A key of each shard routes the command to every server of a cluster that has any.
        let info = |shard| cmd("EVAL").arg(MEMORY_INFO).arg(1).arg(self.keys.checkpoint(shard, &FEED)).take();
        let replies = self.redis.pipeline(&self.keys.shards().map(info).collect::<Vec<_>>()).await?;
        let infos = replies.into_iter().map(from_redis_value).collect::<Result<Vec<String>, _>>()?;
        Ok(infos.iter().find_map(|info| eviction_policy(info)))
    }
}

fn eviction_policy(info: &str) -> Option<String> {
    let value = |name| info.lines().find_map(|line| line.trim().strip_prefix(name));
    let is_limited = value("maxmemory:").is_some_and(|bytes| bytes != "0");
    value("maxmemory_policy:").filter(|policy| is_limited && *policy != "noeviction").map(str::to_owned)
}
