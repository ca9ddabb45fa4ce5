//! Accounts: what must be unique now, and what must never be in the log. Username and password hash live in MySQL.
//!
//! An account and the announcement of its user are written in one transaction, the announcement into the outbox, so
//! that neither is ever there without the other.

use sqlx::{Acquire, FromRow, MySqlPool};
use thiserror::Error;
use vidlog_events::Envelope;
use vidlog_service_kit::failpoint;

use crate::{mysql::bounded, outbox, stored::StoredError};

/// An account as it is looked up.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Account {
    /// The user.
    pub user_id: i64,
    /// The argon2id hash, as a PHC string.
    pub password_hash: String,
}

/// An account to be.
#[derive(Clone, Debug)]
pub struct NewAccount<'a> {
    /// The user.
    pub user_id: i64,
    /// The name, as it was typed.
    pub username: &'a str,
    /// The argon2id hash, as a PHC string.
    pub password_hash: String,
    /// The event that announces the user.
    pub announcement: &'a Envelope,
}

/// Why there is no new account.
#[derive(Debug, Error)]
pub enum CreateError {
    /// Someone has the name, or this user has an account already: look it up.
    #[error("there is such an account")]
    Taken,
    /// The announcement can't be written.
    #[error("the announcement can't be stored")]
    Announcement(#[from] StoredError),
    /// MySQL is away or at fault.
    #[error("failed to write an account")]
    MySql(#[from] sqlx::Error),
}

/// Looks an account up by its name, regardless of case.
pub async fn find(pool: &MySqlPool, username: &str) -> Result<Option<Account>, sqlx::Error> {
    let query = sqlx::query_as("SELECT user_id, password_hash FROM accounts WHERE username_key = ?")
        .bind(key(username));
    bounded(query.fetch_optional(pool)).await
}

/// Writes an account with its announcement, and returns the announcement's id in the outbox.
pub async fn create(pool: &MySqlPool, account: &NewAccount<'_>) -> Result<outbox::Id, CreateError> {
    let announcement = outbox::Entry::new(account.announcement)?;
    let created = bounded(async {
        let mut connection = pool.acquire().await?;
        let mut transaction = connection.begin().await?;
        let id = match insert(account, &mut transaction).await {
            Ok(()) => outbox::insert(&announcement, &mut transaction).await?,
            Err(error) => {
                // Waited for, so that the locks of the failed insert end before the answer.
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
        Some(database) if database.is_unique_violation() => CreateError::Taken,
        _ => CreateError::MySql(error),
    })
}

async fn insert(account: &NewAccount<'_>, connection: &mut sqlx::MySqlConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO accounts (user_id, username, username_key, password_hash, created_ms) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(account.user_id)
    .bind(account.username)
    .bind(key(account.username))
    .bind(&account.password_hash)
    .bind(account.announcement.time_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// What makes a name unique: each of its characters without its case. By way of the upper case, so that letters with
/// several lower forms, such as the final sigma, are one.
fn key(username: &str) -> Vec<u8> {
    let folded: String = username.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    folded.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_whatever_their_case_and_nothing_else() {
        for (one, other) in [("Ada", "aDA"), ("ΟΔΟΣ", "οδος"), ("οδοσ", "οδος"), ("ſam", "SAM")]
        {
            assert_eq!(key(one), key(other), "{one} {other}");
        }
        for (one, other) in [("ada", "ada "), ("ada", "adá"), ("ada", "a da")] {
            assert_ne!(key(one), key(other), "{one} {other}");
        }
    }
}
