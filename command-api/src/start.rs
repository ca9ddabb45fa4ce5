//! Starts the command side: what it works with, and what it does in the background.

use std::{num::NonZero, sync::Arc, thread::available_parallelism, time::Duration};

use anyhow::Context;
use axum::Router;
use sqlx::MySqlPool;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};
use tracing::warn;
use vidlog_contract::{Tokens, config::ApiConfig};
use vidlog_events::Topics;
use vidlog_read_models::{MediaUrls, ReadModels};
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, MIGRATOR};
use vidlog_service_kit::{
    clock::Clock,
    config::{Log, Stores},
    mysql, objects,
    ops::Readiness,
    shutdown::Shutdown,
};

use crate::{
    config::CommandConfig,
    ids::IdGenerator,
    lease::LeaseKeeper,
    outbox::Relay,
    passwords::Passwords,
    publisher::KafkaLog,
    router,
    state::CommandState,
    topics::{Layout, create_topics},
};

/// Between two attempts at what must be there before commands can be carried out.
const RETRY: Duration = Duration::from_secs(1);
/// How long background tasks may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Parts of the readiness.
const TABLES: &str = "tables";
const TOPICS: &str = "topics";

/// What the command side is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it has to itself.
    pub command: CommandConfig,
    /// What both APIs have alike.
    pub api: ApiConfig,
    /// Where the log is.
    pub log: Log,
    /// Where the stores are.
    pub stores: Stores,
    /// What addresses of media begin with.
    pub media_base: String,
    /// The time.
    pub clock: Clock,
}

/// The command side, running.
pub struct CommandApi {
    /// What its handlers work with.
    pub state: CommandState,
    log: KafkaLog,
    background: JoinSet<()>,
    stop: Shutdown,
}

/// Starts the command side. Nothing has to be there yet: what it needs it waits for in the background, and says in
/// `readiness` what that is. It fails only if a setting can't be used.
pub async fn start(settings: &Settings, readiness: &Readiness) -> anyhow::Result<CommandApi> {
    let topics = Topics::new(&settings.stores.namespace);
    let log = KafkaLog::open(&settings.log.kafka_brokers, topics.clone())
        .context("failed to set the Kafka producer up")?;
    let state = open(settings, &log).await?;
    let stop = Shutdown::new();
    readiness.not_ready(TABLES, "not looked at yet");
    readiness.not_ready(TOPICS, "not looked at yet");

    let mut background = JoinSet::new();
    background.spawn(serve_tables(state.clone(), readiness.clone(), stop.clone()));
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
    /// The command side by itself: its routes, and an answer to every other path.
    pub fn router(&self) -> Router {
        router::router(self.state.clone())
    }

    /// Its routes alone, to be merged with others.
    pub fn routes(&self) -> Router {
        router::routes(self.state.clone())
    }

    /// Stops, once nothing is asked of it any more: gives its node number back, and waits for the log.
    pub async fn stop(mut self) {
        self.stop.give();
        let ended = timeout(STOP_TIMEOUT, async { while self.background.join_next().await.is_some() {} });
        if ended.await.is_err() {
            warn!("background tasks did not end in time");
        }
        self.log.flush().await;
    }
}

async fn open(settings: &Settings, log: &KafkaLog) -> anyhow::Result<CommandState> {
    let Settings { command, api, stores, media_base, clock, log: _ } = settings;
    let redis = Redis::open(stores.redis_url.reveal()).context("failed to read the address of Redis")?;
    let mysql = mysql::open(stores.mysql_url.reveal(), command.command_mysql_connections)
        .context("failed to read the address of MySQL")?;
    let keys = Keys::new(&stores.namespace, stores.shards);
    let now = clock.clone();
    let passwords = spawn_blocking(|| Passwords::new(available_parallelism().map_or(1, NonZero::get)));
    Ok(CommandState {
        log: Arc::new(log.clone()),
        ids: IdGenerator::new(clock.clone()),
        tokens: Tokens::parse(api.jwt_keys.reveal(), move || now.now_ms())
            .context("failed to read the keys of tokens")?,
        passwords: passwords.await?.context("failed to hash a password")?,
        read_models: ReadModels::new(keys, redis, mysql.clone(), MediaUrls::new(media_base)),
        clock: clock.clone(),
        mysql,
        objects: objects::open(&api.object_store)?,
        max_upload_bytes: command.max_upload_bytes,
        upload_slots: Arc::new(Semaphore::new(command.max_uploads)),
    })
}

/// Brings the tables up to date; then leases a node number and relays the outbox, until it is stopped.
async fn serve_tables(state: CommandState, readiness: Readiness, stop: Shutdown) {
    let migrated = migrate(&state.mysql, &readiness);
    if stop.token().run_until_cancelled(migrated).await.is_none() {
        return;
    }
    let keeper = LeaseKeeper::new(state.mysql.clone(), state.ids.clone(), readiness);
    tokio::join!(keeper.run(stop.clone()), Relay::new(state).run(stop));
}

async fn migrate(pool: &MySqlPool, readiness: &Readiness) {
    while let Err(error) = mysql::migrate(pool, &MIGRATOR).await {
        warn!(%error, "the tables are not up to date yet; trying again");
        readiness.not_ready(TABLES, error.to_string());
        sleep(RETRY).await;
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
            warn!(%error, "the topics are not there yet; trying again");
            readiness.not_ready(TOPICS, error.to_string());
            sleep(RETRY).await;
        }
        readiness.ready(TOPICS);
    };
    // Being stopped while it waits is as good as being done.
    stop.token().run_until_cancelled(ensured).await;
}
