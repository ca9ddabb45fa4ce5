//! Operator actions: status, pause, resume, audit, retry and discard dead letters.

pub(crate) mod dead_letters;

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use vidlog_service_kit::config;

use crate::{
    audit::{self, audit_some},
    status::{self, Report, State, Status, read_reports},
};
use vidlog_projection_engine::{
    dead_letters::DeadLetterQueue,
    desired_state::{self, DesiredState, RunState},
    log::{Log, Partition},
    store::Stores,
    view::Projection,
};

/// Size of the MySQL connection pool.
const MYSQL_CONNECTIONS: u32 = 4;
/// Timeout for the processes to stop folding: longer than their tasks take to end.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two reads of the reports.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Operates the projections of a namespace. Clones share their connections.
#[derive(Clone)]
pub struct Operator {
    log: Log,
    target: Stores,
}

impl Operator {
    /// Creates an operator of a namespace. It connects on first use.
    pub fn open(log: &config::Kafka, stores: &config::Stores) -> anyhow::Result<Self> {
        let target = Stores::open(stores, MYSQL_CONNECTIONS)?;
        let log = Log::new(log, &stores.namespace);
        Ok(Self { log, target })
    }

    /// Returns the status of projections.
    pub async fn status(&self, projections: &[Projection]) -> Status {
        status::gather(&self.log, &self.target, projections).await
    }

    /// Pauses a projection until it is resumed, and waits until its processes have stopped folding. Returns a
    /// message for the operator.
    pub async fn pause(&self, projection: &Projection) -> anyhow::Result<String> {
        let name = projection.name();
        let before = self.desired_state(projection).await?;
        desired_state::pause(&self.target.mysql, projection)
            .await
            .context("failed to store the desired state in MySQL")?;
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        loop {
            let reports = self.reports(projection).await?;
            let folding: Vec<_> = reports
                .iter()
                .filter(|report| matches!(report.state, State::Running | State::Blocked))
                .map(|report| format!("{} by {}", report.partition.id(), report.instance))
                .collect();
            let already =
                if before.run_state == RunState::Pause { "was paused already" } else { "is paused" };
            if reports.is_empty() {
                return Ok(format!("{name} {already}; no instance runs it now"));
            }
            if folding.is_empty() {
                return Ok(format!("{name} {already}: {} partitions stopped", reports.len()));
            }
            if Instant::now() > deadline {
                let folding = folding.join(", ");
                return Ok(format!("{name} {already}, but some partitions still run: {folding}"));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Resumes a projection that was paused or that stopped itself. Returns a message for the operator.
    pub async fn resume(&self, projection: &Projection) -> anyhow::Result<String> {
        let name = projection.name();
        let before = self.desired_state(projection).await?;
        desired_state::resume(&self.target.mysql, projection)
            .await
            .context("failed to store the desired state in MySQL")?;
        let done = match before.run_state {
            RunState::Pause => format!("{name} resumed"),
            RunState::Stopped(why) => format!("{name} resumed; it had stopped: {why}"),
            RunState::Hold => format!("{name} was not paused; it is held briefly"),
            RunState::Run => format!("{name} was not paused"),
        };
        let is_alone = self.reports(projection).await?.is_empty();
        Ok(if is_alone { format!("{done}; no instance runs it now") } else { done })
    }

    /// Audits the views of projections.
    pub async fn audit(&self, projections: &[Projection]) -> anyhow::Result<audit::Report> {
        audit_some(&self.log, &self.target, projections).await
    }

    /// Returns the parked keys of a projection as JSON.
    pub async fn dead_letters(&self, projection: Projection) -> anyhow::Result<Value> {
        Ok(dead_letters::as_json(&dead_letters::parked_keys(&self.target, projection).await?))
    }

    /// Folds the parked records of a projection, in order. Returns a message per key.
    pub async fn retry(&self, projection: Projection) -> anyhow::Result<Vec<String>> {
        let dead_letters = DeadLetterQueue::new(self.log.clone());
        let mut retried = Vec::new();
        dead_letters::retry(&self.target, &dead_letters, projection, None, |one| {
            retried.push(one.to_string());
        })
        .await?;
        Ok(retried)
    }

    /// Skips a parked record for good, and folds the ones parked behind it. Returns a message for the
    /// operator.
    pub async fn discard(
        &self,
        projection: Projection,
        partition: Partition,
        offset: i64,
    ) -> anyhow::Result<String> {
        let dead_letters = DeadLetterQueue::new(self.log.clone());
        let discarded =
            dead_letters::discard(&self.target, &dead_letters, projection, (partition, offset)).await?;
        Ok(discarded.to_string())
    }

    async fn desired_state(&self, projection: &Projection) -> anyhow::Result<DesiredState> {
        let mut states = desired_state::read(&self.target.mysql)
            .await
            .context("failed to read the desired state from MySQL")?;
        Ok(states.remove(projection.name()).unwrap_or_default())
    }

    async fn reports(&self, projection: &Projection) -> anyhow::Result<Vec<Report>> {
        let mut reports =
            read_reports(&self.target.mysql).await.context("failed to read the reports from MySQL")?;
        reports.retain(|report| report.projection == projection.name());
        Ok(reports)
    }
}
