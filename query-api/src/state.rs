//! The state that handlers share.

use std::sync::Arc;

use anyhow::Context;
use axum::extract::FromRef;
use object_store::ObjectStore;
use tokio::sync::Semaphore;
use vidlog_contract::{Tokens, config::ApiConfig};
use vidlog_read_models::{MediaUrls, ReadModels};
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{clock::Clock, config::Stores, mysql, objects};

use crate::config::QueryConfig;

/// The state that handlers share. Clones share the connections.
#[derive(Clone)]
pub struct QueryState {
    /// The read models.
    pub models: ReadModels,
    /// The token keys.
    pub tokens: Tokens,
    /// The clock.
    pub clock: Clock,
    /// Media, by object key.
    pub objects: Arc<dyn ObjectStore>,
    /// Permits for concurrent requests.
    pub request_permits: Arc<Semaphore>,
}

impl QueryState {
    /// Creates the state. Stores are connected on first use. URLs of media start with `media_base`.
    pub fn open(
        stores: &Stores,
        api: &ApiConfig,
        config: &QueryConfig,
        media_base: &str,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let redis = Redis::open(stores.redis_url.reveal()).context("failed to read the address of Redis")?;
        let mysql = mysql::open(stores.mysql_url.reveal(), config.query_mysql_connections)
            .context("failed to read the address of MySQL")?;
        let keys = Keys::new(&stores.namespace, stores.shards);
        let now = clock.clone();
        Ok(Self {
            models: ReadModels::new(keys, redis, mysql, MediaUrls::new(media_base)),
            tokens: Tokens::parse(api.jwt_keys.reveal(), move || now.now_ms())
                .context("failed to read the keys of tokens")?,
            clock,
            objects: objects::open(&api.object_store)?,
            request_permits: Arc::new(Semaphore::new(config.query_max_requests)),
        })
    }
}

impl FromRef<QueryState> for Tokens {
    fn from_ref(state: &QueryState) -> Self {
        state.tokens.clone()
    }
}
