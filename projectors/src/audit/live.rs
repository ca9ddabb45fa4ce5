//! What the views hold, as lines.

mod keys;
mod tables;

use anyhow::Context;
use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, MySql, MySqlConnection, MySqlPool, Transaction};
use vidlog_events::Stream;
use vidlog_schemas::{keys::ViewKey, projections::View};

use super::{Lines, digest};
use vidlog_projection_engine::{
    log::{Offsets, Partition},
    store::Stores,
    view::Projection,
};

pub use self::keys::key_lines;
pub(crate) use self::tables::Table;

/// The lines of some projections' views, in the generations that the target's keys are of. A line of Redis is named as
/// the key is in the first generation.
pub async fn lines(target: &Stores, projections: &[Projection]) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    if projections.iter().any(|projection| matches!(projection.catalogued.view, View::Redis(_))) {
        let is_wanted = |key: &ViewKey| {
            let is_of = |projection: &Projection| projection.catalogued == key.projection;
            projections.iter().any(is_of) && target.keys.generation(&key.projection) == key.generation
        };
        keys::all_lines(target, is_wanted, &mut lines).await.context("failed to read the views in Redis")?;
    }
    for projection in projections {
        if let View::MySql(_) = projection.catalogued.view {
            let mut connection = target.mysql.acquire().await.context("failed to reach MySQL")?;
            row_lines(&mut connection, projection, &mut lines).await?;
        }
    }
    Ok(lines)
}

/// The lines of a view in MySQL and the places that they are at, of one moment, while others go on writing.
pub async fn snapshot(pool: &MySqlPool, projection: &Projection) -> anyhow::Result<(Offsets, Lines)> {
    let mut connection = pool.acquire().await.context("failed to reach MySQL")?;
    let (places, mut transaction) = open_snapshot(&mut connection, projection).await?;
    let mut lines = Lines::new();
    row_lines(&mut transaction, projection, &mut lines).await?;
    transaction.commit().await?;
    Ok((places, lines))
}

/// Begins a transaction that shows a view in MySQL as it is now, however long it is read, and the places that it is at.
pub(crate) async fn open_snapshot<'a>(
    connection: &'a mut MySqlConnection,
    projection: &Projection,
) -> anyhow::Result<(Offsets, Transaction<'a, MySql>)> {
    // Of the next transaction alone.
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *connection).await?;
    let mut transaction = connection.begin_with("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
    let table = projection.catalogued.checkpoint_table();
    let select = format!("SELECT stream, partition_no, next_offset FROM {table} WHERE record_key = ''");
    let stored: Vec<(String, i32, i64)> =
        sqlx::query_as(AssertSqlSafe(select)).fetch_all(&mut *transaction).await?;
    let streams: Vec<Stream> = projection.streams().collect();
    let place = |(stream, number, next): (String, i32, i64)| {
        let stream = *streams.iter().find(|known| known.name() == stream)?;
        Some((Partition { stream, number }, next))
    };
    Ok((stored.into_iter().filter_map(place).collect(), transaction))
}

async fn row_lines(
    connection: &mut MySqlConnection,
    projection: &Projection,
    lines: &mut Lines,
) -> anyhow::Result<()> {
    for table in Table::of(projection) {
        let mut rows = std::pin::pin!(table.rows(connection));
        while let Some((key, content)) = rows.try_next().await? {
            lines.insert(table.line(&key), content);
        }
    }
    Ok(())
}
