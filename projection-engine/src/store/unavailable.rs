//! Why a store is unavailable: in full for the log, and without internals for `/readyz` and status.

use std::fmt;

use redis::{ErrorKind, RedisError};
use sqlx::mysql::MySqlDatabaseError;

/// Why a store is unavailable. Displays the detail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// The reason without addresses, users, and names of databases.
    pub reason: String,
    /// The error message of the store.
    pub detail: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Returns the reason of a MySQL error.
pub(super) fn mysql_reason(error: &sqlx::Error) -> String {
    let database_error =
        error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    let Some(number) = database_error.map(MySqlDatabaseError::number) else {
        return "MySQL is unavailable".to_owned();
    };
    let meaning = match number {
        1044 | 1045 | 1142 | 1143 | 1227 | 1370 => "privilege missing",
        1049 | 1146 => "table or database missing",
        1062 => "duplicate key",
        1054 | 1136 => "table has another layout",
        3 | 1021 | 1030 | 1114 => "table or disk full",
        1205 => "lock wait timeout",
        1213 => "deadlock",
        1290 | 1792 | 1836 => "server is read-only",
        _ => return format!("MySQL error {number}"),
    };
    format!("MySQL error {number}: {meaning}")
}

/// Returns the reason of a Redis error: its code, such as `OOM` or `NOPERM`.
pub(super) fn redis_reason(error: &RedisError) -> String {
    match (error.kind(), error.code()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code)) => format!("Redis error {code}"),
        _ => "Redis is unavailable".to_owned(),
    }
}
