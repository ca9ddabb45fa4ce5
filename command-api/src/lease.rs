//! Leases of node numbers, in the MySQL table `node_leases`.
//!
//! A row keeps its `expires_ms` after the lease ends: the next holder's ids start there. So rows are never deleted, and
//! `expires_ms` decreases only when the holder releases the lease with the millisecond that it really reached.

use std::time::Duration;

use sqlx::MySqlPool;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{
    ids::{IdGenerator, Lease, NODES},
    mysql::with_timeout,
};

/// Duration of a lease without renewal: how long ids remain available while MySQL is unavailable, and how long the
/// number of a crashed instance stays unused.
const LEASE_MS: i64 = 30_000;
const RENEW_INTERVAL: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Name in the readiness report.
const PART: &str = "ids";

/// Claims and renews the lease of an id generator.
pub struct LeaseKeeper {
    pool: MySqlPool,
    ids: IdGenerator,
    readiness: Readiness,
}

/// A lease with the unique name of its holder.
#[derive(Clone, Debug)]
pub struct HeldLease {
    /// The lease.
    pub lease: Lease,
    holder: String,
}

impl LeaseKeeper {
    /// A keeper for a generator's lease.
    pub fn new(pool: MySqlPool, ids: IdGenerator, readiness: Readiness) -> Self {
        readiness.not_ready(PART, "no node number is leased yet");
        Self { pool, ids, readiness }
    }

    /// Claims a number and renews its lease until shutdown; claims another if the lease is lost. On shutdown it
    /// releases the lease.
    pub async fn run(self, shutdown: Shutdown) {
        let token = shutdown.token();
        while let Some(held) = token.run_until_cancelled(self.claim_with_retries()).await {
            self.ids.start_lease(held.lease);
            self.readiness.ready(PART);
            info!(node = held.lease.node, "node number leased");
            if token.run_until_cancelled(self.renew_until_lost(&held)).await.is_none() {
                self.release(&held).await;
                return;
            }
            self.ids.end_lease();
            self.readiness.not_ready(PART, "node number lease lost");
            warn!(node = held.lease.node, "node number lease lost");
        }
    }

    async fn claim_with_retries(&self) -> HeldLease {
        loop {
            match with_timeout(claim(&self.pool, self.ids.now_ms())).await {
                Ok(Some(held)) => return held,
                Ok(None) => self.readiness.not_ready(PART, "all node numbers are leased to other instances"),
                Err(error) => {
                    warn!(%error, "failed to lease a node number; retrying");
                    self.readiness.not_ready(PART, "MySQL is unavailable");
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn renew_until_lost(&self, held: &HeldLease) {
        let mut delay = RENEW_INTERVAL;
        loop {
            sleep(delay).await;
            delay = RENEW_INTERVAL;
            match with_timeout(renew(&self.pool, held, self.ids.now_ms() + LEASE_MS)).await {
                Ok(Some(expires_ms)) => {
                    self.ids.extend_lease(expires_ms);
                    self.readiness.ready(PART);
                }
                Ok(None) => return,
                Err(error) => {
                    delay = RETRY_INTERVAL;
                    warn!(%error, "failed to renew node number lease; retrying");
                    if !self.ids.is_ready() {
                        self.readiness.not_ready(PART, "node number lease expired: MySQL is unavailable");
                    }
                }
            }
        }
    }

    async fn release(&self, held: &HeldLease) {
        let Some(next_ms) = self.ids.end_lease() else {
            return;
        };
        if let Err(error) = with_timeout(release(&self.pool, held, next_ms)).await {
            info!(node = held.lease.node, %error, "failed to release node number lease; it expires on its own");
        }
    }
}

/// Claims the lowest number whose lease was released or has expired; `None` if all are leased.
pub async fn claim(pool: &MySqlPool, now_ms: i64) -> Result<Option<HeldLease>, sqlx::Error> {
    ensure_rows(pool).await?;
    let mut transaction = pool.begin().await?;
    let free: Option<(i32, i64)> = sqlx::query_as(
        "SELECT node, expires_ms FROM node_leases WHERE expires_ms <= ? ORDER BY node LIMIT 1 FOR UPDATE",
    )
    .bind(now_ms)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some((node, from_ms)) = free else {
        return Ok(None);
    };
    let held = HeldLease {
        lease: Lease { node, from_ms, expires_ms: now_ms + LEASE_MS },
        holder: Uuid::new_v4().to_string(),
    };
    sqlx::query("UPDATE node_leases SET holder = ?, expires_ms = ? WHERE node = ?")
        .bind(&held.holder)
        .bind(held.lease.expires_ms)
        .bind(node)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Some(held))
}

/// Renews a lease until at least `expires_ms`; `None` if another instance holds the number.
pub async fn renew(pool: &MySqlPool, held: &HeldLease, expires_ms: i64) -> Result<Option<i64>, sqlx::Error> {
    let renewed = sqlx::query(
        "UPDATE node_leases SET expires_ms = GREATEST(expires_ms, ?) WHERE node = ? AND holder = ?",
    )
    .bind(expires_ms)
    .bind(held.lease.node)
    .bind(&held.holder)
    .execute(pool)
    .await?;
    Ok((renewed.rows_affected() > 0).then_some(expires_ms))
}

/// Releases a lease, with the first millisecond that the next holder may use.
pub async fn release(pool: &MySqlPool, held: &HeldLease, next_ms: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE node_leases SET expires_ms = LEAST(expires_ms, ?), holder = '' WHERE node = ? AND holder = ?",
    )
    .bind(next_ms)
    .bind(held.lease.node)
    .bind(&held.holder)
    .execute(pool)
    .await?;
    Ok(())
}

/// Inserts a row per number, so that claims need only row locks.
async fn ensure_rows(pool: &MySqlPool) -> Result<(), sqlx::Error> {
    let rows: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM node_leases").fetch_one(pool).await?;
    for node in i32::try_from(rows).unwrap_or(NODES)..NODES {
        sqlx::query("INSERT IGNORE INTO node_leases (node, holder, expires_ms) VALUES (?, '', 0)")
            .bind(node)
            .execute(pool)
            .await?;
    }
    Ok(())
}
