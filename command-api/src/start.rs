//! Starts the command side: opens its connections and spawns its background tasks.

use std::{num::NonZero, sync::Arc, thread::available_parallelism, time::Duration};

use anyhow::Context;
use axum::Router;
use sqlx::MySqlPool;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::warn;
use vidlog_contract::{Tokens, config::ApiConfig};
use vidlog_events::Topics;
use vidlog_rate_limits::{RateLimitConfig, RateLimiter};
use vidlog_read_models::{MediaUrls, ReadModels};
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, MIGRATOR};
use vidlog_service_kit::{
    clock::Clock,
    config::{Kafka, Stores},
    mysql, objects,
    ops::Readiness,
    shutdown::Shutdown,
};

use crate::{
    accounts::appearances::NameNormalizer,
    config::CommandConfig,
    ids::IdGenerator,
    lease::LeaseKeeper,
    outbox::Relay,
    passwords::Passwords,
    publisher::KafkaLog,
    router,
    state::CommandState,
    topics::{Layout, create_topics},
    upload_slots::{SlotLimits, UploadSlots},
    username,
};

/// Delay between attempts to migrate the tables and to create the topics.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long background tasks may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// MySQL connections for the facts of commands, beside those for everything else: slow reads must not delay a registration.
const FACTS_CONNECTIONS: u32 = 16;
/// Names in the readiness report.
const TABLES: &str = "tables";
const TOPICS: &str = "topics";

/// Settings of the command side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Settings of the command side alone.
    pub command: CommandConfig,
    /// Settings shared by both APIs.
    pub api: ApiConfig,
    /// Rate limits.
    pub limits: RateLimitConfig,
    /// Connection settings of the log.
    pub log: Kafka,
    /// Connection settings of the stores.
    pub stores: Stores,
    /// Base of media URLs.
    pub media_base: String,
    /// The clock.
    pub clock: Clock,
}

/// A running command side.
pub struct CommandApi {
    /// The state of its handlers.
    pub state: CommandState,
    log: KafkaLog,
    background: JoinSet<()>,
    stop: Shutdown,
}

/// Starts the command side. Connects to Kafka and the stores in the background, and reports missing ones in
/// `readiness`. Fails only on an invalid setting.
pub async fn start(settings: &Settings, readiness: &Readiness) -> anyhow::Result<CommandApi> {
    let topics = Topics::new(&settings.stores.namespace);
    let log = KafkaLog::open(&settings.log.kafka_brokers, topics.clone())
        .context("failed to create the Kafka producer")?;
    let state = open(settings, &log).await?;
    let stop = Shutdown::new();
    readiness.not_ready(TABLES, "not checked yet");
    readiness.not_ready(TOPICS, "not checked yet");

    let mut background = JoinSet::new();
    background.spawn(run_mysql_tasks(state.clone(), readiness.clone(), stop.clone()));
    background.spawn(ensure_topics(
        settings.log.kafka_brokers.clone(),
        topics,
        settings.command.layout(),
        readiness.clone(),
        stop.clone(),
    ));
    Ok(CommandApi { state, log, background, stop })
}

impl CommandApi {
    /// Routes of the command side, with an error response for every other path.
    pub fn router(&self) -> Router {
        router::router(self.state.clone())
    }

    /// Routes of the command side without a fallback, for merging with other routes.
    pub fn routes(&self) -> Router {
        router::routes(self.state.clone())
    }

    /// Stops the background tasks, releases the node number, and flushes pending appends. Call it after the last
    /// request.
    pub async fn stop(mut self) {
        self.stop.request();
        let ended = timeout(STOP_TIMEOUT, async { while self.background.join_next().await.is_some() {} });
        if ended.await.is_err() {
            warn!("background tasks did not stop in time");
        }
        self.log.flush().await;
    }
}

async fn open(settings: &Settings, log: &KafkaLog) -> anyhow::Result<CommandState> {
    let Settings { command, api, limits, stores, media_base, clock, log: _ } = settings;
    let redis = Redis::open(stores.redis_url.reveal()).context("failed to parse the Redis URL")?;
    let mysql = mysql::open(stores.mysql_url.reveal(), command.command_mysql_connections)
        .context("failed to parse the MySQL URL")?;
    let keys = Keys::new(&stores.namespace, stores.shards);
    let now = clock.clone();
    let facts = mysql::open_for_reads(stores.mysql_url.reveal(), FACTS_CONNECTIONS)
        .context("failed to parse the MySQL URL")?;
    let read_models = ReadModels::new(keys, redis, facts, MediaUrls::new(media_base));
    read_models.freshness.observe_projections();
    let passwords = spawn_blocking(|| Passwords::new(available_parallelism().map_or(1, NonZero::get)));
    Ok(CommandState {
        log: Arc::new(log.clone()),
        ids: IdGenerator::new(clock.clone()),
        tokens: Tokens::parse(api.jwt_keys.reveal(), move || now.now_ms())
            .context("failed to parse the token keys")?,
        passwords: passwords.await?.context("failed to hash a password")?,
        limits: RateLimiter::with_account_key(limits.clone(), &read_models, username::account_key),
        read_models,
        clock: clock.clone(),
        mysql,
        objects: objects::open(&api.object_store)?,
        max_upload_bytes: command.max_upload_bytes,
        upload_slots: UploadSlots::new(SlotLimits::of(command)),
    })
}

/// Migrates the tables; then keeps a node number leased, relays the outbox and normalizes user names until shutdown.
async fn run_mysql_tasks(state: CommandState, readiness: Readiness, stop: Shutdown) {
    let migrated = migrate(&state.mysql, &readiness);
    if stop.token().run_until_cancelled(migrated).await.is_none() {
        return;
    }
    let keeper = LeaseKeeper::new(state.mysql.clone(), state.ids.clone(), readiness.clone());
    let normalizer = NameNormalizer::new(state.mysql.clone(), readiness.clone());
    let relay = Relay::new(state).run(readiness, stop.clone());
    tokio::join!(keeper.run(stop.clone()), relay, normalizer.run(stop));
}

async fn migrate(pool: &MySqlPool, readiness: &Readiness) {
    while let Err(error) = mysql::migrate(pool, &MIGRATOR).await {
        warn!(%error, "failed to migrate the tables; retrying");
        readiness.not_ready(TABLES, error.to_string());
        sleep(RETRY_INTERVAL).await;
    }
    readiness.ready(TABLES);
}

async fn ensure_topics(
    brokers: String,
    topics: Topics,
    layout: Layout,
    readiness: Readiness,
    stop: Shutdown,
) {
    let ensured = async {
        while let Err(error) = create_topics(&brokers, &topics, layout).await {
            warn!(%error, "failed to create the topics; retrying");
            readiness.not_ready(TOPICS, error.to_string());
            sleep(RETRY_INTERVAL).await;
        }
        readiness.ready(TOPICS);
    };
    // Cancellation before the topics exist needs no cleanup.
    stop.token().run_until_cancelled(ensured).await;
}
