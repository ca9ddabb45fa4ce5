//! Errors of reads.

use std::fmt;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tracing::{debug, error};
use vidlog_contract::ApiError;

/// A store of read models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The views.
    Redis,
    /// The tables.
    MySql,
}

impl Store {
    /// Returns the name for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::MySql => "mysql",
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failed read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store is unreachable, slow, or refused the call: read from the other one, or retry later.
    #[error("{store} unavailable: {reason}")]
    Unavailable {
        /// The store.
        store: Store,
        /// The error.
        reason: String,
    },
    /// The store returned an error or an unexpected reply. A retry does not help.
    #[error("failed to read from {store}: {reason}")]
    Fault {
        /// The store.
        store: Store,
        /// The error.
        reason: String,
    },
}

impl ReadError {
    /// Returns whether the cause is that a store is unavailable.
    pub fn is_unavailable(&self, which: Store) -> bool {
        matches!(self, Self::Unavailable { store, .. } if *store == which)
    }

    pub(crate) fn fault(store: Store, reason: impl fmt::Display) -> Self {
        Self::Fault { store, reason: reason.to_string() }
    }

    pub(crate) fn unavailable(store: Store, reason: impl fmt::Display) -> Self {
        Self::Unavailable { store, reason: reason.to_string() }
    }
}

impl From<RedisError> for ReadError {
    fn from(error: RedisError) -> Self {
        if is_redis_unavailable(&error) {
            Self::unavailable(Store::Redis, error)
        } else {
            Self::fault(Store::Redis, error)
        }
    }
}

impl From<sqlx::Error> for ReadError {
    fn from(error: sqlx::Error) -> Self {
        if is_mysql_unavailable(&error) {
            Self::unavailable(Store::MySql, error)
        } else {
            Self::fault(Store::MySql, error)
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable { store, reason } => {
                // The circuit breaker logs an outage once.
                debug!(%store, reason, "read rejected, store unavailable");
                Self::unavailable("this can't be read right now; try again in a moment")
            }
            ReadError::Fault { store, reason } => {
                error!(%store, reason, "read failed");
                Self::internal()
            }
        }
    }
}

fn is_redis_unavailable(error: &RedisError) -> bool {
    // A script runs for too long, memory is full, or Redis may not write without its replicas or its disk.
    let is_refused = matches!(error.code(), Some("BUSY" | "OOM" | "NOREPLICAS" | "MISCONF"));
    let is_unable = match error.kind() {
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
                | ServerErrorKind::TryAgain
        ),
        _ => false,
    };
    is_refused || is_unable || error.is_io_error()
}

fn is_mysql_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Too many connections, shutdown, lock wait timeout, read-only during a failover, killed query or connection,
        // statement time limit (of MariaDB, of MySQL): errors of the server, not of the SQL.
        sqlx::Error::Database(error) => matches!(
            mysql_number(error.as_ref()),
            Some(1040 | 1053 | 1077 | 1205 | 1290 | 1317 | 1927 | 1969 | 3024)
        ),
        _ => false,
    }
}

fn mysql_number(error: &dyn sqlx::error::DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(sqlx::mysql::MySqlDatabaseError::number)
}

#[cfg(test)]
mod tests {
    use vidlog_contract::Code;

    use super::*;

    #[test]
    fn unreachable_store_is_unavailable() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert!(ReadError::from(RedisError::from(refused)).is_unavailable(Store::Redis));
        let error = ReadError::from(sqlx::Error::PoolTimedOut);
        assert!(error.is_unavailable(Store::MySql) && !error.is_unavailable(Store::Redis));
        assert_eq!(ApiError::from(error).code, Code::Unavailable);
    }

    #[test]
    fn cluster_without_a_slot_is_unavailable() {
        for kind in [ServerErrorKind::ClusterDown, ServerErrorKind::TryAgain, ServerErrorKind::BusyLoading] {
            let error = RedisError::from((ErrorKind::Server(kind), "a slot is not to be had"));
            assert!(ReadError::from(error).is_unavailable(Store::Redis), "{kind:?}");
        }
        let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
        assert!(ReadError::from(RedisError::from(late)).is_unavailable(Store::Redis));
        // A cross-slot command is our fault; a retry returns the same error.
        let crossed = RedisError::from((ErrorKind::Server(ServerErrorKind::CrossSlot), "two slots"));
        assert!(!ReadError::from(crossed).is_unavailable(Store::Redis));
    }

    #[test]
    fn store_errors_are_not_sent_to_clients() {
        let wrong_type = RedisError::from((ErrorKind::UnexpectedReturnType, "secret"));
        let error = ApiError::from(ReadError::from(wrong_type));
        assert_eq!(error, ApiError::internal());
        let error = ApiError::from(ReadError::unavailable(Store::MySql, "secret"));
        assert!(!error.message.contains("secret"));
    }
}
