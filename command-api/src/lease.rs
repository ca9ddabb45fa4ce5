//! Leases of node numbers, in the MySQL table `node_leases`.
//!
//! A row keeps `expires_ms` also when nobody holds it: it is the point from which the next holder makes ids. So a
//! row is never deleted, and its `expires_ms` only goes back when its holder says up to where it really came.

use std::time::Duration;

use sqlx::MySqlPool;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{
    ids::{IdGenerator, Lease, NODES},
    mysql::bounded,
};

/// How long a lease lasts without renewal: how long ids are still there when MySQL is away, and how long the number
/// of a dead instance is not used.
const LEASE_MS: i64 = 30_000;
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Between two attempts at something that failed.
const RETRY: Duration = Duration::from_secs(1);
/// The part of the readiness that this is.
const PART: &str = "ids";

/// Keeps a generator in lease.
pub struct LeaseKeeper {
    pool: MySqlPool,
    ids: IdGenerator,
    readiness: Readiness,
}

/// A lease and the name of its holder, which no other instance has.
#[derive(Clone, Debug)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    holder: String,
}

impl LeaseKeeper {
    /// A keeper of a generator's lease.
    pub fn new(pool: MySqlPool, ids: IdGenerator, readiness: Readiness) -> Self {
        readiness.not_ready(PART, "no node number is leased yet");
        Self { pool, ids, readiness }
    }

    /// Claims a number, renews its lease, and claims another if it is lost; until shutdown is given. Then it gives
    /// the number back.
    pub async fn run(self, shutdown: Shutdown) {
        let token = shutdown.token();
        while let Some(held) = token.run_until_cancelled(self.claim_in_the_end()).await {
            self.ids.begin(held.lease);
            self.readiness.ready(PART);
            info!(node = held.lease.node, "leased a node number");
            if token.run_until_cancelled(self.renew_until_lost(&held)).await.is_none() {
                self.give_back(&held).await;
                return;
            }
            self.ids.end();
            self.readiness.not_ready(PART, "the lease of the node number was lost");
            warn!(node = held.lease.node, "lost the lease of the node number");
        }
    }

    async fn claim_in_the_end(&self) -> Held {
        loop {
            match bounded(claim(&self.pool, self.ids.now_ms())).await {
                Ok(Some(held)) => return held,
                Ok(None) => self.readiness.not_ready(PART, "all node numbers are leased to other instances"),
                Err(error) => {
                    warn!(%error, "failed to lease a node number; trying again");
                    self.readiness.not_ready(PART, "MySQL is away");
                }
            }
            sleep(RETRY).await;
        }
    }

    async fn renew_until_lost(&self, held: &Held) {
        let mut pause = RENEW_EVERY;
        loop {
            sleep(pause).await;
            pause = RENEW_EVERY;
            match bounded(renew(&self.pool, held, self.ids.now_ms() + LEASE_MS)).await {
                Ok(Some(expires_ms)) => {
                    self.ids.extend(expires_ms);
                    self.readiness.ready(PART);
                }
                Ok(None) => return,
                Err(error) => {
                    pause = RETRY;
                    warn!(%error, "failed to renew the lease of the node number; trying again");
                    if !self.ids.is_ready() {
                        self.readiness.not_ready(PART, "the lease can't be renewed: MySQL is away");
                    }
                }
            }
        }
    }

    async fn give_back(&self, held: &Held) {
        let Some(next_ms) = self.ids.end() else {
            return;
        };
        if let Err(error) = bounded(release(&self.pool, held, next_ms)).await {
            info!(node = held.lease.node, %error, "the node number was not given back; it expires by itself");
        }
    }
}

/// Claims the lowest number that nobody holds, or whose holder let it expire; `None` if there is none.
pub async fn claim(pool: &MySqlPool, now_ms: i64) -> Result<Option<Held>, sqlx::Error> {
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
    let held = Held {
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

/// Makes a lease last until `expires_ms` at least; `None` if another holds the number by now.
pub async fn renew(pool: &MySqlPool, held: &Held, expires_ms: i64) -> Result<Option<i64>, sqlx::Error> {
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

/// Gives a number back, with the first millisecond that its next holder may use.
pub async fn release(pool: &MySqlPool, held: &Held, next_ms: i64) -> Result<(), sqlx::Error> {
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

/// A row for every number, so that claiming is a matter of row locks alone.
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
