//! Generations in MySQL: the next one is built in a separate database on the same server, and one `RENAME TABLE`
//! replaces the live tables and their checkpoints with the new ones.

use anyhow::{Context, ensure};
use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use vidlog_projection_engine::{
    desired_state::{self, hold::Hold},
    store::Stores,
    view::Projection,
};
use vidlog_service_kit::failpoint;

use super::store::GenerationStore;

/// Size of the MySQL connection pool for folding into another generation, which the partitions share.
const CONNECTIONS: u32 = 8;

/// Generations of a view in MySQL.
pub(super) struct MySqlGenerations {
    pub(super) projection: Projection,
    pub(super) tables: &'static [&'static str],
    pub(super) target: Stores,
    pub(super) live: u32,
}

#[async_trait]
impl GenerationStore for MySqlGenerations {
    async fn create_next(&self) -> anyhow::Result<Stores> {
        let (live, next) = (self.target.database()?, self.database_name("next")?);
        self.drop_database("old").await?;
        self.execute(format!("CREATE DATABASE IF NOT EXISTS `{next}`")).await?;
        self.ensure_same_format(&next).await?;
        for table in self.tables() {
            self.execute(format!("CREATE TABLE IF NOT EXISTS `{next}`.{table} LIKE `{live}`.{table}"))
                .await?;
        }
        self.ensure_same_layout().await?;
        Ok(self.target.with_database(&next, CONNECTIONS))
    }

    async fn take_over(&self, hold: &mut Hold<'_>) -> anyhow::Result<bool> {
        let (live, next, old) =
            (self.target.database()?, self.database_name("next")?, self.database_name("old")?);
        self.ensure_same_layout().await?;
        self.execute(format!("CREATE DATABASE IF NOT EXISTS `{old}`")).await?;
        let moves: Vec<_> = self
            .tables()
            .map(|table| format!("`{live}`.{table} TO `{old}`.{table}, `{next}`.{table} TO `{live}`.{table}"))
            .collect();
        failpoint::pass("mysql-switch-before");
        let renamed = hold.rename(&moves.join(", ")).await;
        if !renamed.context("failed to swap the tables of the generations")? {
            return Ok(false);
        }
        failpoint::pass("mysql-switch-after");
        desired_state::record_generation(&self.target.mysql, &self.projection, self.live)
            .await
            .context("the next generation is live, but storing its number in MySQL failed")?;
        Ok(true)
    }

    fn replaced(&self) -> anyhow::Result<Option<Stores>> {
        Ok(Some(self.target.with_database(&self.database_name("old")?, CONNECTIONS)))
    }

    /// Readers read the live tables by name.
    async fn publish_live(&self) -> anyhow::Result<()> {
        Ok(())
    }

    async fn drop_next(&self) -> anyhow::Result<()> {
        self.drop_database("old").await?;
        self.drop_database("next").await
    }

    /// The switch moved the tables of the previous generation to a database of their own.
    async fn drop_before(&self, _: u32) -> anyhow::Result<()> {
        self.drop_next().await
    }
}

impl MySqlGenerations {
    /// Fails if a rebuild of another version created the next tables: their rows are of another format.
    async fn ensure_same_format(&self, next: &str) -> anyhow::Result<()> {
        let table = "SELECT 1 FROM information_schema.tables WHERE table_schema = ?";
        let select = format!("SELECT EXISTS ({table}) AND NOT EXISTS ({table} AND table_name = ?)");
        let is_other: bool = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(next)
            .bind(next)
            .bind(self.projection.catalogued.checkpoint_table())
            .fetch_one(&self.target.mysql)
            .await?;
        ensure!(
            !is_other,
            "a rebuild of another version began the next generation, whose rows may be of another format; run this with \
             --drop, then again"
        );
        Ok(())
    }

    /// Fails if the live tables were migrated since the next ones were created, so that old layouts cannot
    /// take over.
    async fn ensure_same_layout(&self) -> anyhow::Result<()> {
        let (live, next) = (self.target.database()?, self.database_name("next")?);
        for table in self.tables() {
            let layout = async |database: &str| -> sqlx::Result<String> {
                let show = format!("SHOW CREATE TABLE `{database}`.{table}");
                let shown: (String, String) =
                    sqlx::query_as(AssertSqlSafe(show)).fetch_one(&self.target.mysql).await?;
                Ok(shown.1)
            };
            ensure!(
                layout(&live).await? == layout(&next).await?,
                "the live table {table} was migrated after the next generation was created; run this with --drop, then \
                 again"
            );
        }
        Ok(())
    }

    /// All tables of a generation. The checkpoints come first: they show the format of a generation that is not complete.
    fn tables(&self) -> impl Iterator<Item = String> + Send + use<> {
        let catalogued = self.projection.catalogued;
        let own = self.tables.iter().map(|table| (*table).to_owned());
        [catalogued.checkpoint_table(), catalogued.parked_table()].into_iter().chain(own)
    }

    /// Returns the name of a database beside the live one.
    fn database_name(&self, what: &str) -> anyhow::Result<String> {
        let projection = self.projection.name().replace('-', "_");
        Ok(format!("{}_{what}_{projection}", self.target.database()?))
    }

    async fn drop_database(&self, what: &str) -> anyhow::Result<()> {
        self.execute(format!("DROP DATABASE IF EXISTS `{}`", self.database_name(what)?)).await
    }

    async fn execute(&self, statement: String) -> anyhow::Result<()> {
        let failed = format!("failed to execute: {statement}");
        sqlx::query(AssertSqlSafe(statement)).execute(&self.target.mysql).await.context(failed)?;
        Ok(())
    }
}
