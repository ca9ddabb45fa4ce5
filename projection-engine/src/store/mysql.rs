//! The store of a view in MySQL. One transaction holds a batch's rows, its position, and its changes of parked keys.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, MySql, MySqlConnection, QueryBuilder, Transaction, mysql::MySqlDatabaseError};
use vidlog_schemas::keys::Key;
use vidlog_service_kit::failpoint;

use super::{
    Batch, Change, Changes, Checkpoint, Class, Failure, Parked, ParkedKey, Position, StoreError, Stores,
    ViewStore,
};
use crate::{
    log::{Offsets, Partition, Record, RecordKey},
    view::{MySqlFold, Projection},
};

type ParkedRow = (String, i32, String, i64, i64, i64, String, String);

/// The store of a view in MySQL.
pub struct MySqlStore {
    projection: Projection,
    fold: MySqlFold,
    stores: Stores,
}

#[async_trait]
impl ViewStore for MySqlStore {
    fn projection(&self) -> &Projection {
        &self.projection
    }

    fn stores(&self) -> &Stores {
        &self.stores
    }

    async fn positions(&self, partitions: &[Partition]) -> Result<Vec<Position>, StoreError> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let table = self.checkpoint_table();
        let select = format!("SELECT stream, partition_no, next_offset FROM {table} WHERE record_key = ''");
        let rows: Vec<(String, i32, i64)> =
            sqlx::query_as(AssertSqlSafe(select)).fetch_all(&self.stores.mysql).await?;
        let stored = |partition: &Partition| {
            let is_match = |(stream, number, _): &&(String, i32, i64)| {
                stream == partition.stream.name() && *number == partition.number
            };
            rows.iter().find(is_match).map(|(_, _, next)| *next)
        };
        let position = |partition| Position { parts: vec![stored(partition).unwrap_or(0)] };
        Ok(partitions.iter().map(position).collect())
    }

    async fn visible_offsets(&self, partitions: &[Partition]) -> Result<Offsets, StoreError> {
        let positions = self.positions(partitions).await?;
        Ok(partitions.iter().copied().zip(positions.iter().map(Position::lowest)).collect())
    }

    async fn log_identities(&self, firsts: &[(Partition, String)]) -> Result<Vec<String>, StoreError> {
        if firsts.is_empty() {
            return Ok(Vec::new());
        }
        QueryBuilder::new("INSERT IGNORE INTO logs (stream, partition_no, first_record) ")
            .push_values(firsts, |mut values, (partition, first)| {
                values.push_bind(partition.stream.name()).push_bind(partition.number).push_bind(first);
            })
            .build()
            .execute(&self.stores.mysql)
            .await?;
        let rows: Vec<(String, i32, String)> =
            sqlx::query_as("SELECT stream, partition_no, first_record FROM logs")
                .fetch_all(&self.stores.mysql)
                .await?;
        let stored = |(partition, first): &(Partition, String)| {
            let is_match = |(stream, number, _): &&(String, i32, String)| {
                stream == partition.stream.name() && *number == partition.number
            };
            rows.iter().find(is_match).map_or_else(|| first.clone(), |(_, _, stored)| stored.clone())
        };
        Ok(firsts.iter().map(stored).collect())
    }

    async fn write(
        &self,
        checkpoint: &Checkpoint,
        position: &mut Position,
        batch: &Batch<'_>,
    ) -> Result<(), StoreError> {
        let (mut transaction, stored) = self.begin(checkpoint, position).await?;
        if stored < batch.next {
            // Another writer may have parked keys that are not in `changes`.
            if stored > position.lowest()
                && (!batch.changes.is_empty() || self.has_parked(&mut transaction, checkpoint).await?)
            {
                return Err(StoreError::Moved { stored });
            }
            self.park(&mut transaction, checkpoint.partition, batch.changes).await?;
            let new = batch.records.partition_point(|record| record.offset < stored);
            (self.fold)(&mut transaction, &batch.records[new..]).await.map_err(fold_error)?;
            self.advance(&mut transaction, checkpoint, batch.next).await?;
        }
        commit(transaction).await?;
        position.parts.fill(stored.max(batch.next));
        Ok(())
    }

    /// A batch moves the only part that there is, but not past offsets without a record.
    async fn align(
        &self,
        partition: Partition,
        position: &mut Position,
        next: i64,
    ) -> Result<(), StoreError> {
        if position.lowest() >= next {
            return Ok(());
        }
        let checkpoint = partition.into();
        let (mut transaction, stored) = self.begin(&checkpoint, position).await?;
        if stored < next {
            self.advance(&mut transaction, &checkpoint, next).await?;
        }
        commit(transaction).await?;
        position.parts.fill(stored.max(next));
        Ok(())
    }

    async fn parked(&self) -> Result<BTreeMap<Partition, Parked>, StoreError> {
        let select = format!(
            "SELECT stream, partition_no, record_key, first_offset, last_offset, waiting, class, message FROM {}",
            self.parked_table()
        );
        let rows: Vec<ParkedRow> =
            sqlx::query_as(AssertSqlSafe(select)).fetch_all(&self.stores.mysql).await?;
        let mut all: BTreeMap<Partition, Parked> = BTreeMap::new();
        for (stream, number, key, first, last, waiting, class, message) in rows {
            let Some(stream) = self.projection.streams().find(|candidate| candidate.name() == stream) else {
                continue;
            };
            let failure = Failure::new(class.parse().unwrap_or(Class::Unfoldable), &message);
            let parked = ParkedKey { first, last, waiting, failure };
            all.entry(Partition { stream, number }).or_default().insert(RecordKey::from_text(&key), parked);
        }
        Ok(all)
    }

    async fn create_checkpoint(&self, key: &Checkpoint, offset: i64) -> Result<Position, StoreError> {
        let insert = format!(
            "INSERT INTO {} (stream, partition_no, record_key, next_offset) VALUES (?, ?, ?, ?)
             ON DUPLICATE KEY UPDATE next_offset = GREATEST(next_offset, VALUES(next_offset))",
            self.checkpoint_table()
        );
        let mut transaction = self.stores.mysql.begin().await?;
        sqlx::query(AssertSqlSafe(insert))
            .bind(key.partition.stream.name())
            .bind(key.partition.number)
            .bind(key.column())
            .bind(offset)
            .execute(&mut *transaction)
            .await?;
        let stored = self.lock(&mut transaction, key).await?.unwrap_or(offset);
        transaction.commit().await?;
        Ok(Position { parts: vec![stored] })
    }

    async fn unpark(&self, key: &Checkpoint, expected: &ParkedKey) -> Result<bool, StoreError> {
        let mut transaction = self.stores.mysql.begin().await?;
        // The partition's writer waits for this lock, and then reads that the key is not parked.
        self.lock(&mut transaction, &key.partition.into()).await?;
        let delete = format!(
            "DELETE FROM {} WHERE stream = ? AND partition_no = ? AND record_key = ?
             AND first_offset = ? AND last_offset = ?",
            self.parked_table()
        );
        let deleted = sqlx::query(AssertSqlSafe(delete))
            .bind(key.partition.stream.name())
            .bind(key.partition.number)
            .bind(key.column())
            .bind(expected.first)
            .bind(expected.last)
            .execute(&mut *transaction)
            .await?
            .rows_affected();
        if deleted == 0 {
            return Ok(false);
        }
        let delete = format!(
            "DELETE FROM {} WHERE stream = ? AND partition_no = ? AND record_key = ?",
            self.checkpoint_table()
        );
        sqlx::query(AssertSqlSafe(delete))
            .bind(key.partition.stream.name())
            .bind(key.partition.number)
            .bind(key.column())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn repark(&self, key: &Checkpoint, from: &ParkedKey, to: &ParkedKey) -> Result<bool, StoreError> {
        let update = format!(
            "UPDATE {} SET first_offset = ?, waiting = waiting - ?, class = ?, message = ?
             WHERE stream = ? AND partition_no = ? AND record_key = ? AND first_offset = ?",
            self.parked_table()
        );
        let updated = sqlx::query(AssertSqlSafe(update))
            .bind(to.first)
            .bind(from.waiting - to.waiting)
            .bind(to.failure.class.name())
            .bind(&to.failure.message)
            .bind(key.partition.stream.name())
            .bind(key.partition.number)
            .bind(key.column())
            .bind(from.first)
            .execute(&self.stores.mysql)
            .await?;
        Ok(updated.rows_affected() > 0)
    }

    /// Readers have no other source for a view in MySQL.
    async fn mark_incomplete(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn members_written(&self, _: &[Record]) -> BTreeSet<(Key, String)> {
        BTreeSet::new()
    }

    fn survives_redis(&self) -> bool {
        true
    }
}

impl MySqlStore {
    /// The store of a projection's view.
    pub const fn new(projection: Projection, fold: MySqlFold, stores: Stores) -> Self {
        Self { projection, fold, stores }
    }

    /// Begins a transaction that locks a checkpoint, and returns it with the stored position. Fails if that is before the
    /// expected one.
    async fn begin(
        &self,
        checkpoint: &Checkpoint,
        expected: &Position,
    ) -> Result<(Transaction<'static, MySql>, i64), StoreError> {
        let mut transaction = self.stores.mysql.begin().await?;
        let mut stored = self.lock(&mut transaction, checkpoint).await?;
        if stored.is_none() && expected.lowest() == 0 {
            // A transaction can lock existing rows only.
            self.create(&mut transaction, checkpoint).await?;
            stored = self.lock(&mut transaction, checkpoint).await?;
        }
        let stored = stored.unwrap_or(0);
        if stored < expected.lowest() {
            return Err(StoreError::Behind { stored });
        }
        Ok((transaction, stored))
    }

    /// Creates the checkpoint of a partition at 0, unless another writer did.
    async fn create(
        &self,
        connection: &mut MySqlConnection,
        checkpoint: &Checkpoint,
    ) -> Result<(), StoreError> {
        let table = self.checkpoint_table();
        let insert = format!(
            "INSERT IGNORE INTO {table} (stream, partition_no, record_key, next_offset) VALUES (?, ?, ?, 0)"
        );
        sqlx::query(AssertSqlSafe(insert))
            .bind(checkpoint.partition.stream.name())
            .bind(checkpoint.partition.number)
            .bind(checkpoint.column())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Locks a checkpoint, and returns its position.
    async fn lock(
        &self,
        connection: &mut MySqlConnection,
        checkpoint: &Checkpoint,
    ) -> Result<Option<i64>, StoreError> {
        let table = self.checkpoint_table();
        let select = format!(
            "SELECT next_offset FROM {table} WHERE stream = ? AND partition_no = ? AND record_key = ? FOR UPDATE"
        );
        Ok(sqlx::query_scalar(AssertSqlSafe(select))
            .bind(checkpoint.partition.stream.name())
            .bind(checkpoint.partition.number)
            .bind(checkpoint.column())
            .fetch_optional(connection)
            .await?)
    }

    async fn advance(
        &self,
        connection: &mut MySqlConnection,
        checkpoint: &Checkpoint,
        next: i64,
    ) -> Result<(), StoreError> {
        let table = self.checkpoint_table();
        let update = format!(
            "UPDATE {table} SET next_offset = ? WHERE stream = ? AND partition_no = ? AND record_key = ?"
        );
        sqlx::query(AssertSqlSafe(update))
            .bind(next)
            .bind(checkpoint.partition.stream.name())
            .bind(checkpoint.partition.number)
            .bind(checkpoint.column())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Whether the partition has parked keys. A parked key's own checkpoint is written while it is parked.
    async fn has_parked(
        &self,
        connection: &mut MySqlConnection,
        checkpoint: &Checkpoint,
    ) -> Result<bool, StoreError> {
        if checkpoint.key.is_some() {
            return Ok(false);
        }
        let table = self.parked_table();
        let select = format!("SELECT 1 FROM {table} WHERE stream = ? AND partition_no = ? LIMIT 1");
        let found: Option<i32> = sqlx::query_scalar(AssertSqlSafe(select))
            .bind(checkpoint.partition.stream.name())
            .bind(checkpoint.partition.number)
            .fetch_optional(connection)
            .await?;
        Ok(found.is_some())
    }

    /// Changes the parked keys, if they are as the changes assume.
    async fn park(
        &self,
        connection: &mut MySqlConnection,
        partition: Partition,
        changes: &Changes,
    ) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        let table = self.parked_table();
        let mut select = QueryBuilder::new(format!("SELECT record_key FROM {table} WHERE stream = "));
        select.push_bind(partition.stream.name());
        select.push(" AND partition_no = ").push_bind(partition.number).push(" AND record_key IN ");
        select.push_tuples(changes.keys(), |mut tuple, key| {
            tuple.push_bind(key.as_str());
        });
        let stored: Vec<(String,)> = select.build_query_as().fetch_all(&mut *connection).await?;
        let is_parked = |key: &RecordKey| stored.iter().any(|(stored,)| stored == key.as_str());
        if changes.iter().any(|(key, change)| is_parked(key) != matches!(change, Change::Extend { .. })) {
            return Err(StoreError::ParkedKeysChanged);
        }
        QueryBuilder::new(format!(
            "INSERT INTO {table}
             (stream, partition_no, record_key, first_offset, last_offset, waiting, class, message) "
        ))
        .push_values(changes, |mut values, (key, change)| {
            values.push_bind(partition.stream.name()).push_bind(partition.number).push_bind(key.as_str());
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

    fn checkpoint_table(&self) -> String {
        self.projection.catalogued.checkpoint_table()
    }

    fn parked_table(&self) -> String {
        self.projection.catalogued.parked_table()
    }
}

impl Checkpoint {
    /// The value of the column `record_key`; empty for the checkpoint of a partition.
    fn column(&self) -> &str {
        self.key.as_ref().map_or("", RecordKey::as_str)
    }
}

/// Commits a transaction that moves a checkpoint.
async fn commit(transaction: Transaction<'_, MySql>) -> sqlx::Result<()> {
    failpoint::pass("mysql-commit-before");
    transaction.commit().await?;
    failpoint::pass("mysql-commit-after");
    Ok(())
}

/// Classifies the error of a fold: the data is rejected, or the store is unavailable. A duplicate key is no fault of the record:
/// a fold reads which rows exist before it inserts, so another writer added the row meanwhile, and the retry finds it.
fn fold_error(error: sqlx::Error) -> StoreError {
    let refused = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    match refused.map(|refused| (refused.number(), refused.message())) {
        // Null for a required value, out of range, too long, and check constraints (the last is MariaDB's).
        Some((number @ (1048 | 1264 | 1406 | 1690 | 3819 | 4025), message)) => {
            StoreError::Unfoldable(format!("MySQL error {number}: {message}"))
        }
        // Truncated value, wrong type, invalid text. The message quotes the value, which may be personal.
        Some((number @ (1265 | 1292 | 1366), _)) => StoreError::Unfoldable(format!("MySQL error {number}")),
        _ => error.into(),
    }
}
