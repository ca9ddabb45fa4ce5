//! Checks the plan of every SQL statement that a test executes, on tables of 100,000 rows.
//!
//! The server's general log records the statements with their values, so a new statement needs no change here. A statement
//! of the source that the test did not execute fails the test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, Row};

mod source;
mod tables;

pub use self::tables::{AUTHOR, CONVERSATION, FAN, FIRST_VIDEO, NOW, ROWS, fill};

/// The most rows that a statement may read: a page of 1,001 users has some lookups for each, and a full scan reads 100,000.
const MAX_READS: i64 = 10_000;

/// Records the statements of all connections to one database.
///
/// Switches the general log of the server on, which other tests do not notice. One recorder at a time.
pub struct Recorder {
    server: MySqlConnection,
    database: String,
}

/// A statement of the source that is not checked, and the reason.
pub type Exemption = (&'static str, &'static str);

impl Recorder {
    /// Starts to record. Connections that are open already are not recorded.
    pub async fn start(url: &str) -> Self {
        let (_, database) = url.rsplit_once('/').unwrap();
        let mut server = MySqlConnection::connect(url).await.unwrap();
        for statement in [
            "SET GLOBAL general_log = OFF",
            "TRUNCATE mysql.general_log",
            "SET GLOBAL log_output = 'TABLE'",
            "SET GLOBAL general_log = ON",
        ] {
            sqlx::raw_sql(statement).execute(&mut server).await.unwrap();
        }
        Self { server, database: database.to_owned() }
    }

    /// Stops, and checks the plan of every recorded SELECT, UPDATE and DELETE; panics with those that read too much, and
    /// with the statements of some source folders and files that were not executed.
    pub async fn check(mut self, pool: &MySqlPool, sources: &[&str], exemptions: &[Exemption]) {
        sqlx::raw_sql("SET GLOBAL general_log = OFF").execute(&mut self.server).await.unwrap();
        let executed = self.recorded("'Query', 'Execute'").await;
        let mut prepared = self.recorded("'Query', 'Prepare'").await;
        sqlx::raw_sql("TRUNCATE mysql.general_log").execute(&mut self.server).await.unwrap();

        let is_exempt = |sql: &str| exemptions.iter().any(|(exempt, _)| sql.starts_with(exempt));
        let mut failures = Vec::new();
        for sql in executed.iter().filter(|sql| !is_exempt(sql)) {
            if let Err(failure) = check_plan(pool, sql).await {
                failures.push(format!("{failure}:\n    {sql:.300}"));
            }
        }
        prepared.extend(executed);
        let roots: Vec<PathBuf> = sources.iter().map(PathBuf::from).collect();
        for statement in roots.iter().flat_map(|root| statements(root)) {
            if !is_exempt(&statement.sql) && !prepared.iter().any(|sql| statement.matches(sql)) {
                failures
                    .push(format!("not executed, so not checked: {} of {}", statement.sql, statement.file));
            }
        }
        assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    }

    async fn recorded(&mut self, kinds: &str) -> BTreeSet<String> {
        let select = format!(
            "SELECT DISTINCT CONVERT(argument USING utf8mb4) FROM mysql.general_log
             WHERE command_type IN ({kinds}) AND thread_id IN (SELECT thread_id FROM mysql.general_log
                 WHERE command_type = 'Connect' AND CONVERT(argument USING utf8mb4) LIKE '% on {} %')",
            self.database
        );
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(select)).fetch_all(&mut self.server).await.unwrap();
        rows.iter().map(|sql| source::normalize(sql)).filter(|sql| source::is_checked(sql)).collect()
    }
}

fn statements(root: &Path) -> Vec<source::Statement> {
    let mut found = Vec::new();
    let mut paths = vec![root.to_owned()];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(source::statements(&path.display().to_string(), &text));
        }
    }
    found
}

/// Explains a statement, and counts the rows that it reads.
async fn check_plan(pool: &MySqlPool, sql: &str) -> Result<(), String> {
    let mut transaction = pool.begin().await.unwrap();
    let explain = format!("EXPLAIN {sql}");
    let plan = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *transaction).await;
    for row in plan.map_err(|error| format!("EXPLAIN failed: {error}"))? {
        let (table, access, rows): (Option<String>, Option<String>, Option<u64>) = (
            row.try_get("table").unwrap(),
            row.try_get("type").unwrap(),
            row.try_get("rows").unwrap_or(None),
        );
        let (table, access) = (table.unwrap_or_default(), access.unwrap_or_default());
        if matches!(access.as_str(), "ALL" | "index")
            && rows.is_some_and(|rows| rows > MAX_READS.cast_unsigned())
        {
            return Err(format!("full scan ({access}) of {table}"));
        }
    }
    let before = reads(&mut transaction).await;
    let executed = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut *transaction).await;
    executed.map_err(|error| format!("failed: {error}"))?;
    let reads = reads(&mut transaction).await - before;
    transaction.rollback().await.unwrap();
    if reads > MAX_READS { Err(format!("reads {reads} rows")) } else { Ok(()) }
}

/// The number of rows that a session has read from tables and indexes. MariaDB counts index entries that do not match a
/// pushed condition apart.
async fn reads(connection: &mut MySqlConnection) -> i64 {
    let variables = "SHOW SESSION STATUS WHERE Variable_name LIKE 'Handler_read%'
        OR Variable_name = 'Handler_icp_attempts'";
    let status = sqlx::raw_sql(variables).fetch_all(connection).await.unwrap();
    let value = |row: &sqlx::mysql::MySqlRow| -> i64 { row.get::<String, _>(1).parse().unwrap() };
    status.iter().map(value).sum()
}
