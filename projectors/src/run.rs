//! Runs projections in a process.

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

use crate::status::Reporter;
use vidlog_projection_engine::{
    completeness::Keeper,
    dead_letters::Post,
    desired_state,
    log::{self, identity::FirstRecords},
    runner::{Board, Runner, Settings},
    store::{Target, prepare::prepare},
    view::Projection,
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
    prepare(&target, stores.shards, &shutdown).await?;
    let Some(wanted) = desired_state::follow(target.mysql.clone(), shutdown.clone()).await else {
        return Ok(());
    };
    // Before anyone looks at a view: the runners follow only when the log answers, which may take long.
    for projection in projections {
        let generation = wanted.borrow().get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }

    let kafka = log::Log { brokers: log.kafka_brokers.clone(), topics: Topics::new(&stores.namespace) };
    let board = Arc::new(Board::default());
    let reporter = Reporter {
        instance: instance.map_or_else(this_process, str::to_owned),
        target: target.clone(),
        board: board.clone(),
        readiness: readiness.clone(),
    };
    tokio::spawn(reporter.run(shutdown.clone()));
    let settings = Arc::new(Settings {
        instance: instance.map(str::to_owned),
        session_timeout_ms: log.session_timeout_ms,
        namespace: stores.namespace.clone(),
        first_records: FirstRecords::new(kafka.clone()),
        post: Post::new(kafka.clone()),
        log: kafka.clone(),
        wanted,
        board,
    });
    let mut running = JoinSet::new();
    for projection in projections {
        let runner = Runner::new(*projection, target.clone(), settings.clone(), readiness.clone());
        running.spawn(runner.run(shutdown.clone()));
        let keeper = Keeper::new(*projection, target.clone(), kafka.clone(), readiness.clone());
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
