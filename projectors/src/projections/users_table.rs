//! Table `users`.

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, UserEvent};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::rows::UserRow;

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    insert(connection, records.iter().filter_map(project).collect()).boxed()
}

fn project(record: &Record) -> Option<UserRow> {
    let Event::User(event) = &record.envelope.event else {
        return None;
    };
    match event {
        UserEvent::UserRegistered(registered) => Some(UserRow {
            user_id: registered.user_id.get(),
            name: registered.name.reveal().clone(),
            registered_ms: record.envelope.time_ms,
        }),
    }
}

async fn insert(connection: &mut MySqlConnection, rows: Vec<UserRow>) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    QueryBuilder::new("INSERT INTO users (user_id, name, registered_ms) ")
        .push_values(rows, |mut values, row| {
            values.push_bind(row.user_id).push_bind(row.name).push_bind(row.registered_ms);
        })
        // Not `INSERT IGNORE`, which would also truncate values that do not fit.
        .push(" ON DUPLICATE KEY UPDATE user_id = users.user_id")
        .build()
        .execute(connection)
        .await?;
    Ok(())
}
