//! Runs projections in a process.

use std::sync::Arc;

use anyhow::Context;
use tokio::task::JoinSet;
use vidlog_service_kit::{config, ops::Readiness, shutdown::Shutdown};

use crate::status::Reporter;
use vidlog_projection_engine::{
    completeness::CompletenessController,
    dead_letters::DeadLetterQueue,
    desired_state,
    log::{self, identity::FirstRecords},
    runner::{PartitionStatusRegistry, Runner, Settings},
    store::Stores,
    view::{Fold, Projection},
};

/// MySQL connections of a process: partitions take turns on them.
const MYSQL_CONNECTIONS: u32 = 16;

/// What runs, where, and as whom.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Where the log is.
    pub log: &'a config::Log,
    /// Where the stores are.
    pub stores: &'a config::Stores,
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
    let target = Stores::open(stores, MYSQL_CONNECTIONS)?;
    target.prepare(&shutdown).await?;
    let Some(desired_states) = desired_state::watch(target.mysql.clone(), shutdown.clone()).await else {
        return Ok(());
    };
    // Before anyone looks at a view: the runners follow only when the log answers, which may take long.
    for projection in projections {
        let generation =
            desired_states.borrow().get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, generation);
    }

    let kafka = log::Log::new(log, &stores.namespace);
    let statuses = Arc::new(PartitionStatusRegistry::default());
    let reporter = Reporter {
        instance: instance.map_or_else(this_process, str::to_owned),
        target: target.clone(),
        statuses: statuses.clone(),
        readiness: readiness.clone(),
    };
    tokio::spawn(reporter.run(shutdown.clone()));
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
    let mut running = JoinSet::new();
    for projection in projections {
        let runner = Runner::new(target.view(*projection), settings.clone(), readiness.clone());
        running.spawn(runner.run(shutdown.clone()));
        if let Fold::Redis(fold) = projection.fold {
            let (stores, log, readiness) = (target.clone(), kafka.clone(), readiness.clone());
            let controller = CompletenessController::new(*projection, fold, stores, log, readiness);
            let shutdown = shutdown.clone();
            running.spawn(async move {
                controller.run(shutdown).await;
                Ok(())
            });
        }
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
