//! The projectors: they fold the log into the read models.
//!
//! A projection is one pure function. One runner owns everything else: consuming, batching, applying, checkpoints,
//! retries, metrics, shutdown. A batch's writes and its position are one atomic write in the store that holds the
//! view, and the store refuses a batch that does not follow: so every record counts once, whoever dies when.

pub mod as_of;
pub mod audit;
pub mod config;
pub mod control;
pub mod dead_letters;
mod hold;
mod keeper;
pub mod log_identity;
mod metrics;
mod mysql_url;
pub mod operate;
pub mod projection;
pub mod projections;
pub mod rebuild;
mod record;
pub mod replay;
pub mod runner;
pub mod sink;
pub mod status;
mod view_lock;

use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;
use vidlog_events::Topics;
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{
    config::{Log, Stores},
    mysql,
    ops::Readiness,
    shutdown::Shutdown,
};

pub use record::{Delivery, Record};

use crate::{
    dead_letters::Post,
    keeper::Keeper,
    log_identity::FirstRecords,
    projection::Projection,
    runner::{Board, Runner, Settings},
    sink::Target,
    status::Reporter,
};

/// MySQL connections of a process: partitions take turns on them.
const MYSQL_CONNECTIONS: u32 = 16;

/// What runs, where, and as whom.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Where the log is.
    pub log: &'a Log,
    /// Where the stores are.
    pub stores: &'a Stores,
    /// What runs.
    pub projections: &'a [Projection],
    /// The name of this process, by which it has the same partitions after a restart; no two may have the same. Without
    /// one it is a new member of its consumer groups each time.
    pub instance: Option<&'a str>,
}

/// Runs projections until shutdown is given, each by itself. A store, a broker or a record that one of them can't go on
/// with holds up only that one; what can't be set up at all is an error, and that another took this instance's place.
pub fn run(
    plan: Plan<'_>,
    readiness: Readiness,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> + '_ {
    // At once, not when it is first polled: whoever asks before that must not be told that all is ready.
    for projection in plan.projections {
        readiness.not_ready(projection.name(), "joining its consumer group");
    }
    run_all(plan, readiness, shutdown)
}

async fn run_all(plan: Plan<'_>, readiness: Readiness, shutdown: Shutdown) -> anyhow::Result<()> {
    let Plan { log, stores, projections, instance } = plan;
    let redis = Redis::open(stores.redis_url.reveal()).context("failed to read the Redis address")?;
    let mysql = mysql::open(stores.mysql_url.reveal(), MYSQL_CONNECTIONS)
        .context("failed to read the MySQL address")?;
    let target = Target { keys: Keys::new(&stores.namespace, stores.shards), redis, mysql };
    sink::prepare(&target, stores.shards, &shutdown).await?;
    let Some(wanted) = control::follow(target.mysql.clone(), shutdown.clone()).await else {
        return Ok(());
    };
    // Before anyone looks at a view: the runners follow only when the log answers, which may take long.
    for projection in projections {
        let generation = wanted.borrow().get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }

    let topics = Topics::new(&stores.namespace);
    let board = Arc::new(Board::default());
    let reporter = Reporter {
        instance: instance.map_or_else(this_process, str::to_owned),
        target: target.clone(),
        board: board.clone(),
        readiness: readiness.clone(),
    };
    tokio::spawn(reporter.run(shutdown.clone()));
    let settings = Arc::new(Settings {
        brokers: log.kafka_brokers.clone(),
        instance: instance.map(str::to_owned),
        session_timeout_ms: log.session_timeout_ms,
        namespace: stores.namespace.clone(),
        first_records: FirstRecords::new(log.kafka_brokers.clone(), topics.clone()),
        post: Post::new(replay::Log { brokers: log.kafka_brokers.clone(), topics: topics.clone() }),
        topics,
        wanted,
        board,
    });
    let mut running = JoinSet::new();
    for projection in projections {
        let runner = Runner::new(*projection, target.clone(), settings.clone(), readiness.clone());
        running.spawn(runner.run(shutdown.clone()));
        let keeper = Keeper::new(*projection, target.clone(), settings.clone(), readiness.clone());
        running.spawn(keeper.run(shutdown.clone()));
    }
    while let Some(ended) = running.join_next().await {
        ended.context("a projection panicked")??;
    }
    Ok(())
}

/// What a process without a name is told apart by.
fn this_process() -> String {
    let machine = rustix::system::uname();
    format!("{}/{}", machine.nodename().to_string_lossy(), std::process::id())
}
