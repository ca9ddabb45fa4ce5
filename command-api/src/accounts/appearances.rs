//! The appearances of accounts that an earlier version created.
//!
//! SQL cannot normalize a name, so command-api does it after the migration, and every few seconds, because an instance of
//! the earlier version may still register users. Any number of instances may do it at the same time, and a crash leaves
//! nothing to repair: an account without an appearance is found by an index.
//!
//! If accounts of the earlier version look the same, the oldest has the appearance. The others keep their exact names.

use std::{fmt::Write, time::Duration};

use sqlx::{FromRow, MySqlPool};
use tokio::time::sleep;
use tracing::{info, warn};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::{mysql::with_timeout, username::appearance};

/// Interval between searches for accounts of an earlier version.
const INTERVAL: Duration = Duration::from_secs(10);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Accounts of one statement: some 10 ms of row locks.
const BATCH_SIZE: u32 = 500;
/// Accounts without an appearance that a registration compares itself: more than an instance of an earlier version creates
/// in [`INTERVAL`].
const MAX_COMPARED: u32 = 1000;
/// Name in the readiness report.
const PART: &str = "names";

/// Whether an account without an appearance looks the same as a new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// No account does.
    Free,
    /// An account does.
    Taken,
    /// Too many accounts have no appearance yet.
    Unknown,
}

/// An account whose name another account has, too.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Colliding {
    /// What the names have in common.
    pub appearance: String,
    /// The user's id.
    pub user_id: i64,
    /// The name as typed.
    pub username: String,
    /// Whether a login with another spelling than the names themselves is one to this account.
    pub has_appearance: bool,
}

/// Normalizes the names of accounts of an earlier version in the background.
pub struct NameNormalizer {
    pool: MySqlPool,
    readiness: Readiness,
}

impl NameNormalizer {
    /// A normalizer of the accounts in a database. Not ready until it has normalized all names once.
    pub fn new(pool: MySqlPool, readiness: Readiness) -> Self {
        readiness.not_ready(PART, "names of existing accounts are not normalized yet");
        Self { pool, readiness }
    }

    /// Runs until shutdown.
    pub async fn run(self, shutdown: Shutdown) {
        // A batch is one statement, so cancellation needs no cleanup.
        shutdown.token().run_until_cancelled(self.normalize_forever()).await;
    }

    async fn normalize_forever(&self) {
        loop {
            match normalize_all(&self.pool).await {
                Ok(_) => {
                    self.readiness.ready(PART);
                    sleep(INTERVAL).await;
                }
                Err(error) => {
                    warn!(%error, "failed to normalize user names; retrying");
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }
}

/// Normalizes the names of all accounts without an appearance; returns their number.
pub async fn normalize_all(pool: &MySqlPool) -> Result<u64, sqlx::Error> {
    let mut count = 0;
    loop {
        // In the order of the index, which has the accounts of one `collision` by id: the oldest first. With the id in the
        // ORDER BY, MariaDB sorts all. Statistics that are older than the normalization must not choose another index.
        let select = sqlx::query_as(
            "SELECT user_id, username FROM accounts FORCE INDEX (appearance) WHERE appearance IS NULL \
             ORDER BY collision LIMIT ?",
        );
        let batch: Vec<(i64, String)> = with_timeout(select.bind(BATCH_SIZE).fetch_all(pool)).await?;
        if batch.is_empty() {
            break;
        }
        count += write(pool, &batch).await?;
    }
    if count > 0 {
        info!(accounts = count, "user names normalized");
    }
    Ok(count)
}

/// Writes the appearances of accounts that have none, first of those whose appearance is free. Returns their number.
async fn write(pool: &MySqlPool, batch: &[(i64, String)]) -> Result<u64, sqlx::Error> {
    let mut written = 0;
    let rows =
        batch.iter().map(|(user_id, username)| format!("[{user_id},\"{}\"]", hex(&appearance(username))));
    let rows = format!("[{}]", rows.collect::<Vec<_>>().join(","));
    // IGNORE skips a row that violates the unique key.
    for update in [
        "UPDATE IGNORE JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$[0]', hex VARCHAR(4224) PATH '$[1]')) AS batch \
         STRAIGHT_JOIN accounts ON accounts.user_id = batch.id \
         SET accounts.appearance = UNHEX(batch.hex) WHERE accounts.appearance IS NULL",
        "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (id BIGINT PATH '$[0]', hex VARCHAR(4224) PATH '$[1]')) AS batch \
         STRAIGHT_JOIN accounts ON accounts.user_id = batch.id \
         SET accounts.appearance = UNHEX(batch.hex), accounts.collision = accounts.user_id \
         WHERE accounts.appearance IS NULL",
    ] {
        written += with_timeout(sqlx::query(update).bind(&rows).execute(pool)).await?.rows_affected();
    }
    Ok(written)
}

fn hex(text: &str) -> String {
    text.bytes().fold(String::new(), |mut hex, byte| {
        // Writing to a text does not fail.
        _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Compares a new name with the accounts that have no appearance. Call it before the account is created: the unique key
/// does not know these accounts.
pub async fn compare(pool: &MySqlPool, username: &str) -> Result<Comparison, sqlx::Error> {
    let select = sqlx::query_scalar(
        "SELECT username FROM accounts FORCE INDEX (appearance) WHERE appearance IS NULL LIMIT ?",
    )
    .bind(MAX_COMPARED + 1);
    let existing: Vec<String> = with_timeout(select.fetch_all(pool)).await?;
    if existing.len() > MAX_COMPARED as usize {
        return Ok(Comparison::Unknown);
    }
    let wanted = appearance(username);
    let is_taken = existing.iter().any(|name| appearance(name) == wanted);
    Ok(if is_taken { Comparison::Taken } else { Comparison::Free })
}

/// Lists the accounts that share an appearance. Complete once all names are normalized.
pub async fn colliding(pool: &MySqlPool) -> Result<Vec<Colliding>, sqlx::Error> {
    sqlx::query_as(
        "SELECT CONVERT(appearance USING utf8mb4) AS appearance, user_id, username, collision = 0 AS has_appearance
            FROM accounts WHERE appearance IN (SELECT appearance FROM accounts WHERE collision <> 0)
            ORDER BY accounts.appearance, collision",
    )
    .fetch_all(pool)
    .await
}
