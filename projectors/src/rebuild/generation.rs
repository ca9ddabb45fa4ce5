//! Where the generations of a view are kept, and how one takes over.
//!
//! In Redis a generation is a part of each key's name, and the live one is a number that readers look up. In MySQL the
//! next generation is built in a database of its own, beside the live one on the same server, and one `RENAME TABLE` puts
//! its tables, with their checkpoints, in the place of the live ones.

use anyhow::{Context, ensure};
use redis::cmd;
use sqlx::{AssertSqlSafe, MySqlConnection, error::DatabaseError, mysql::MySqlDatabaseError};
use tokio::{sync::Mutex, time::sleep};
use vidlog_schemas::{keys::ViewKey, projections::View};
use vidlog_service_kit::{config::Stores, mysql};

use super::GRACE;
use crate::{control, mysql_url::MySqlUrl, projection::Projection, sink::Target};

/// Connections for folding into the next generation: partitions take turns on them.
const CONNECTIONS: u32 = 8;
/// How long the switch may wait for the tables. Reads that begin meanwhile wait behind it; if it is not got, they go on
/// and it is tried again.
const LOCK_WAIT_S: u32 = 1;
/// MySQL's number of the error that says that it was not got: `ER_LOCK_WAIT_TIMEOUT`.
const LOCK_WAIT_TIMEOUT: u16 = 1205;
/// Keys that are looked for, and deleted, in one round trip.
const PAGE: usize = 1000;
/// Sets the live generation for readers, if they read this view at all: if it is not complete, they do not.
const TAKE_OVER: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then \
                         return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 0";

/// The generations of one view.
pub(super) struct Generations {
    projection: Projection,
    target: Target,
    mysql_url: String,
    /// The number of the live generation when this began.
    pub(super) live: u32,
    /// The connection that holds the lock: it goes with the process.
    lock: Mutex<MySqlConnection>,
}

impl Generations {
    /// Takes the lock that no two rebuilds of a view have at once.
    pub(super) async fn lock(
        projection: Projection,
        stores: &Stores,
        target: Target,
        live: u32,
    ) -> anyhow::Result<Self> {
        // Detached, so that it is closed when this is dropped: in the pool it would keep the lock.
        let mut connection = target.mysql.acquire().await.context("failed to reach MySQL")?.detach();
        let locked: Option<i64> =
            sqlx::query_scalar("SELECT GET_LOCK(SHA1(CONCAT('rebuild ', DATABASE(), ' ', ?)), 0)")
                .bind(projection.name())
                .fetch_one(&mut connection)
                .await?;
        ensure!(locked == Some(1), "{} is being rebuilt by another process", projection.name());
        Ok(Self {
            projection,
            target,
            mysql_url: stores.mysql_url.reveal().to_owned(),
            live,
            lock: Mutex::new(connection),
        })
    }

    pub(super) const fn next_number(&self) -> u32 {
        self.live + 1
    }

    /// Makes the place for the next generation, or finds what an earlier rebuild left there.
    pub(super) async fn make_next(&self) -> anyhow::Result<Target> {
        match self.projection.catalogued.view {
            View::Redis(_) => {
                let keys = self.target.keys.of_generation(&self.projection.catalogued, self.next_number());
                Ok(Target { keys, ..self.target.clone() })
            }
            View::MySql(tables) => {
                let url = MySqlUrl::read(&self.mysql_url)?;
                let (live, next) = (url.database(), self.beside("next")?);
                self.execute(format!("CREATE DATABASE IF NOT EXISTS `{next}`")).await?;
                for table in self.tables(tables) {
                    self.execute(format!(
                        "CREATE TABLE IF NOT EXISTS `{next}`.{table} LIKE `{live}`.{table}"
                    ))
                    .await?;
                }
                let mysql = mysql::open(&url.with_database(&next), CONNECTIONS)?;
                Ok(Target { mysql, ..self.target.clone() })
            }
        }
    }

    /// Makes the next generation the live one, in one step. The hold ends with it. False if a long read was in the way.
    pub(super) async fn take_over(&self) -> anyhow::Result<bool> {
        self.ensure_locked().await?;
        let generation = self.next_number();
        match self.projection.catalogued.view {
            View::Redis(_) => {
                control::set_generation(&self.target.mysql, &self.projection, generation).await?;
                let take_over = cmd("EVAL")
                    .arg(TAKE_OVER)
                    .arg(1)
                    .arg(self.target.keys.generations())
                    .arg(self.projection.name())
                    .arg(generation)
                    .take();
                let _: i64 = self.target.redis.query(&take_over).await?;
            }
            View::MySql(tables) => {
                let url = MySqlUrl::read(&self.mysql_url)?;
                let (live, next, old) = (url.database(), self.beside("next")?, self.beside("old")?);
                self.execute(format!("DROP DATABASE IF EXISTS `{old}`")).await?;
                self.execute(format!("CREATE DATABASE `{old}`")).await?;
                let moves: Vec<_> = self
                    .tables(tables)
                    .map(|table| {
                        format!("`{live}`.{table} TO `{old}`.{table}, `{next}`.{table} TO `{live}`.{table}")
                    })
                    .collect();
                if !self.rename(&moves.join(", ")).await? {
                    return Ok(false);
                }
                control::set_generation(&self.target.mysql, &self.projection, generation).await?;
            }
        }
        Ok(true)
    }

    /// Drops the generations before the one that took over.
    pub(super) async fn drop_old(&self) -> anyhow::Result<()> {
        let live = self.next_number();
        self.drop_generations(|generation| generation < live).await?;
        self.drop_databases(&["old", "next"]).await
    }

    /// Drops whatever rebuilds left that were cut off.
    pub(super) async fn drop_all_but_live(&self) -> anyhow::Result<()> {
        self.drop_generations(|generation| generation > self.live).await?;
        self.drop_databases(&["old", "next"]).await?;
        // An old one may have been live a moment ago.
        sleep(GRACE).await;
        self.drop_generations(|generation| generation < self.live).await
    }

    async fn ensure_locked(&self) -> anyhow::Result<()> {
        let mut connection = self.lock.lock().await;
        let ours: Option<bool> = sqlx::query_scalar(
            "SELECT IS_USED_LOCK(SHA1(CONCAT('rebuild ', DATABASE(), ' ', ?))) = CONNECTION_ID()",
        )
        .bind(self.projection.name())
        .fetch_one(&mut *connection)
        .await
        .context("the connection to MySQL that held the lock was lost")?;
        ensure!(
            ours == Some(true),
            "the lock was lost, so another process may be rebuilding; run this again"
        );
        Ok(())
    }

    async fn drop_generations(&self, is_dropped: impl Fn(u32) -> bool) -> anyhow::Result<()> {
        let View::Redis(_) = self.projection.catalogued.view else {
            return Ok(());
        };
        let mut scan = self.target.redis.scan(&self.target.keys.pattern(), PAGE);
        while let Some(found) = scan.next().await? {
            let is_ours = |name: &String| {
                ViewKey::generation_of(name, &self.projection.catalogued).is_some_and(&is_dropped)
            };
            let unlinks: Vec<_> =
                found.into_iter().filter(is_ours).map(|name| cmd("UNLINK").arg(name).take()).collect();
            self.target.redis.all(&unlinks).await?;
        }
        Ok(())
    }

    async fn drop_databases(&self, which: &[&str]) -> anyhow::Result<()> {
        let View::MySql(_) = self.projection.catalogued.view else {
            return Ok(());
        };
        for which in which {
            self.execute(format!("DROP DATABASE IF EXISTS `{}`", self.beside(which)?)).await?;
        }
        Ok(())
    }

    fn tables(&self, tables: &'static [&'static str]) -> impl Iterator<Item = String> + use<> {
        let own = tables.iter().map(|table| (*table).to_owned());
        own.chain([self.projection.catalogued.checkpoint_table(), self.projection.catalogued.parked_table()])
    }

    /// The name of a database beside the live one.
    fn beside(&self, what: &str) -> anyhow::Result<String> {
        let what = format!("{what}_{}", self.projection.name().replace('-', "_"));
        Ok(MySqlUrl::read(&self.mysql_url)?.beside(&what))
    }

    async fn execute(&self, statement: String) -> anyhow::Result<()> {
        let failed = format!("MySQL refused: {statement}");
        sqlx::query(AssertSqlSafe(statement)).execute(&self.target.mysql).await.context(failed)?;
        Ok(())
    }

    async fn rename(&self, moves: &str) -> anyhow::Result<bool> {
        let mut connection = self.target.mysql.acquire().await?;
        let wait = format!("SET SESSION lock_wait_timeout = {LOCK_WAIT_S}");
        sqlx::query(AssertSqlSafe(wait)).execute(&mut *connection).await?;
        let renamed =
            sqlx::query(AssertSqlSafe(format!("RENAME TABLE {moves}"))).execute(&mut *connection).await;
        // The wait is this connection's own, which others get next.
        connection.close().await?;
        match renamed {
            Ok(_) => Ok(true),
            Err(error) if is_lock_wait(&error) => Ok(false),
            Err(error) => {
                Err(error).context("failed to put the next generation's tables in the place of the live ones")
            }
        }
    }
}

fn is_lock_wait(error: &sqlx::Error) -> bool {
    let number = |error: &dyn DatabaseError| {
        error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
    };
    error.as_database_error().and_then(number) == Some(LOCK_WAIT_TIMEOUT)
}
