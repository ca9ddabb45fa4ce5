//! The MySQL pool, and its tables.

use std::time::Duration;

use sqlx::{
    MySqlConnection, MySqlPool,
    migrate::{MigrateError, Migrator},
    mysql::MySqlPoolOptions,
};

/// A command that finds no free or new connection for so long fails: a request must be answered within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);

/// A pool that connects when it is first used, so that a process can start before its store.
///
/// Its transactions are READ COMMITTED: nothing here reads a row twice, and the gap locks of the stricter default let
/// writers of different rows deadlock.
pub fn open(url: &str, max_connections: u32) -> Result<MySqlPool, sqlx::Error> {
    MySqlPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .acquire_slow_threshold(ACQUIRE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
                    .execute(connection)
                    .await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // A call that was cut off while it began a transaction leaves it open, and the next statement on the
                // connection would be a part of it.
                sqlx::raw_sql("ROLLBACK").execute(connection).await?;
                Ok(true)
            })
        })
        .connect_lazy(url)
}

/// How long another process may take to bring the tables up to date.
const MIGRATE_TIMEOUT_S: i64 = 30;

/// Brings the tables up to date; several processes may do so at once. Migrations have to be repeatable: the server
/// can't undo half of one, so that one which a crash cut off is run again.
pub async fn migrate(pool: &MySqlPool, migrator: &Migrator) -> Result<(), MigrateError> {
    // The migrator's own lock waits without limit by a negative timeout, with which MariaDB does not wait at all.
    let mut connection = pool.acquire().await?;
    let locked: Option<i64> = sqlx::query_scalar("SELECT GET_LOCK(CONCAT('migrate-', SHA1(DATABASE())), ?)")
        .bind(MIGRATE_TIMEOUT_S)
        .fetch_one(&mut *connection)
        .await?;
    if locked != Some(1) {
        return Err(sqlx::Error::PoolTimedOut.into());
    }
    let migrated = run(&mut connection, migrator).await;
    sqlx::query("SELECT RELEASE_LOCK(CONCAT('migrate-', SHA1(DATABASE())))")
        .execute(&mut *connection)
        .await?;
    migrated
}

async fn run(connection: &mut MySqlConnection, migrator: &Migrator) -> Result<(), MigrateError> {
    match migrator.run_direct(None, &mut *connection, false).await {
        Err(MigrateError::Dirty(version)) => {
            sqlx::query("DELETE FROM _sqlx_migrations WHERE version = ? AND NOT success")
                .bind(version)
                .execute(&mut *connection)
                .await?;
            migrator.run_direct(None, connection, false).await
        }
        migrated => migrated,
    }
}
