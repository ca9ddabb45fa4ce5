//! Where the generations of a view are kept, and how one takes over.
//!
//! In Redis a generation is a part of each key's name, and the live one is a number that readers look up. In MySQL the
//! next generation is built in a database of its own, beside the live one on the same server, and one `RENAME TABLE` puts
//! its tables, with their checkpoints, in the place of the live ones.

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

/// How long the old generation is kept: a request that began with it ends within 5 s.
pub(super) const GRACE: Duration = Duration::from_secs(8);
/// Connections for folding into the next generation: partitions take turns on them.
const CONNECTIONS: u32 = 8;
/// Keys that are looked for, and deleted, in one round trip.
const PAGE: usize = 1000;
/// Sets a field of a hash that is there.
const TELL_READERS: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then \
                         return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end return 0";

/// The generations of one view.
pub(super) struct Generations {
    projection: Projection,
    target: Stores,
    /// The number of the live generation when this began.
    pub(super) live: u32,
    lock: ViewLock,
}

impl Generations {
    /// Takes the view's lock. The target's keys become those of the live generation.
    pub(super) async fn lock(projection: Projection, target: Stores) -> anyhow::Result<Self> {
        let lock = ViewLock::take(&target.mysql, projection).await?;
        let wanted = desired_state::read(&target.mysql)
            .await
            .context("MySQL does not say which generation is live")?;
        let live = wanted.get(projection.name()).cloned().unwrap_or_default().generation;
        target.keys.set_generation(&projection.catalogued, live);
        Ok(Self { projection, target, live, lock })
    }

    pub(super) const fn next_number(&self) -> u32 {
        self.live + 1
    }

    /// Makes the place for the next generation, or finds what an earlier rebuild left there.
    pub(super) async fn make_next(&self) -> anyhow::Result<Stores> {
        match self.projection.catalogued.view {
            View::Redis(_) => {
                let keys = self.target.keys.of_generation(&self.projection.catalogued, self.next_number());
                Ok(Stores { keys, ..self.target.clone() })
            }
            View::MySql(tables) => {
                let (live, next) = (self.target.database()?, self.beside("next")?);
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

    /// Tables that were made before a migration of the live ones must not take their place.
    async fn ensure_same_layout(&self, tables: &'static [&'static str]) -> anyhow::Result<()> {
        let (live, next) = (self.target.database()?, self.beside("next")?);
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

    /// Makes the next generation the live one, in one step, within a hold, which ends with it. False if the hold has ended before, or
    /// a long read was in the way.
    pub(super) async fn take_over(&self, hold: &mut Hold<'_>) -> anyhow::Result<bool> {
        self.lock.ensure_held().await?;
        match self.projection.catalogued.view {
            View::Redis(_) => {
                failpoint::pass("redis-switch-before");
                if !desired_state::take_over(&self.target.mysql, &self.projection, self.live).await? {
                    return Ok(false);
                }
                failpoint::pass("redis-switch-after");
                self.tell_readers(self.next_number()).await.context(
                    "the next generation is live, but Redis did not take that; those that fold it tell readers, and \
                     --drop drops the one before",
                )?;
            }
            View::MySql(tables) => {
                let (live, next, old) = (self.target.database()?, self.beside("next")?, self.beside("old")?);
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

    /// The view that was live until the switch, in MySQL.
    pub(super) fn replaced(&self) -> anyhow::Result<Option<Stores>> {
        match self.projection.catalogued.view {
            View::Redis(_) => Ok(None),
            View::MySql(_) => Ok(Some(self.target.with_database(&self.beside("old")?, CONNECTIONS))),
        }
    }

    /// Tells readers which generation is live, if they read this view at all: if it is not complete, they do not.
    async fn tell_readers(&self, generation: u32) -> anyhow::Result<()> {
        let tell = cmd("EVAL")
            .arg(TELL_READERS)
            .arg(1)
            .arg(self.target.keys.generations())
            .arg(self.projection.name())
            .arg(generation)
            .take();
        let _: i64 = self.target.redis.query(&tell).await?;
        Ok(())
    }

    /// Drops the generations before the one that took over.
    pub(super) async fn drop_old(&self) -> anyhow::Result<()> {
        self.lock.ensure_held().await?;
        let live = self.next_number();
        self.drop_generations(|generation| generation < live).await?;
        self.drop_databases(&["old", "next"]).await
    }

    /// Drops whatever rebuilds left that were cut off.
    pub(super) async fn drop_all_but_live(&self) -> anyhow::Result<()> {
        if let View::Redis(_) = self.projection.catalogued.view {
            // A rebuild may have died before it told them.
            self.tell_readers(self.live).await?;
        }
        self.drop_next().await?;
        // An old one may have been live a moment ago.
        sleep(GRACE).await;
        self.drop_generations(|generation| generation < self.live).await
    }

    /// Drops what was to be live next, and what was moved out of its way.
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
        let projection = self.projection.name().replace('-', "_");
        Ok(format!("{}_{what}_{projection}", self.target.database()?))
    }

    async fn execute(&self, statement: String) -> anyhow::Result<()> {
        let failed = format!("MySQL refused: {statement}");
        sqlx::query(AssertSqlSafe(statement)).execute(&self.target.mysql).await.context(failed)?;
        Ok(())
    }
}
