//! Reports: each process writes the status of its partitions to MySQL, from where operators read it.

use std::{sync::Arc, time::Duration};

use metrics::gauge;
use sqlx::{MySqlPool, QueryBuilder};
use tokio::time::{sleep, timeout};
use tracing::warn;
use vidlog_events::Stream;
use vidlog_service_kit::shutdown::Shutdown;

use super::State;
use crate::{metrics::BLOCKED, projections};
use vidlog_projection_engine::{
    desired_state::RunState,
    log::Partition,
    runner::{PartitionStatus, PartitionStatusRegistry, Phase},
    store::Stores,
};

/// Interval of the reports.
const INTERVAL: Duration = Duration::from_secs(2);
/// Minimum interval between reports; a change triggers one early.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout for writing a report.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum age of a report, in ms. An older one belongs to a process that ended or cannot reach MySQL.
const FRESH_MS: i64 = 10_000;
/// Maximum number of characters of a stored text.
const TEXT_LENGTH: usize = 1000;

/// A process's report on a partition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    /// Name of the projection.
    pub(crate) projection: String,
    /// Partition.
    pub(crate) partition: Partition,
    /// Process that owns the partition.
    pub(crate) instance: String,
    /// Generation that the process folds into.
    pub(crate) generation: u32,
    /// State of the partition.
    pub(crate) state: State,
    /// Reason for the state, for operators.
    pub(crate) why: Option<String>,
    /// Records folded per second, averaged over the last 10 seconds.
    pub(crate) records_per_second: f64,
    /// Last error and its age in ms.
    pub(crate) last_error: Option<(String, i64)>,
}

/// Writes the reports of a process as `instance` until shutdown.
pub(crate) struct Reporter {
    pub(crate) instance: String,
    pub(crate) target: Stores,
    pub(crate) statuses: Arc<PartitionStatusRegistry>,
}

impl Reporter {
    pub(crate) async fn run(self, shutdown: Shutdown) {
        let mut is_failing = false;
        while !shutdown.is_requested() {
            let reports: Vec<_> =
                self.statuses.snapshot().into_iter().map(|status| self.report(status)).collect();
            export_blocked(&reports);
            match timeout(WRITE_TIMEOUT, write(&self.target.mysql, reports)).await {
                Ok(Ok(())) => is_failing = false,
                failed if !is_failing => {
                    is_failing = true;
                    let error = failed.map_or("MySQL timed out".to_owned(), |failed| {
                        failed.map_or_else(|error| error.to_string(), |()| String::new())
                    });
                    warn!(error, "status report failed");
                }
                _ => {}
            }
            sleep(MIN_INTERVAL).await;
            tokio::select! {
                () = self.statuses.changed() => {}
                () = sleep(INTERVAL) => {}
                () = shutdown.wait() => {}
            }
        }
    }

    fn report(&self, status: PartitionStatus) -> Report {
        let PartitionStatus { projection, partition, phase, run_state, records_per_second, error } = status;
        let (state, why) = match (phase, run_state) {
            (Phase::Running, _) => (State::Running, None),
            (Phase::Blocked(why), _) => (State::Blocked, Some(why)),
            (Phase::Waiting(_), RunState::Pause) => (State::Paused, None),
            (Phase::Waiting(_), RunState::Hold) => (State::Held, None),
            (Phase::Waiting(_), RunState::Stopped(why)) => (State::Stopped, Some(why)),
            (Phase::Waiting(why), RunState::Run) => (State::Waiting, Some(why)),
        };
        let catalogued = projections::find(projection).map(|projection| projection.catalogued);
        Report {
            projection: projection.to_owned(),
            partition,
            instance: self.instance.clone(),
            generation: catalogued.map_or(0, |catalogued| self.target.keys.generation(&catalogued)),
            state,
            why,
            records_per_second,
            last_error: error.map(|(error, ago)| (error, i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))),
        }
    }
}

/// Exports the number of blocked and stopped partitions of each projection.
fn export_blocked(reports: &[Report]) {
    for projection in projections::ALL {
        let is_blocked = |report: &&Report| {
            report.projection == projection.name() && matches!(report.state, State::Blocked | State::Stopped)
        };
        let count = u32::try_from(reports.iter().filter(is_blocked).count()).unwrap_or(u32::MAX);
        gauge!(BLOCKED, "projection" => projection.name()).set(count);
    }
}

async fn write(pool: &MySqlPool, reports: Vec<Report>) -> sqlx::Result<()> {
    if reports.is_empty() {
        return Ok(());
    }
    let truncate = |text: &str| text.chars().take(TEXT_LENGTH).collect::<String>();
    let mut upsert = QueryBuilder::new(
        "INSERT INTO projector_status (projection, stream, partition_no, instance, generation, state, why,
             records_per_second, last_error, last_error_ms, reported_ms) ",
    );
    upsert.push_values(reports, |mut row, report| {
        let Report { projection, partition, instance, generation, state, why, .. } = report;
        let (error, ago) = report.last_error.unzip();
        row.push_bind(projection)
            .push_bind(partition.stream.name())
            .push_bind(partition.number)
            .push_bind(instance)
            .push_bind(generation)
            .push_bind(state.name())
            .push_bind(why.as_deref().map(truncate))
            .push_bind(report.records_per_second)
            .push_bind(error.as_deref().map(truncate))
            .push("UNIX_TIMESTAMP(NOW(3)) * 1000 - ")
            .push_bind_unseparated(ago)
            .push("UNIX_TIMESTAMP(NOW(3)) * 1000");
    });
    upsert.push(" ON DUPLICATE KEY UPDATE ");
    let mut columns = upsert.separated(", ");
    for column in [
        "instance",
        "generation",
        "state",
        "why",
        "records_per_second",
        "last_error",
        "last_error_ms",
        "reported_ms",
    ] {
        columns.push(format!("{column} = VALUES({column})"));
    }
    upsert.build().execute(pool).await?;
    Ok(())
}

#[derive(sqlx::FromRow)]
struct Row {
    projection: String,
    stream: String,
    partition_no: i32,
    instance: String,
    generation: u32,
    state: String,
    why: Option<String>,
    records_per_second: f64,
    last_error: Option<String>,
    last_error_ago_ms: Option<i64>,
}

/// Reads the reports that are at most [`FRESH_MS`] old.
pub(crate) async fn read(pool: &MySqlPool) -> sqlx::Result<Vec<Report>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT projection, stream, partition_no, instance, CAST(generation AS UNSIGNED) AS generation, state, why,
                records_per_second, last_error,
                CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 - last_error_ms AS SIGNED) AS last_error_ago_ms
         FROM projector_status
         WHERE reported_ms > UNIX_TIMESTAMP(NOW(3)) * 1000 - ?
         ORDER BY projection, stream, partition_no",
    )
    .bind(FRESH_MS)
    .fetch_all(pool)
    .await?;
    let report = |row: Row| {
        let stream = Stream::ALL.into_iter().find(|stream| stream.name() == row.stream)?;
        Some(Report {
            projection: row.projection,
            partition: Partition { stream, number: row.partition_no },
            instance: row.instance,
            generation: row.generation,
            state: State::read(&row.state)?,
            why: row.why,
            records_per_second: row.records_per_second,
            last_error: row.last_error.zip(row.last_error_ago_ms),
        })
    };
    Ok(rows.into_iter().filter_map(report).collect())
}
