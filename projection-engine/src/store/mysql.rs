//! MySQL: one transaction holds a batch's rows, its position, and which keys it parks.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, MySqlConnection, MySqlPool, QueryBuilder, mysql::MySqlDatabaseError};
use vidlog_service_kit::failpoint;

use super::{Batch, Change, Changes, Class, Failure, Parked, ParkedKey, Position, StoreError};
use crate::{
    log::{Partition, RecordKey},
    view::{MySqlFold, Projection},
};

/// The record key of a checkpoint that is of the partition itself.
pub(super) const WHOLE: &str = "";

/// One partition of a view, or one parked key of it.
pub(super) struct View<'a> {
    pub(super) pool: &'a MySqlPool,
    pub(super) projection: &'a Projection,
    pub(super) partition: Partition,
    pub(super) record_key: &'a str,
}

pub(super) async fn positions(
    pool: &MySqlPool,
    projection: &Projection,
    partitions: &[Partition],
) -> Result<Vec<Position>, StoreError> {
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
pub(super) async fn logs(
    pool: &MySqlPool,
    firsts: &[(Partition, String)],
) -> Result<Vec<String>, StoreError> {
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

type ParkedRow = (String, i32, String, i64, i64, i64, String, String);

/// All parked keys of a view.
pub(super) async fn parked(
    pool: &MySqlPool,
    projection: &Projection,
) -> Result<BTreeMap<Partition, Parked>, StoreError> {
    let select = format!(
        "SELECT stream, partition_no, record_key, first_offset, last_offset, waiting, class, message FROM {}",
        projection.catalogued.parked_table()
    );
    let rows: Vec<ParkedRow> = sqlx::query_as(AssertSqlSafe(select)).fetch_all(pool).await?;
    let mut all: BTreeMap<Partition, Parked> = BTreeMap::new();
    for (stream, number, key, first, last, waiting, class, message) in rows {
        let Some(stream) = projection.streams().find(|known| known.name() == stream) else {
            continue;
        };
        let failure = Failure::new(class.parse().unwrap_or(Class::Unfoldable), &message);
        let parked = ParkedKey { first, last, waiting, failure };
        all.entry(Partition { stream, number }).or_default().insert(RecordKey::from_text(&key), parked);
    }
    Ok(all)
}

impl View<'_> {
    pub(super) async fn apply(
        &self,
        fold: MySqlFold,
        parts: &mut [i64],
        batch: &Batch<'_>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let stored = self.lock(&mut transaction).await?.unwrap_or(0);
        let known = parts.first().copied().unwrap_or(0);
        if stored < known {
            return Err(StoreError::Behind { stored });
        }
        if stored < batch.next {
            // Another writer may have parked keys that this one knows nothing of.
            if stored > known && (!batch.changes.is_empty() || self.has_parked(&mut transaction).await?) {
                return Err(StoreError::Moved { stored });
            }
            self.park(&mut transaction, batch.changes).await?;
            let new = batch.records.partition_point(|record| record.offset < stored);
            fold(&mut transaction, &batch.records[new..]).await.map_err(of_fold)?;
            self.advance(&mut transaction, batch.next).await?;
        }
        failpoint::pass("mysql-commit-before");
        transaction.commit().await?;
        failpoint::pass("mysql-commit-after");
        parts.fill(stored.max(batch.next));
        Ok(())
    }

    /// Moves the position to `next`: no record that a consumer receives is between.
    pub(super) async fn settle(&self, parts: &mut [i64], next: i64) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let stored = self.lock(&mut transaction).await?.unwrap_or(0);
        if stored < parts.first().copied().unwrap_or(0) {
            return Err(StoreError::Behind { stored });
        }
        if stored < next {
            self.advance(&mut transaction, next).await?;
        }
        failpoint::pass("mysql-commit-before");
        transaction.commit().await?;
        failpoint::pass("mysql-commit-after");
        parts.fill(stored.max(next));
        Ok(())
    }

    /// Where the parked key's own checkpoint stands, which is created at a place if there is none.
    pub(super) async fn begin(&self, place: i64) -> Result<i64, StoreError> {
        let table = self.projection.catalogued.checkpoint_table();
        let insert = format!(
            "INSERT INTO {table} (stream, partition_no, record_key, next_offset) VALUES (?, ?, ?, ?)
             ON DUPLICATE KEY UPDATE next_offset = GREATEST(next_offset, VALUES(next_offset))"
        );
        let mut transaction = self.pool.begin().await?;
        sqlx::query(AssertSqlSafe(insert))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .bind(place)
            .execute(&mut *transaction)
            .await?;
        let stored = self.lock(&mut transaction).await?.unwrap_or(place);
        transaction.commit().await?;
        Ok(stored)
    }

    /// Makes a parked key one like others, with its own checkpoint, unless it has changed; whether it did so.
    pub(super) async fn unpark(&self, parked: &ParkedKey) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        // The partition's writer waits for this lock, and then sees that the key is not parked.
        View { record_key: WHOLE, ..*self }.lock(&mut transaction).await?;
        let delete = format!(
            "DELETE FROM {} WHERE stream = ? AND partition_no = ? AND record_key = ?
             AND first_offset = ? AND last_offset = ?",
            self.projection.catalogued.parked_table()
        );
        let deleted = sqlx::query(AssertSqlSafe(delete))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .bind(parked.first)
            .bind(parked.last)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if deleted == 0 {
            return Ok(false);
        }
        let delete = format!(
            "DELETE FROM {} WHERE stream = ? AND partition_no = ? AND record_key = ?",
            self.projection.catalogued.checkpoint_table()
        );
        sqlx::query(AssertSqlSafe(delete))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Has a parked key begin at a later record, as those before it were folded; whether it still began where it is
    /// said to.
    pub(super) async fn park_from(&self, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        let update = format!(
            "UPDATE {} SET first_offset = ?, waiting = waiting - ?, class = ?, message = ?
             WHERE stream = ? AND partition_no = ? AND record_key = ? AND first_offset = ?",
            self.projection.catalogued.parked_table()
        );
        let updated = sqlx::query(AssertSqlSafe(update))
            .bind(to.first)
            .bind(from.waiting - to.waiting)
            .bind(to.failure.class.name())
            .bind(&to.failure.message)
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .bind(from.first)
            .execute(self.pool)
            .await?;
        Ok(updated.rows_affected() > 0)
    }

    /// Locks the checkpoint, and says where it stands.
    async fn lock(&self, connection: &mut MySqlConnection) -> Result<Option<i64>, StoreError> {
        let table = self.projection.catalogued.checkpoint_table();
        let select = format!(
            "SELECT next_offset FROM {table} WHERE stream = ? AND partition_no = ? AND record_key = ? FOR UPDATE"
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(select))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .fetch_optional(connection)
            .await?)
    }

    async fn advance(&self, connection: &mut MySqlConnection, next: i64) -> Result<(), StoreError> {
        let table = self.projection.catalogued.checkpoint_table();
        let update = format!(
            "UPDATE {table} SET next_offset = ? WHERE stream = ? AND partition_no = ? AND record_key = ?"
        );
        sqlx::query(AssertSqlSafe(update))
            .bind(next)
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .bind(self.record_key)
            .execute(connection)
            .await?;
        Ok(())
    }

    async fn has_parked(&self, connection: &mut MySqlConnection) -> Result<bool, StoreError> {
        let table = self.projection.catalogued.parked_table();
        let select = format!("SELECT 1 FROM {table} WHERE stream = ? AND partition_no = ? LIMIT 1");
        let found: Option<i32> = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(self.partition.stream.name())
            .bind(self.partition.number)
            .fetch_optional(connection)
            .await?;
        // A parked key's own checkpoint is written while it is parked.
        Ok(found.is_some() && self.record_key == WHOLE)
    }

    /// Changes the parked keys, if they are what the writer takes them for.
    async fn park(&self, connection: &mut MySqlConnection, changes: &Changes) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let table = self.projection.catalogued.parked_table();
        let mut select = QueryBuilder::new(format!("SELECT record_key FROM {table} WHERE stream = "));
        select.push_bind(self.partition.stream.name());
        select.push(" AND partition_no = ").push_bind(self.partition.number).push(" AND record_key IN ");
        select.push_tuples(changes.keys(), |mut tuple, key| {
            tuple.push_bind(key.as_str());
        });
        let stored: Vec<(String,)> = select.build_query_as().fetch_all(&mut *connection).await?;
        let is_parked = |key: &RecordKey| stored.iter().any(|(stored,)| stored == key.as_str());
        if changes.iter().any(|(key, change)| is_parked(key) != matches!(change, Change::Extend { .. })) {
            return Err(StoreError::OtherParked);
        }
        QueryBuilder::new(format!(
            "INSERT INTO {table}
             (stream, partition_no, record_key, first_offset, last_offset, waiting, class, message) "
        ))
        .push_values(changes, |mut values, (key, change)| {
            let (stream, number) = (self.partition.stream.name(), self.partition.number);
            values.push_bind(stream).push_bind(number).push_bind(key.as_str());
            match change {
                Change::Park(ParkedKey { first, last, waiting, failure }) => values
                    .push_bind(first)
                    .push_bind(last)
                    .push_bind(waiting)
                    .push_bind(failure.class.name())
                    .push_bind(&failure.message),
                Change::Extend { last, more } => {
                    values.push_bind(last).push_bind(last).push_bind(more).push_bind("").push_bind("")
                }
            };
        })
        .push(
            " ON DUPLICATE KEY UPDATE
                last_offset = VALUES(last_offset), waiting = waiting + VALUES(waiting)",
        )
        .build()
        .execute(connection)
        .await?;
        Ok(())
    }
}

/// What the error of a fold means: about the data, or about a store that is away.
fn of_fold(error: sqlx::Error) -> StoreError {
    let refused = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    match refused.map(|refused| (refused.number(), refused.message())) {
        // Null where there must be a value, out of range, too long, and constraints (the last is MariaDB's).
        Some((number @ (1048 | 1264 | 1406 | 1690 | 3819 | 4025), message)) => {
            StoreError::Unfoldable(format!("MySQL error {number}: {message}"))
        }
        // Of a key that is there already, a value that was cut, of a wrong type, or no text. The message has the value
        // in it, which may be personal.
        Some((number @ (1062 | 1265 | 1292 | 1366), _)) => {
            StoreError::Unfoldable(format!("MySQL error {number}"))
        }
        _ => error.into(),
    }
}
