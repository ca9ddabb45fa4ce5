//! Time, timeouts and error mapping for statements on the command side's own tables.

use std::{io, time::Duration};

use sqlx::mysql::MySqlDatabaseError;
use vidlog_contract::ApiError;
use vidlog_read_models::ReadError;

/// MySQL's time in a statement, milliseconds since 1970: the start of the statement. The one clock of all processes that
/// share a table.
macro_rules! mysql_now_ms {
    () => {
        "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) DIV 1000"
    };
}
pub(crate) use mysql_now_ms;

/// Maximum time of a statement or transaction: it holds a pooled connection, and the command has 5 s to respond.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// Another transaction held the row lock for too long.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// The server aborted this transaction to resolve a deadlock.
const DEADLOCK: u16 = 1213;

/// Runs a statement or transaction with a timeout.
pub(crate) async fn with_timeout<T>(
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    tokio::time::timeout(STATEMENT_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(io::ErrorKind::TimedOut.into())))
}

/// Maps a MySQL error to an API error.
pub(crate) fn api_error(error: sqlx::Error) -> ApiError {
    match error_number(&error) {
        Some(LOCK_WAIT_TIMEOUT | DEADLOCK) => {
            ApiError::unavailable("nothing was written: a concurrent write interfered; try again in a moment")
        }
        _ => ReadError::from(error).into(),
    }
}

fn error_number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}
