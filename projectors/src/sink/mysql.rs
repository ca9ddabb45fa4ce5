//! MySQL: one transaction holds a batch's rows and its position.

use sqlx::{AssertSqlSafe, MySqlPool, QueryBuilder};
use vidlog_service_kit::failpoint;

use super::{Partition, Position, SinkError};
use crate::{
    Record,
    projection::{MySqlFold, Projection},
};

/// One partition of a view.
pub(super) struct View<'a> {
    pub(super) pool: &'a MySqlPool,
    pub(super) projection: &'a Projection,
    pub(super) partition: Partition,
}

pub(super) async fn positions(
    pool: &MySqlPool,
    projection: &Projection,
    partitions: &[Partition],
) -> Result<Vec<Position>, SinkError> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let table = projection.catalogued.checkpoint_table();
    let select = format!("SELECT stream, partition_no, next_offset FROM {table} WHERE record_key = ''");
    let stored: Vec<(String, i32, i64)> = sqlx::query_as(AssertSqlSafe(select)).fetch_all(pool).await?;
    let stored_next = |partition: &Partition| {
        let found = stored
            .iter()
            .find(|(stream, number, _)| stream == partition.stream.name() && *number == partition.number);
        found.map(|(_, _, next)| *next)
    };
    let missing: Vec<_> = partitions.iter().filter(|partition| stored_next(partition).is_none()).collect();
    if !missing.is_empty() {
        create(pool, projection, missing).await?;
    }
    Ok(partitions
        .iter()
        .map(|partition| Position { parts: vec![stored_next(partition).unwrap_or(0)] })
        .collect())
}

/// Creates checkpoints: a row has to be there before a transaction can lock it.
async fn create(pool: &MySqlPool, projection: &Projection, partitions: Vec<&Partition>) -> sqlx::Result<()> {
    let table = projection.catalogued.checkpoint_table();
    QueryBuilder::new(format!("INSERT IGNORE INTO {table} (stream, partition_no, next_offset) "))
        .push_values(partitions, |mut values, partition| {
            values.push_bind(partition.stream.name()).push_bind(partition.number).push_bind(0_i64);
        })
        .build()
        .execute(pool)
        .await?;
    Ok(())
}

/// The first records that are remembered, of these partitions in their order; these, where there were none.
pub(super) async fn logs(pool: &MySqlPool, firsts: &[(Partition, String)]) -> Result<Vec<String>, SinkError> {
    if firsts.is_empty() {
        return Ok(Vec::new());
    }
    QueryBuilder::new("INSERT IGNORE INTO logs (stream, partition_no, first_record) ")
        .push_values(firsts, |mut values, (partition, first)| {
            values.push_bind(partition.stream.name()).push_bind(partition.number).push_bind(first);
        })
        .build()
        .execute(pool)
        .await?;
    let stored: Vec<(String, i32, String)> =
        sqlx::query_as("SELECT stream, partition_no, first_record FROM logs").fetch_all(pool).await?;
    let recalled = |(partition, first): &(Partition, String)| {
        let is_it = |(stream, number, _): &&(String, i32, String)| {
            stream == partition.stream.name() && *number == partition.number
        };
        stored.iter().find(is_it).map_or_else(|| first.clone(), |(_, _, recalled)| recalled.clone())
    };
    Ok(firsts.iter().map(recalled).collect())
}

impl View<'_> {
    pub(super) async fn apply(
        &self,
        fold: MySqlFold,
        parts: &mut [i64],
        records: &[Record],
        next: i64,
    ) -> Result<(), SinkError> {
        let table = self.projection.catalogued.checkpoint_table();
        let mut transaction = self.pool.begin().await?;
        let select = format!(
            "SELECT next_offset FROM {table} WHERE stream = ? AND partition_no = ? AND record_key = '' FOR UPDATE"
        );
        let stored: Option<i64> = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .fetch_optional(&mut *transaction)
            .await?;
        let stored = stored.unwrap_or(0);
        let known = parts.first().copied().unwrap_or(0);
        if stored < known {
            return Err(SinkError::Behind { stored });
        }
        if stored < next {
            let new = records.partition_point(|record| record.offset < stored);
            fold(&mut transaction, &records[new..]).await?;
            let update = format!(
                "UPDATE {table} SET next_offset = ? WHERE stream = ? AND partition_no = ? AND record_key = ''"
            );
            sqlx::query(AssertSqlSafe(update))
                .bind(next)
                .bind(self.partition.stream.name())
                .bind(self.partition.number)
                .execute(&mut *transaction)
                .await?;
        }
        failpoint::pass("mysql-commit-before");
        transaction.commit().await?;
        failpoint::pass("mysql-commit-after");
        parts.fill(stored.max(next));
        Ok(())
    }
}
