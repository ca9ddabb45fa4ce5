//! The desired state of each projection: which generation is live, and whether it runs.
//!
//! MySQL holds it, so it survives every process. Every process polls it several times a second and keeps the last one while
//! MySQL is unavailable.

pub mod hold;
pub mod view_lock;

use std::{collections::BTreeMap, time::Duration};

use sqlx::{AssertSqlSafe, MySqlConnection, MySqlPool, mysql::MySqlDatabaseError};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use vidlog_schemas::keys::FIRST_GENERATION;
use vidlog_service_kit::shutdown::Shutdown;

use crate::view::Projection;

/// Interval between two polls: the delay until a pause or a hold has effect. Meanwhile a hold delays readers of their
/// own writes, which wait for two seconds at most.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout for a query of MySQL.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two attempts to read the first state.
const START_RETRY: Duration = Duration::from_secs(1);
/// How long `RENAME TABLE` may wait for the tables, shorter than a hold. Reads that begin meanwhile wait behind it.
const RENAME_WAIT_S: u32 = 1;
/// The MySQL error after that wait: `ER_LOCK_WAIT_TIMEOUT`.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// The MySQL error by which [`rename_while_held`] aborts without a hold: `ER_SUBQUERY_NO_1_ROW`.
const TWO_ROWS: u16 = 1242;
/// Characters of a reason that are stored.
const REASON_LENGTH: usize = 1000;

/// The desired state of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredState {
    /// The live generation.
    pub generation: u32,
    /// Whether the projection runs.
    pub run_state: RunState,
}

/// Whether a projection runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It runs.
    Run,
    /// A rebuild or an audit holds it for at most seconds.
    Hold,
    /// An operator paused it until they resume it.
    Pause,
    /// It stopped itself, for this reason, until an operator resumes it.
    Stopped(String),
}

impl Default for DesiredState {
    fn default() -> Self {
        Self { generation: FIRST_GENERATION, run_state: RunState::Run }
    }
}

/// Desired state per projection. A projection without a row runs.
pub type DesiredStates = BTreeMap<String, DesiredState>;

type Row = (String, u32, bool, bool, Option<String>);

/// Reads the desired state of all projections.
pub async fn read(pool: &MySqlPool) -> sqlx::Result<DesiredStates> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT name, CAST(generation AS UNSIGNED), paused,
                held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000, stopped FROM projections",
    )
    .fetch_all(pool)
    .await?;
    let desired = |(name, generation, paused, held, stopped): Row| {
        let run_state = match (paused, stopped, held) {
            (true, ..) => RunState::Pause,
            (false, Some(why), _) => RunState::Stopped(why),
            (false, None, true) => RunState::Hold,
            (false, None, false) => RunState::Run,
        };
        (name, DesiredState { generation, run_state })
    };
    Ok(rows.into_iter().map(desired).collect())
}

/// Polls the desired states until shutdown. Returns after the first successful read; `None` if shutdown came first.
pub async fn watch(pool: MySqlPool, shutdown: Shutdown) -> Option<watch::Receiver<DesiredStates>> {
    let first = loop {
        match read_in_time(&pool).await {
            Ok(first) => break first,
            Err(error) => warn!(error, "waiting for the desired state"),
        }
        if timeout(START_RETRY, shutdown.wait()).await.is_ok() {
            return None;
        }
    };
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut is_unavailable = false;
        while !sender.is_closed() && !shutdown.is_requested() {
            sleep(POLL_INTERVAL).await;
            match read_in_time(&pool).await {
                Ok(desired) => {
                    is_unavailable = false;
                    sender.send_if_modified(|current| {
                        let changed = *current != desired;
                        *current = desired;
                        changed
                    });
                }
                Err(error) if !is_unavailable => {
                    is_unavailable = true;
                    warn!(error, "desired state unavailable, keeping the last one");
                }
                Err(_) => {}
            }
        }
    });
    Some(receiver)
}

async fn read_in_time(pool: &MySqlPool) -> Result<DesiredStates, String> {
    match timeout(QUERY_TIMEOUT, read(pool)).await {
        Ok(Ok(desired)) => Ok(desired),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("MySQL timed out".to_owned()),
    }
}

/// Pauses a projection until it is resumed, across restarts.
pub async fn pause(pool: &MySqlPool, projection: &Projection) -> sqlx::Result<()> {
    let upsert =
        "INSERT INTO projections (name, paused) VALUES (?, TRUE) ON DUPLICATE KEY UPDATE paused = TRUE";
    sqlx::query(upsert).bind(projection.name()).execute(pool).await?;
    Ok(())
}

/// Resumes a projection that was paused or that stopped itself.
pub async fn resume(pool: &MySqlPool, projection: &Projection) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET paused = FALSE, stopped = NULL WHERE name = ?")
        .bind(projection.name())
        .execute(pool)
        .await?;
    Ok(())
}

/// Stops a projection that needs an operator, until it is resumed.
pub async fn stop(pool: &MySqlPool, projection: &Projection, why: &str) -> sqlx::Result<()> {
    let why: String = why.chars().take(REASON_LENGTH).collect();
    sqlx::query(
        "INSERT INTO projections (name, stopped) VALUES (?, ?) ON DUPLICATE KEY UPDATE stopped = VALUES(stopped)",
    )
    .bind(projection.name())
    .bind(&why)
    .execute(pool)
    .await?;
    info!(projection = projection.name(), why, "projection stopped until it is resumed");
    Ok(())
}

/// Holds a projection for a time. Returns the end of the hold, in ms since 1970 by MySQL's clock, which identifies it.
pub async fn hold(pool: &MySqlPool, projection: &Projection, time: Duration) -> sqlx::Result<i64> {
    let until_ms = time_from_now(pool, time).await?;
    sqlx::query(
        "INSERT INTO projections (name, held_until_ms) VALUES (?, ?)
         ON DUPLICATE KEY UPDATE held_until_ms = VALUES(held_until_ms)",
    )
    .bind(projection.name())
    .bind(until_ms)
    .execute(pool)
    .await?;
    Ok(until_ms)
}

/// Extends a hold to a time from now, and returns its new end. Returns `None` if it expired or was replaced by another.
pub async fn extend_hold(
    pool: &MySqlPool,
    projection: &Projection,
    until_ms: i64,
    time: Duration,
) -> sqlx::Result<Option<i64>> {
    let extended_ms = time_from_now(pool, time).await?;
    let extended = sqlx::query(
        "UPDATE projections SET held_until_ms = ?
         WHERE name = ? AND held_until_ms = ? AND held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000",
    )
    .bind(extended_ms)
    .bind(projection.name())
    .bind(until_ms)
    .execute(pool)
    .await?;
    Ok((extended.rows_affected() == 1).then_some(extended_ms))
}

/// Ends a hold, unless another one replaced it.
pub async fn end_hold(pool: &MySqlPool, projection: &Projection, until_ms: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET held_until_ms = 0 WHERE name = ? AND held_until_ms = ?")
        .bind(projection.name())
        .bind(until_ms)
        .execute(pool)
        .await?;
    Ok(())
}

/// Returns a time from now, in ms since 1970 by MySQL's clock.
async fn time_from_now(pool: &MySqlPool, time: Duration) -> sqlx::Result<i64> {
    let now_ms: i64 =
        sqlx::query_scalar("SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)").fetch_one(pool).await?;
    Ok(now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
}

/// Makes the next generation live, and ends the hold. Returns false if the hold expired, or if another generation than
/// `live` is live.
pub async fn take_over(pool: &MySqlPool, projection: &Projection, live: u32) -> sqlx::Result<bool> {
    let took_over = sqlx::query(
        "UPDATE projections SET generation = ?, held_until_ms = 0
         WHERE name = ? AND generation = ? AND held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000",
    )
    .bind(live + 1)
    .bind(projection.name())
    .bind(live)
    .execute(pool)
    .await?;
    Ok(took_over.rows_affected() == 1)
}

/// Renames tables within a hold, and extends the hold from its end to another one. Returns false if the hold expired or was
/// replaced, or if the tables were in use.
///
/// `RENAME TABLE` cannot be conditional, so one multi-statement query aborts unless the hold is still ours: a slow or stopped
/// process cannot rename after its hold.
pub async fn rename_while_held(
    pool: &MySqlPool,
    projection: &Projection,
    (until_ms, extended_ms): (i64, i64),
    moves: &str,
) -> sqlx::Result<bool> {
    let held = format!(
        "name = '{}' AND held_until_ms = {until_ms} AND held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000",
        projection.name()
    );
    let statements = format!(
        "SET SESSION lock_wait_timeout = {RENAME_WAIT_S};
         SELECT (SELECT 1 FROM (SELECT 1 UNION ALL SELECT 2) AS two
             WHERE NOT EXISTS (SELECT 1 FROM projections WHERE {held}));
         UPDATE projections SET held_until_ms = {extended_ms} WHERE {held};
         RENAME TABLE {moves}"
    );
    // The timeout belongs to the session, so the connection does not return to the pool.
    let mut connection: MySqlConnection = pool.acquire().await?.detach();
    match sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(error_number(&error), Some(LOCK_WAIT_TIMEOUT | TWO_ROWS)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn error_number(error: &sqlx::Error) -> Option<u16> {
    let refused = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(refused.number())
}

/// Stores that the next generation took over by renaming tables, and ends the hold.
pub async fn record_generation(pool: &MySqlPool, projection: &Projection, live: u32) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET generation = ?, held_until_ms = 0 WHERE name = ?")
        .bind(live + 1)
        .bind(projection.name())
        .execute(pool)
        .await?;
    Ok(())
}
