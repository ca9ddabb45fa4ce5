//! The MySQL pool.

use std::time::Duration;

use sqlx::{MySqlPool, mysql::MySqlPoolOptions};

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
        .connect_lazy(url)
}
