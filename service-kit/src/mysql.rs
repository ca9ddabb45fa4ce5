//! The MySQL pool, and its tables.

use std::{io, time::Duration};

use sqlx::{
    MySqlConnection, MySqlPool,
    migrate::{MigrateError, Migrator},
    mysql::MySqlPoolOptions,
};
use tokio::time::timeout;

/// A command that finds no free or new connection for so long fails: a request must be answered within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long undoing what a call left open may take: a server that does not answer, or waits for another's lock, must not
/// keep the connection from the pool.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections that nobody used for so long are closed: before the server does that, see [`SESSION`].
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What every session is told.
///
/// - READ COMMITTED: nothing here reads a row twice, and the gap locks of the stricter default let writers of different
///   rows deadlock.
/// - Strict, whatever the server's default is: what does not fit must be refused, not cut.
/// - Who waits for a row's lock has a connection that others lack. It fails after 5 s and may try again, not after 50 s.
/// - A session that says nothing for a minute is ended by the server, and what it has locked is free: its process may
///   be stopped, or its machine gone without a word. The server's default is eight hours.
const SESSION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), innodb_lock_wait_timeout = 5, wait_timeout = 60";

/// A pool that connects on first use, so that a process can start before its store.
pub fn open(url: &str, max_connections: u32) -> Result<MySqlPool, sqlx::Error> {
    pool(max_connections).connect_lazy(url)
}

/// The options of a pool: its limits and timeouts, and the settings of its sessions.
pub fn pool(max_connections: u32) -> MySqlPoolOptions {
    MySqlPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .acquire_slow_threshold(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(SESSION).execute(connection).await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // A call that was cut off while it began a transaction leaves it open, and the next statement on the
                // connection would be a part of it.
                let undone = timeout(ROLLBACK_TIMEOUT, sqlx::raw_sql("ROLLBACK").execute(connection)).await;
                undone.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
                Ok(true)
            })
        })
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
