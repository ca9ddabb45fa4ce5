//! Runs projections in this process.

use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;
use vidlog_schemas::Keys;
use vidlog_service_kit::{config, ops::Readiness, shutdown::Shutdown};

use crate::status::{Exporter, Reporter};
use vidlog_projection_engine::{
    completeness::CompletenessController,
    dead_letters::DeadLetterQueue,
    desired_state,
    log::{self, identity::FirstRecords},
    runner::{PartitionStatusRegistry, Runner, Settings},
    store::Stores,
    view::{Fold, Projection},
};

/// Size of the MySQL connection pool, which the partitions share.
const MYSQL_CONNECTIONS: u32 = 16;

/// Projections to run, and the stores, log and instance name to run them with.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Connection to Kafka.
    pub log: &'a config::Kafka,
    /// Connections to MySQL and Redis.
    pub stores: &'a config::Stores,
    /// Projections to run.
    pub projections: &'a [Projection],
    /// Name of this process in its consumer groups (`group.instance.id`), by which it gets the same
    /// partitions after a restart. It must be unique. Without a name, the process joins as a new member each
    /// time.
    pub instance: Option<&'a str>,
}

/// Runs projections until shutdown, each independently.
///
/// A store, broker or record that fails blocks only the projections that need it. Returns an error if the
/// setup is impossible, or if another process joined with the same instance name (fencing).
pub fn run(
    plan: Plan<'_>,
    readiness: Readiness,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> + '_ {
    // Runs before the future is first polled, so that `/readyz` cannot succeed earlier.
    for projection in plan.projections {
        readiness.not_ready(projection.name(), "joining its consumer group");
    }
    run_all(plan, readiness, shutdown)
}

async fn run_all(plan: Plan<'_>, readiness: Readiness, shutdown: Shutdown) -> anyhow::Result<()> {
    let Plan { log, stores, projections, instance } = plan;
    let target = Stores::open(stores, MYSQL_CONNECTIONS)?;
    target.prepare(&shutdown).await?;
    let Some(desired_states) = desired_state::watch(target.mysql.clone(), shutdown.clone()).await else {
        return Ok(());
    };
    // Sets the generations before the reporter and the controllers read a view: the runners set them only
    // once Kafka responds.
    for projection in projections {
        let generation =
            desired_states.borrow().get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }

    let kafka = log::Log::new(log, &stores.namespace);
    let statuses = Arc::new(PartitionStatusRegistry::new(readiness.clone()));
    let watched = (statuses.clone(), shutdown.clone());
    tokio::spawn(async move { watched.0.watch(watched.1).await });
    let reporter = Reporter {
        instance: instance.map_or_else(default_instance, str::to_owned),
        target: target.clone(),
        statuses: statuses.clone(),
    };
    tokio::spawn(reporter.run(shutdown.clone()));
    let keys = Keys::new(&stores.namespace, stores.shards);
    let exporter = Exporter { log: kafka.clone(), target: Stores { keys, ..target.clone() } };
    tokio::spawn(exporter.run(shutdown.clone()));
    let settings = Arc::new(Settings {
        instance: instance.map(str::to_owned),
        session_timeout_ms: log.session_timeout_ms,
        namespace: stores.namespace.clone(),
        first_records: FirstRecords::new(kafka.clone()),
        dead_letters: DeadLetterQueue::new(kafka.clone()),
        log: kafka.clone(),
        desired_states,
        statuses,
    });
    let mut tasks = JoinSet::new();
    for projection in projections {
        let runner = Runner::new(target.view(*projection), settings.clone(), readiness.clone());
        tasks.spawn(runner.run(shutdown.clone()));
        if let Fold::Redis(fold) = projection.fold {
            let (stores, log, readiness) = (target.clone(), kafka.clone(), readiness.clone());
            let controller = CompletenessController::new(*projection, fold, stores, log, readiness);
            let shutdown = shutdown.clone();
            tasks.spawn(async move {
                controller.run(shutdown).await;
                Ok(())
            });
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a projection panicked")??;
    }
    Ok(())
}

/// Returns the instance name of a process without a configured one: host name and process id.
fn default_instance() -> String {
    let machine = rustix::system::uname();
    format!("{}/{}", machine.nodename().to_string_lossy(), std::process::id())
}
