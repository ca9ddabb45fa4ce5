//! The lock that nobody but its holder has on a view: who rebuilds it, retries what waits for it, or holds it still for an
//! audit. Its projection goes on folding.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use sqlx::{Connection, MySqlConnection, MySqlPool};
use thiserror::Error;
use tokio::{sync::Mutex, task::JoinHandle, time::sleep};
use tracing::warn;

use crate::view::Projection;

/// How often the server hears of the holder, whose lock it would free after a minute of silence
/// ([`vidlog_service_kit::mysql::open`]).
const KEEP_EVERY: Duration = Duration::from_secs(5);
/// How long an audit may have the lock for a hold, and some more.
const LONGER_THAN_A_HOLD_S: u32 = 5;

/// Another process has the lock, or this one for another purpose.
#[derive(Debug, Error)]
#[error("{0} is being rebuilt, or its dead letters retried, by another process")]
pub struct Taken(&'static str);

/// The lock of one view, held as long as this lives.
pub struct ViewLock {
    projection: Projection,
    /// The lock goes with the connection, and that with the process.
    connection: Arc<Mutex<MySqlConnection>>,
    keeping: JoinHandle<()>,
}

impl ViewLock {
    /// Takes the lock, or says that another has it. One that an audit has for a hold is waited for.
    pub async fn take(pool: &MySqlPool, projection: Projection) -> anyhow::Result<Self> {
        let taken = Self::take_within(pool, projection, LONGER_THAN_A_HOLD_S).await?;
        taken.ok_or_else(|| Taken(projection.name()).into())
    }

    /// Takes the lock if nobody has it.
    pub async fn try_take(pool: &MySqlPool, projection: Projection) -> anyhow::Result<Option<Self>> {
        Self::take_within(pool, projection, 0).await
    }

    async fn take_within(
        pool: &MySqlPool,
        projection: Projection,
        seconds: u32,
    ) -> anyhow::Result<Option<Self>> {
        // Detached, so that it is closed when this is dropped: in the pool it would keep the lock.
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
        let keeping = tokio::spawn(keep(connection.clone(), projection.name()));
        Ok(Some(Self { projection, connection, keeping }))
    }

    /// Whether someone has the lock.
    pub async fn is_taken(pool: &MySqlPool, projection: Projection) -> sqlx::Result<bool> {
        let holder: Option<i64> = sqlx::query_scalar(
            "SELECT CAST(IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' ', ?))) AS SIGNED)",
        )
        .bind(projection.name())
        .fetch_one(pool)
        .await?;
        Ok(holder.is_some())
    }

    /// Makes sure that it is held still: the server gives it to others if the connection is lost.
    pub async fn ensure_held(&self) -> anyhow::Result<()> {
        let mut connection = self.connection.lock().await;
        let ours: Option<bool> = sqlx::query_scalar(
            "SELECT IS_USED_LOCK(SHA1(CONCAT('view ', DATABASE(), ' ', ?))) = CONNECTION_ID()",
        )
        .bind(self.projection.name())
        .fetch_one(&mut *connection)
        .await
        .context("the connection to MySQL that held the lock was lost; run this again")?;
        ensure!(ours == Some(true), "the lock was lost, so another process may have it; run this again");
        Ok(())
    }
}

impl Drop for ViewLock {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

/// Has the server hear of the holder, until the connection is lost. Whoever relies on the lock asks for it.
async fn keep(connection: Arc<Mutex<MySqlConnection>>, projection: &'static str) {
    loop {
        sleep(KEEP_EVERY).await;
        if let Err(error) = connection.lock().await.ping().await {
            warn!(projection, %error, "the connection to MySQL that held the lock was lost");
            return;
        }
    }
}
