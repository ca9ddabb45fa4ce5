//! The command side's own tables: bounded in time, and what their errors mean to a caller.

use std::{io, time::Duration};

use sqlx::mysql::MySqlDatabaseError;
use vidlog_contract::ApiError;
use vidlog_read_models::ReadError;

/// A statement or a transaction that takes longer holds its connection from others, and its caller from an answer.
const TIME_LIMIT: Duration = Duration::from_secs(3);

/// Waits for a row that another transaction holds, in vain.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// Was chosen to end a deadlock.
const DEADLOCK: u16 = 1213;

/// Bounds what is done to the tables.
pub(crate) async fn bounded<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(TIME_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// What a caller is told.
pub(crate) fn api_error(error: sqlx::Error) -> ApiError {
    match number(&error) {
        Some(LOCK_WAIT_TIMEOUT | DEADLOCK) => {
            ApiError::unavailable("nothing was written: others were in the way; try again in a moment")
        }
        _ => ReadError::from(error).into(),
    }
}

fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}
