//! The exclusive lock of a view for a rebuild, a retry of dead letters, or the hold of an audit. The projection runs
//! meanwhile.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use sqlx::{Connection, MySqlConnection, MySqlPool};
use thiserror::Error;
use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tracing::warn;

use crate::view::Projection;

/// Interval between two pings of the server, which would close an idle session and release its lock after a minute
/// ([`vidlog_service_kit::mysql::open`]).
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout for the lock, in seconds: longer than the hold of an audit.
const WAIT_S: u32 = 5;

/// Another process, or another task of this one, owns the lock.
#[derive(Debug, Error)]
#[error("{0} is being rebuilt, or its dead letters retried, by another process")]
pub struct Taken(&'static str);

/// The lock of one view, released on drop.
pub struct ViewLock {
    projection: Projection,
    /// The lock belongs to the session, and ends with it.
    connection: Arc<Mutex<MySqlConnection>>,
    pinging: JoinHandle<()>,
}

impl ViewLock {
    /// Takes the lock. Waits for one that an audit owns for a hold; fails with [`Taken`] after that.
    pub async fn take(pool: &MySqlPool, projection: Projection) -> anyhow::Result<Self> {
        let taken = Self::take_within(pool, projection, WAIT_S).await?;
        taken.ok_or_else(|| Taken(projection.name()).into())
    }

    /// Takes the lock if it is free.
    pub async fn try_take(pool: &MySqlPool, projection: Projection) -> anyhow::Result<Option<Self>> {
        Self::take_within(pool, projection, 0).await
    }

    async fn take_within(
        pool: &MySqlPool,
        projection: Projection,
        seconds: u32,
    ) -> anyhow::Result<Option<Self>> {
        // Detached from the pool, so that dropping it closes the session: in the pool it would keep the lock.
        let mut connection = pool.acquire().await.context("failed to reach MySQL")?.detach();
        let locked: Option<i64> =
            sqlx::query_scalar("SELECT GET_LOCK(SHA1(CONCAT('view ', DATABASE(), ' ', ?)), ?)")
                .bind(projection.name())
                .bind(seconds)
                .fetch_one(&mut connection)
                .await?;
        if locked != Some(1) {
            return Ok(None);
        }
        let connection = Arc::new(Mutex::new(connection));
        let pinging = tokio::spawn(ping(connection.clone(), projection.name()));
        Ok(Some(Self { projection, connection, pinging }))
    }

    /// Whether the lock is taken.
    pub async fn is_taken(pool: &MySqlPool, projection: Projection) -> sqlx::Result<bool> {
        let holder: Option<i64> = sqlx::query_scalar(
            "SELECT CAST(IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' ', ?))) AS SIGNED)",
        )
        .bind(projection.name())
        .fetch_one(pool)
        .await?;
        Ok(holder.is_some())
    }

    /// Fails if the lock was lost: the server releases it when the connection is lost.
    pub async fn ensure_held(&self) -> anyhow::Result<()> {
        let mut connection = self.connection.lock().await;
        let ours: Option<bool> = sqlx::query_scalar(
            "SELECT IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' ', ?))) = CONNECTION_ID()",
        )
        .bind(self.projection.name())
        .fetch_one(&mut *connection)
        .await
        .context("the MySQL connection that held the lock was lost; run this again")?;
        ensure!(ours == Some(true), "the lock was lost, so another process may have it; run this again");
        Ok(())
    }
}

impl Drop for ViewLock {
    fn drop(&mut self) {
        self.pinging.abort();
    }
}

/// Pings the server until the connection is lost. Owners of the lock check it with [`ViewLock::ensure_held`].
async fn ping(connection: Arc<Mutex<MySqlConnection>>, projection: &'static str) {
    loop {
        sleep(PING_INTERVAL).await;
        if let Err(error) = connection.lock().await.ping().await {
            warn!(projection, %error, "connection of the view lock lost");
            return;
        }
    }
}
