//! The MySQL connection pool and its migrations.

use std::{borrow::Cow, io, time::Duration};

use sqlx::{
    AssertSqlSafe, MySqlConnection, MySqlPool,
    migrate::{MigrateError, Migrator},
    mysql::MySqlPoolOptions,
};
use tokio::time::timeout;

/// Limit on the wait for a connection: a request must be answered within 5 s.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Limit on the rollback of a transaction that a call left open: a server that does not respond must not keep the
/// connection from the pool.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(2);
/// Time after which the pool closes an idle connection: before the server does, see [`SESSION`].
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of every session.
///
/// - READ COMMITTED: no transaction reads a row twice, and the gap locks of the stricter default let writers of
///   different rows deadlock.
/// - `STRICT_ALL_TABLES`: the server rejects values that do not fit, whatever its default is, and does not truncate
///   them.
/// - `wait_timeout`: the server closes a session that is idle for a minute and releases its locks, because its process
///   may be suspended or its machine lost. The default is eight hours.
const SESSION: &str = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;
    SET SESSION sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES'), wait_timeout = 60";
/// Limit on the wait for a row lock, during which a statement occupies a connection of the pool. Then it fails, and the
/// caller may retry; the default of the server is 50 s.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// Settings of a session that only reads, in the syntax of either server: MariaDB skips what is marked for MySQL 8, and
/// MySQL what is marked for MariaDB.
///
/// The server aborts a statement after 2 s. A client that gives up only closes its connection, and the statement would
/// go on.
const READ_SESSION: &str = "SET SESSION sql_mode = @@sql_mode
    /*M!100100 , max_statement_time = 2 */ /*!80000 , max_execution_time = 2000 */";

/// Opens a pool that connects on first use, so that a process can start before its store.
pub fn open(url: &str, max_connections: u32) -> Result<MySqlPool, sqlx::Error> {
    pool(max_connections, LOCK_WAIT).connect_lazy(url)
}

/// Opens a pool like [`open`], for queries of requests: the server aborts a slow one.
pub fn open_for_reads(url: &str, max_connections: u32) -> Result<MySqlPool, sqlx::Error> {
    with_session(max_connections, format!("{}; {READ_SESSION}", session(LOCK_WAIT))).connect_lazy(url)
}

/// Returns the options of a pool: limits, timeouts and session settings, with a limit on the wait for a row lock, in whole
/// seconds.
pub fn pool(max_connections: u32, lock_wait: Duration) -> MySqlPoolOptions {
    with_session(max_connections, session(lock_wait))
}

fn session(lock_wait: Duration) -> String {
    format!("{SESSION}; SET SESSION innodb_lock_wait_timeout = {}", lock_wait.as_secs())
}

fn with_session(max_connections: u32, session: String) -> MySqlPoolOptions {
    MySqlPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .acquire_slow_threshold(ACQUIRE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
        .after_connect(move |connection, _| {
            let session = AssertSqlSafe(session.clone());
            Box::pin(async move {
                sqlx::raw_sql(session).execute(connection).await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // A call that was cancelled while it began a transaction leaves it open; the next statement on the
                // connection would join it.
                let rolled_back =
                    timeout(ROLLBACK_TIMEOUT, sqlx::raw_sql("ROLLBACK").execute(connection)).await;
                rolled_back.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
                Ok(true)
            })
        })
}

/// Limit on the wait for another process's migration, seconds.
const MIGRATE_TIMEOUT_S: i64 = 30;

/// Runs the pending migrations. Several processes may call it at once.
///
/// A migration must be repeatable: DDL cannot be rolled back, so one that a crash interrupted runs again. Ignores migrations
/// of later versions, so that a process can start beside or after these.
pub async fn migrate(pool: &MySqlPool, migrator: &'static Migrator) -> Result<(), MigrateError> {
    // The migrator's own lock uses a negative timeout to wait without limit; MariaDB does not wait at all with it.
    let mut connection = pool.acquire().await.map_err(explain)?;
    let locked: Option<i64> = sqlx::query_scalar("SELECT GET_LOCK(CONCAT('migrate-', SHA1(DATABASE())), ?)")
        .bind(MIGRATE_TIMEOUT_S)
        .fetch_one(&mut *connection)
        .await?;
    if locked != Some(1) {
        return Err(sqlx::Error::PoolTimedOut.into());
    }
    let migrator = Migrator {
        migrations: Cow::Borrowed(&migrator.migrations),
        ignore_missing: true,
        ..Migrator::DEFAULT
    };
    let migrated = run(&mut connection, &migrator).await;
    sqlx::query("SELECT RELEASE_LOCK(CONCAT('migrate-', SHA1(DATABASE())))")
        .execute(&mut *connection)
        .await?;
    migrated
}

/// Adds the remedy to the error of an account that sends its password encrypted with RSA if there is no TLS. That needs
/// the `rsa` crate, whose timing leak has no fix (RUSTSEC-2023-0071).
fn explain(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Configuration(cause) if cause.to_string().contains("RSA") => {
            sqlx::Error::Configuration(
                "the MySQL account authenticates with caching_sha2_password or sha256_password, which needs TLS: \
                 enable TLS on the server, and have no ssl-mode=DISABLED in the MySQL URL"
                    .into(),
            )
        }
        error => error,
    }
}

async fn run(connection: &mut MySqlConnection, migrator: &Migrator) -> Result<(), MigrateError> {
    match migrator.run_direct(None, &mut *connection, false).await {
        Err(MigrateError::Dirty(version)) => {
            sqlx::query("DELETE FROM _sqlx_migrations WHERE version = ? AND NOT success")
                .bind(version)
                .execute(&mut *connection)
                .await?;
            migrator.run_direct(None, connection, false).await
        }
        migrated => migrated,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    static EMPTY: Migrator = Migrator::DEFAULT;

    /// The greeting of a MySQL 8 server without TLS.
    fn greeting() -> Vec<u8> {
        let mut packet = vec![10];
        packet.extend(b"8.4.0\0");
        packet.extend([1, 0, 0, 0]);
        packet.extend(b"12345678\0");
        // Capabilities (protocol 4.1, secure connection, authentication plugins) around charset and status.
        packet.extend([0x00, 0x82, 45, 2, 0, 0x08, 0x00, 21]);
        packet.extend([0; 10]);
        packet.extend(b"123456789012\0");
        packet.extend(b"caching_sha2_password\0");
        packet
    }

    async fn send(stream: &mut TcpStream, sequence: u8, payload: &[u8]) {
        let length = u8::try_from(payload.len()).unwrap();
        stream.write_all(&[length, 0, 0, sequence]).await.unwrap();
        stream.write_all(payload).await.unwrap();
    }

    async fn receive(stream: &mut TcpStream) -> Vec<u8> {
        let mut header = [0; 4];
        stream.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; usize::from(header[0]) + 256 * usize::from(header[1])];
        stream.read_exact(&mut payload).await.unwrap();
        payload
    }

    /// A server that does not have the password in its cache, and asks for all of it.
    async fn ask_for_password(listener: TcpListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        send(&mut stream, 0, &greeting()).await;
        receive(&mut stream).await;
        send(&mut stream, 2, &[1, 4]).await;
        assert_eq!(receive(&mut stream).await, [2], "a request for the public key");
        send(&mut stream, 4, b"\x01-----BEGIN PUBLIC KEY-----").await;
    }

    #[tokio::test]
    async fn password_encryption_without_tls_names_the_remedy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool =
            open(&format!("mysql://user:secret@{}/database", listener.local_addr().unwrap()), 1).unwrap();
        let server = tokio::spawn(ask_for_password(listener));
        let error = migrate(&pool, &EMPTY).await.unwrap_err().to_string();
        assert!(error.contains("which needs TLS: enable TLS on the server"), "{error}");
        assert!(!error.contains("secret"));
        server.await.unwrap();
    }
}
