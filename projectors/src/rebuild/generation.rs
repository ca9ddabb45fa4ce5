//! Creates, switches and drops the generations of a view.
//!
//! In Redis, the generation is a part of each key's name, and readers look up the number of the live one. In
//! MySQL, the next generation is built in a separate database on the same server, and one `RENAME TABLE`
//! replaces the live tables and their checkpoints with the new ones.

use std::time::Duration;

use anyhow::{Context, ensure};
use redis::cmd;
use sqlx::AssertSqlSafe;
use tokio::time::sleep;
use vidlog_projection_engine::{
    desired_state::{self, hold::Hold, view_lock::ViewLock},
    store::Stores,
    view::Projection,
};
use vidlog_schemas::{keys::ViewKey, projections::View};
use vidlog_service_kit::failpoint;

/// Time for which the old generation is kept: requests that read it end within 5 s.
pub(super) const GRACE: Duration = Duration::from_secs(8);
/// Size of the MySQL connection pool for folding into the next generation, which the partitions share.
const CONNECTIONS: u32 = 8;
/// Number of keys that are scanned, and deleted, per round trip.
const PAGE: usize = 1000;
/// Lua script that sets a field of a hash if it exists.
const PUBLISH_GENERATION: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then \
                                  return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 0";

/// Generations of one view, under the view's lock.
pub(super) struct Generations {
    projection: Projection,
    target: Stores,
    /// Number of the live generation when the lock was taken.
    pub(super) live: u32,
    lock: ViewLock,
}

impl Generations {
    /// Takes the view's lock and points the target's keys at the live generation.
    pub(super) async fn lock(projection: Projection, target: Stores) -> anyhow::Result<Self> {
        let lock = ViewLock::take(&target.mysql, projection).await?;
        let states = desired_state::read(&target.mysql)
            .await
            .context("MySQL does not say which generation is live")?;
        let live = states.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, live);
        Ok(Self { projection, target, live, lock })
    }

    pub(super) const fn next_number(&self) -> u32 {
        self.live + 1
    }

    /// Creates the database and the tables of the next generation, or finds those of an earlier rebuild. In
    /// Redis, it only derives the keys. Returns the stores of the next generation.
    pub(super) async fn make_next(&self) -> anyhow::Result<Stores> {
        match self.projection.catalogued.view {
            View::Redis(_) => {
                let keys = self.target.keys.of_generation(&self.projection.catalogued, self.next_number());
                Ok(Stores { keys, ..self.target.clone() })
            }
            View::MySql(tables) => {
                let (live, next) = (self.target.database()?, self.database_name("next")?);
                self.drop_databases(&["old"]).await?;
                self.execute(format!("CREATE DATABASE IF NOT EXISTS `{next}`")).await?;
                for table in self.tables(tables) {
                    self.execute(format!(
                        "CREATE TABLE IF NOT EXISTS `{next}`.{table} LIKE `{live}`.{table}"
                    ))
                    .await?;
                }
                self.ensure_same_layout(tables).await?;
                Ok(self.target.with_database(&next, CONNECTIONS))
            }
        }
    }

    /// Fails if the live tables were migrated since the next ones were created, so that old layouts cannot
    /// take over.
    async fn ensure_same_layout(&self, tables: &'static [&'static str]) -> anyhow::Result<()> {
        let (live, next) = (self.target.database()?, self.database_name("next")?);
        for table in self.tables(tables) {
            let layout = async |database: &str| -> sqlx::Result<String> {
                let show = format!("SHOW CREATE TABLE `{database}`.{table}");
                let shown: (String, String) =
                    sqlx::query_as(AssertSqlSafe(show)).fetch_one(&self.target.mysql).await?;
                Ok(shown.1)
            };
            ensure!(
                layout(&live).await? == layout(&next).await?,
                "the table {table} of the next generation is not like the live one any more, which was migrated; \
                 run this with --drop, then again"
            );
        }
        Ok(())
    }

    /// Makes the next generation the live one, in one step that requires the hold and ends it. Returns false
    /// if the hold has ended before, or if a long read blocked the rename.
    pub(super) async fn take_over(&self, hold: &mut Hold<'_>) -> anyhow::Result<bool> {
        self.lock.ensure_held().await?;
        match self.projection.catalogued.view {
            View::Redis(_) => {
                failpoint::pass("redis-switch-before");
                if !desired_state::take_over(&self.target.mysql, &self.projection, self.live).await? {
                    return Ok(false);
                }
                failpoint::pass("redis-switch-after");
                self.publish_generation(self.next_number()).await.context(
                    "the next generation is live, but Redis did not take that; those that fold it tell readers, and \
                     --drop drops the one before",
                )?;
            }
            View::MySql(tables) => {
                let (live, next, old) =
                    (self.target.database()?, self.database_name("next")?, self.database_name("old")?);
                self.ensure_same_layout(tables).await?;
                self.execute(format!("CREATE DATABASE IF NOT EXISTS `{old}`")).await?;
                let moves: Vec<_> = self
                    .tables(tables)
                    .map(|table| {
                        format!("`{live}`.{table} TO `{old}`.{table}, `{next}`.{table} TO `{live}`.{table}")
                    })
                    .collect();
                let moves = moves.join(", ");
                failpoint::pass("mysql-switch-before");
                if !hold
                    .rename(&moves)
                    .await
                    .context("failed to put the next generation's tables in the place of the live ones")?
                {
                    return Ok(false);
                }
                failpoint::pass("mysql-switch-after");
                desired_state::record_generation(&self.target.mysql, &self.projection, self.live)
                    .await
                    .context("the next generation is live, but MySQL did not take its number")?;
            }
        }
        Ok(true)
    }

    /// Returns the view that was live until the switch; only in MySQL.
    pub(super) fn replaced(&self) -> anyhow::Result<Option<Stores>> {
        match self.projection.catalogued.view {
            View::Redis(_) => Ok(None),
            View::MySql(_) => Ok(Some(self.target.with_database(&self.database_name("old")?, CONNECTIONS))),
        }
    }

    /// Publishes the live generation to readers, unless the view is incomplete: then it is not published at
    /// all.
    async fn publish_generation(&self, generation: u32) -> anyhow::Result<()> {
        let publish = cmd("EVAL")
            .arg(PUBLISH_GENERATION)
            .arg(1)
            .arg(self.target.keys.generations())
            .arg(self.projection.name())
            .arg(generation)
            .take();
        let _: i64 = self.target.redis.query(&publish).await?;
        Ok(())
    }

    /// Drops the generations before the one that took over.
    pub(super) async fn drop_old(&self) -> anyhow::Result<()> {
        self.lock.ensure_held().await?;
        let live = self.next_number();
        self.drop_generations(|generation| generation < live).await?;
        self.drop_databases(&["old", "next"]).await
    }

    /// Drops what interrupted rebuilds left.
    pub(super) async fn drop_all_but_live(&self) -> anyhow::Result<()> {
        if let View::Redis(_) = self.projection.catalogued.view {
            // A rebuild may have crashed between the switch and publishing it.
            self.publish_generation(self.live).await?;
        }
        self.drop_next().await?;
        // Readers may still read a generation that was live until recently.
        sleep(GRACE).await;
        self.drop_generations(|generation| generation < self.live).await
    }

    /// Drops the next generation, and the tables that a switch replaced.
    pub(super) async fn drop_next(&self) -> anyhow::Result<()> {
        self.drop_generations(|generation| generation > self.live).await?;
        self.drop_databases(&["old", "next"]).await
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
            self.execute(format!("DROP DATABASE IF EXISTS `{}`", self.database_name(which)?)).await?;
        }
        Ok(())
    }

    fn tables(&self, tables: &'static [&'static str]) -> impl Iterator<Item = String> + use<> {
        let own = tables.iter().map(|table| (*table).to_owned());
        own.chain([self.projection.catalogued.checkpoint_table(), self.projection.catalogued.parked_table()])
    }

    /// Returns the name of a database beside the live one.
    fn database_name(&self, what: &str) -> anyhow::Result<String> {
        let projection = self.projection.name().replace('-', "_");
        Ok(format!("{}_{what}_{projection}", self.target.database()?))
    }

    async fn execute(&self, statement: String) -> anyhow::Result<()> {
        let failed = format!("MySQL refused: {statement}");
        sqlx::query(AssertSqlSafe(statement)).execute(&self.target.mysql).await.context(failed)?;
        Ok(())
    }
}
