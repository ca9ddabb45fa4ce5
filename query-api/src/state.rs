//! The state that handlers share.

use std::sync::Arc;

use anyhow::Context;
use axum::extract::FromRef;
use object_store::ObjectStore;
use tokio::sync::Semaphore;
use vidlog_contract::{Tokens, config::ApiConfig};
use vidlog_rate_limits::{RateLimitConfig, RateLimiter};
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
    /// Counts calls, per user and per address.
    pub limits: RateLimiter,
    /// Permits for concurrent requests.
    pub request_permits: Arc<Semaphore>,
}

/// The settings of the query API.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// Settings of the query API alone.
    pub query: &'a QueryConfig,
    /// Settings that both APIs share.
    pub api: &'a ApiConfig,
    /// Rate limits.
    pub limits: &'a RateLimitConfig,
    /// Addresses of the stores.
    pub stores: &'a Stores,
    /// Base of media URLs.
    pub media_base: &'a str,
    /// The clock.
    pub clock: Clock,
}

impl QueryState {
    /// Creates the state, and starts to observe the projections. Stores are connected on first use.
    pub fn open(settings: Settings<'_>) -> anyhow::Result<Self> {
        let Settings { query, api, limits, stores, media_base, clock } = settings;
        let redis = Redis::open(stores.redis_url.reveal()).context("failed to read the address of Redis")?;
        let mysql = mysql::open_for_reads(stores.mysql_url.reveal(), query.query_mysql_connections)
            .context("failed to read the address of MySQL")?;
        let keys = Keys::new(&stores.namespace, stores.shards);
        let models = ReadModels::new(keys, redis, mysql, MediaUrls::new(media_base));
        models.freshness.observe_projections();
        let now = clock.clone();
        Ok(Self {
            limits: RateLimiter::new(limits.clone(), &models),
            models,
            tokens: Tokens::parse(api.jwt_keys.reveal(), move || now.now_ms())
                .context("failed to read the keys of tokens")?,
            clock,
            objects: objects::open(&api.object_store)?,
            request_permits: Arc::new(Semaphore::new(query.query_max_requests)),
        })
    }
}

impl FromRef<QueryState> for Tokens {
    fn from_ref(state: &QueryState) -> Self {
        state.tokens.clone()
    }
}
