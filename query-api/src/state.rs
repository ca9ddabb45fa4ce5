//! What every handler has at hand.

use std::{env, fs, sync::Arc};

use anyhow::Context;
use axum::extract::FromRef;
use object_store::{ObjectStore, prefix::PrefixStore};
use tokio::sync::Semaphore;
use url::Url;
use vidlog_contract::{Tokens, config::ApiConfig};
use vidlog_read_models::{MediaUrls, ReadModels};
use vidlog_schemas::Keys;
use vidlog_service_kit::{clock::Clock, config::Stores, mysql, redis::Redis};

use crate::QueryConfig;

/// What every handler has at hand. Clones share it.
#[derive(Clone)]
pub struct QueryState {
    /// What is read.
    pub models: ReadModels,
    /// Who calls.
    pub tokens: Tokens,
    /// What time it is.
    pub clock: Clock,
    /// Media, by object key.
    pub objects: Arc<dyn ObjectStore>,
    /// A slot for each request that is worked on at once.
    pub slots: Arc<Semaphore>,
}

impl QueryState {
    /// Opens everything; stores are connected to when they are first used. Addresses of media begin with `media_base`.
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
            objects: open_objects(&api.object_store)?,
            slots: Arc::new(Semaphore::new(config.query_max_requests)),
        })
    }
}

impl FromRef<QueryState> for Tokens {
    fn from_ref(state: &QueryState) -> Self {
        state.tokens.clone()
    }
}

/// Opens an object store: a local folder, made if it is missing, or a bucket with the settings of `AWS_*`. Object
/// keys are relative to the address.
fn open_objects(address: &str) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let url = Url::parse(address)
        .with_context(|| format!("failed to read the object store's address {address}"))?;
    if let (true, Ok(folder)) = (url.scheme() == "file", url.to_file_path()) {
        fs::create_dir_all(&folder).with_context(|| format!("failed to create {}", folder.display()))?;
    }
    let settings = env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?.to_ascii_lowercase();
        let value = value.into_string().ok()?;
        name.starts_with("aws_").then_some((name, value))
    });
    let (store, folder) = object_store::parse_url_opts(&url, settings)
        .with_context(|| format!("failed to open the object store {address}"))?;
    Ok(Arc::new(PrefixStore::new(store, folder)))
}
