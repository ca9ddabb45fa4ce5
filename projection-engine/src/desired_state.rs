//! What is wanted of each projection: which generation is live, and whether it runs.
//!
//! It is kept in MySQL, so that it outlives every process. Every process asks for it several times a second and goes on
//! by what it last knew while MySQL is away.

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

/// Between two questions: how long a pause or a hold takes to be followed. A hold keeps readers waiting for their own
/// writes meanwhile, who wait for two seconds at most.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// How long the answer may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two questions at the start, when nothing is known yet.
const START_RETRY: Duration = Duration::from_secs(1);
/// How long tables that are renamed may be waited for. Reads that begin meanwhile wait behind it. It is shorter than a hold.
const RENAME_WAIT_S: u32 = 1;
/// MySQL's number of the error that says that they were not got: `ER_LOCK_WAIT_TIMEOUT`.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// And of the error of [`rename_while_held`] that a hold has ended: `ER_SUBQUERY_NO_1_ROW`.
const TWO_ROWS: u16 = 1242;
/// Characters of a reason that are kept.
const REASON_LENGTH: usize = 1000;

/// What is wanted of a projection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The live generation: the one to fold into.
    pub generation: u32,
    /// Whether it is to run.
    pub wish: Wish,
}

/// Whether a projection is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Run.
    Run,
    /// Be still for the moment that a rebuild or an audit needs.
    Hold,
    /// Stand still until an operator resumes it.
    Pause,
    /// The same; the projection stopped itself, for this reason.
    Stopped(String),
}

impl Default for Wanted {
    fn default() -> Self {
        Self { generation: FIRST_GENERATION, wish: Wish::Run }
    }
}

/// What is wanted of all projections. Those that nothing was said of run.
pub type AllWanted = BTreeMap<String, Wanted>;

type Row = (String, u32, bool, bool, Option<String>);

/// What is wanted of all projections now.
pub async fn read(pool: &MySqlPool) -> sqlx::Result<AllWanted> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT name, CAST(generation AS UNSIGNED), paused,
                held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000, stopped FROM projections",
    )
    .fetch_all(pool)
    .await?;
    let wanted = |(name, generation, paused, held, stopped): Row| {
        let wish = match (paused, stopped, held) {
            (true, ..) => Wish::Pause,
            (false, Some(why), _) => Wish::Stopped(why),
            (false, None, true) => Wish::Hold,
            (false, None, false) => Wish::Run,
        };
        (name, Wanted { generation, wish })
    };
    Ok(rows.into_iter().map(wanted).collect())
}

/// Follows what is wanted until shutdown is given. Returns once it is known for the first time; `None` if shutdown came
/// before.
pub async fn follow(pool: MySqlPool, shutdown: Shutdown) -> Option<watch::Receiver<AllWanted>> {
    let first = loop {
        match ask(&pool).await {
            Ok(first) => break first,
            Err(error) => warn!(error, "waiting for what is wanted of the projections"),
        }
        if timeout(START_RETRY, shutdown.wait()).await.is_ok() {
            return None;
        }
    };
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        let mut is_away = false;
        while !sender.is_closed() && !shutdown.is_given() {
            sleep(ASK_EVERY).await;
            match ask(&pool).await {
                Ok(wanted) => {
                    is_away = false;
                    sender.send_if_modified(|known| {
                        let changed = *known != wanted;
                        *known = wanted;
                        changed
                    });
                }
                Err(error) if !is_away => {
                    is_away = true;
                    warn!(error, "what is wanted of the projections can't be read; going on as before");
                }
                Err(_) => {}
            }
        }
    });
    Some(receiver)
}

async fn ask(pool: &MySqlPool) -> Result<AllWanted, String> {
    match timeout(ASK_TIMEOUT, read(pool)).await {
        Ok(Ok(wanted)) => Ok(wanted),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("MySQL does not answer".to_owned()),
    }
}

/// Has a projection stand still, until it is resumed, whatever is restarted meanwhile.
pub async fn pause(pool: &MySqlPool, projection: &Projection) -> sqlx::Result<()> {
    let upsert =
        "INSERT INTO projections (name, paused) VALUES (?, TRUE) ON DUPLICATE KEY UPDATE paused = TRUE";
    sqlx::query(upsert).bind(projection.name()).execute(pool).await?;
    Ok(())
}

/// Has a projection run that was paused, or that stopped itself.
pub async fn resume(pool: &MySqlPool, projection: &Projection) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET paused = FALSE, stopped = NULL WHERE name = ?")
        .bind(projection.name())
        .execute(pool)
        .await?;
    Ok(())
}

/// Stops a projection that can't go on without an operator, until it is resumed.
pub async fn stop(pool: &MySqlPool, projection: &Projection, why: &str) -> sqlx::Result<()> {
    let why: String = why.chars().take(REASON_LENGTH).collect();
    sqlx::query(
        "INSERT INTO projections (name, stopped) VALUES (?, ?) ON DUPLICATE KEY UPDATE stopped = VALUES(stopped)",
    )
    .bind(projection.name())
    .bind(&why)
    .execute(pool)
    .await?;
    info!(projection = projection.name(), why, "stopped until it is resumed");
    Ok(())
}

/// Asks for stillness for a time. Returns until when, in ms since 1970 by MySQL's clock: by that its hold is known from
/// another's.
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

/// Prolongs a hold to a time from now, and returns until when; nothing if it has ended, or is another's by now.
pub async fn prolong_hold(
    pool: &MySqlPool,
    projection: &Projection,
    until_ms: i64,
    time: Duration,
) -> sqlx::Result<Option<i64>> {
    let prolonged_ms = time_from_now(pool, time).await?;
    let prolonged = sqlx::query(
        "UPDATE projections SET held_until_ms = ?
         WHERE name = ? AND held_until_ms = ? AND held_until_ms > UNIX_TIMESTAMP(NOW(3)) * 1000",
    )
    .bind(prolonged_ms)
    .bind(projection.name())
    .bind(until_ms)
    .execute(pool)
    .await?;
    Ok((prolonged.rows_affected() == 1).then_some(prolonged_ms))
}

/// Ends a hold, and no other that someone may have asked for since.
pub async fn end_hold(pool: &MySqlPool, projection: &Projection, until_ms: i64) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET held_until_ms = 0 WHERE name = ? AND held_until_ms = ?")
        .bind(projection.name())
        .bind(until_ms)
        .execute(pool)
        .await?;
    Ok(())
}

/// A time from now, in ms since 1970 by MySQL's clock.
async fn time_from_now(pool: &MySqlPool, time: Duration) -> sqlx::Result<i64> {
    let now_ms: i64 =
        sqlx::query_scalar("SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)").fetch_one(pool).await?;
    Ok(now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
}

/// Makes the next generation after one the live one, and ends the hold that it was made for; false if that has ended
/// already, or another generation is live.
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

/// Renames tables within a hold, which it prolongs from one time to another; false if that has ended before, or is another's by now, or the
/// tables were in use.
///
/// Renaming knows no condition. So all goes to the server at once, which ends at the first statement that fails, and one of
/// them fails without a hold: a process that is slow, or stopped for a while, can't rename after its hold.
pub async fn rename_while_held(
    pool: &MySqlPool,
    projection: &Projection,
    (until_ms, prolonged_ms): (i64, i64),
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
         UPDATE projections SET held_until_ms = {prolonged_ms} WHERE {held};
         RENAME TABLE {moves}"
    );
    // The wait is this connection's own, which nobody gets after it.
    let mut connection: MySqlConnection = pool.acquire().await?.detach();
    match sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut connection).await {
        Ok(_) => Ok(true),
        Err(error) if matches!(number_of(&error), Some(LOCK_WAIT_TIMEOUT | TWO_ROWS)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn number_of(error: &sqlx::Error) -> Option<u16> {
    let refused = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(refused.number())
}

/// Counts a generation that took over by itself, and ends the hold that it was made for.
pub async fn count_generation(pool: &MySqlPool, projection: &Projection, live: u32) -> sqlx::Result<()> {
    sqlx::query("UPDATE projections SET generation = ?, held_until_ms = 0 WHERE name = ?")
        .bind(live + 1)
        .bind(projection.name())
        .execute(pool)
        .await?;
    Ok(())
}
