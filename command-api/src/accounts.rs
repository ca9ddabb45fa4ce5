//! Accounts: user names and password hashes, in MySQL. Names need a unique index, and hashes must not be in the log.
//!
//! One transaction writes an account and its `UserRegistered` event (into the outbox), so neither exists without the
//! other.
//!
//! Two unique keys decide which names are free: the name without case, as the first version compared it, and the
//! appearance. Accounts of that version may share an appearance: see [`appearances`].

pub mod appearances;

use sqlx::{Acquire, FromRow, MySqlPool};
use thiserror::Error;
use vidlog_events::Envelope;
use vidlog_service_kit::failpoint;

use crate::{
    envelope_json::EnvelopeJsonError,
    idempotency::Fingerprint,
    mysql::with_timeout,
    outbox,
    username::{appearance, username_key},
};

/// An existing account.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Account {
    /// The user's id.
    pub user_id: i64,
    /// The argon2id hash, as a PHC string.
    pub password_hash: String,
    /// Fingerprint of the registration's idempotency key.
    pub idempotency_key: Option<Vec<u8>>,
}

/// An account to create.
#[derive(Clone, Debug)]
pub struct NewAccount<'a> {
    /// The user's id.
    pub user_id: i64,
    /// The name as typed.
    pub username: &'a str,
    /// The argon2id hash, as a PHC string.
    pub password_hash: String,
    /// The user's `UserRegistered` event.
    pub registration: &'a Envelope,
    /// Fingerprint of the registration's idempotency key. Unique.
    pub idempotency_key: Option<Fingerprint>,
}

/// Error of creating an account.
#[derive(Debug, Error)]
pub enum CreateError {
    /// An account with this name, user id or idempotency key exists. Look it up: an earlier attempt may have created it.
    #[error("the account exists")]
    Exists,
    /// The event can't be serialized.
    #[error("failed to serialize the registration")]
    Event(#[from] EnvelopeJsonError),
    /// MySQL failed.
    #[error("failed to write the account")]
    MySql(#[from] sqlx::Error),
}

/// Finds an account by its name: the one whose name differs at most by case, else the one that has the appearance.
///
/// One statement looks both up, so its duration does not reveal which of them exists.
pub async fn find(pool: &MySqlPool, username: &str) -> Result<Option<Account>, sqlx::Error> {
    let query = sqlx::query_as(
        "SELECT found.user_id, found.password_hash, registration.idempotency_key
            FROM (
                SELECT user_id, password_hash, 0 AS preference FROM accounts WHERE username_key = ?
                UNION ALL
                SELECT user_id, password_hash, 1 AS preference FROM accounts WHERE appearance = ? AND collision = 0
            ) AS found
            LEFT JOIN registration_keys registration ON registration.user_id = found.user_id
            ORDER BY found.preference LIMIT 1",
    )
    .bind(username_key(username).into_bytes())
    .bind(appearance(username).into_bytes());
    with_timeout(query.fetch_optional(pool)).await
}

/// Frees an idempotency key for another registration if its account was created until the given time. Returns whether
/// it did.
pub async fn free_key(
    pool: &MySqlPool,
    key: Fingerprint,
    created_until_ms: i64,
) -> Result<bool, sqlx::Error> {
    let delete = sqlx::query("DELETE FROM registration_keys WHERE idempotency_key = ? AND created_ms <= ?")
        .bind(key.as_bytes())
        .bind(created_until_ms);
    Ok(with_timeout(delete.execute(pool)).await?.rows_affected() > 0)
}

/// Writes an account and its event; returns the event's id in the outbox.
pub async fn create(pool: &MySqlPool, account: &NewAccount<'_>) -> Result<outbox::Id, CreateError> {
    let entry = outbox::Entry::new(account.registration)?;
    let created = with_timeout(async {
        let mut connection = pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let id = match insert(account, &mut transaction).await {
            Ok(()) => outbox::insert(&entry, &mut transaction).await?,
            Err(error) => {
                // Awaited, so that the locks of the failed insert are released before the response.
                transaction.rollback().await?;
                return Err(error);
            }
        };
        failpoint::pass("account-commit-before");
        transaction.commit().await?;
        failpoint::pass("account-commit-after");
        Ok(id)
    });
    created.await.map_err(|error| match error.as_database_error() {
        Some(database) if database.is_unique_violation() => CreateError::Exists,
        _ => CreateError::MySql(error),
    })
}

async fn insert(account: &NewAccount<'_>, connection: &mut sqlx::MySqlConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO accounts (user_id, username, username_key, appearance, password_hash, created_ms) \
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(account.user_id)
    .bind(account.username)
    .bind(username_key(account.username).into_bytes())
    .bind(appearance(account.username).into_bytes())
    .bind(&account.password_hash)
    .bind(account.registration.time_ms)
    .execute(&mut *connection)
    .await?;
    if let Some(key) = &account.idempotency_key {
        sqlx::query("INSERT INTO registration_keys (user_id, idempotency_key, created_ms) VALUES (?, ?, ?)")
            .bind(account.user_id)
            .bind(key.as_bytes())
            .bind(account.registration.time_ms)
            .execute(connection)
            .await?;
    }
    Ok(())
}
