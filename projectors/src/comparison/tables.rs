//! Reads the tables of views in MySQL, page by page in the order of their primary keys.

use anyhow::Context;
use futures::{Stream, TryStreamExt, stream};
use sqlx::{
    AssertSqlSafe, Connection, FromRow, MySql, MySqlConnection, MySqlPool, Row as _, Transaction,
    mysql::MySqlRow,
};
use vidlog_events::Stream as EventStream;
use vidlog_projection_engine::{
    log::{Offsets, Partition},
    view::Projection,
};
use vidlog_schemas::{
    projections::View,
    rows::{CommentRow, MessageRow, UserRow, VideoRow},
};

use super::line::{Line, LineKey, digest};

/// Number of rows per page.
const PAGE: usize = 1000;

/// A row: its primary key, and the content of its line. A row without content is as good as missing: counts of zero.
type Row = (Vec<i64>, Option<String>);

/// A table of a view.
struct Table {
    name: &'static str,
    /// The columns of its primary key. All are signed integers, so the server orders rows as [`LineKey`]
    /// does.
    key: &'static [&'static str],
    content: Content,
}

/// How the content of a row's line is made.
enum Content {
    /// By a function.
    Row(fn(&MySqlRow) -> sqlx::Result<String>),
    /// The values of these columns. They are counts, and a row of zeros is as good as missing.
    Counts(&'static [&'static str]),
}

static ALL: [Table; 12] = [
    Table { name: "users", key: &["user_id"], content: Content::Row(user) },
    Table { name: "videos", key: &["video_id"], content: Content::Row(video) },
    Table { name: "comments", key: &["video_id", "comment_id"], content: Content::Row(comment) },
    Table { name: "messages", key: &["low_id", "high_id", "create_ms"], content: Content::Row(message) },
    Table { name: "conversations", key: &["low_id", "high_id"], content: Content::Row(conversation) },
    Table { name: "likes", key: &["video_id", "user_id"], content: Content::Row(like) },
    Table { name: "follows", key: &["follower_id", "followee_id"], content: Content::Row(follow) },
    Table { name: "video_like_counts", key: &["video_id"], content: Content::Counts(&["like_count"]) },
    Table {
        name: "user_like_counts",
        key: &["user_id"],
        content: Content::Counts(&["total_favorited", "favorite_count"]),
    },
    Table {
        name: "user_follow_counts",
        key: &["user_id"],
        content: Content::Counts(&["follow_count", "follower_count"]),
    },
    Table { name: "video_comment_counts", key: &["video_id"], content: Content::Counts(&["comment_count"]) },
    Table {
        name: "user_work_counts",
        key: &["user_id"],
        content: Content::Counts(&["work_count", "upload_count"]),
    },
];

/// Reads the rows of a view in order. The server is idle between two pages, so a slow reader costs it
/// nothing.
pub(crate) fn rows<'a>(
    projection: &Projection,
    connection: &'a mut MySqlConnection,
) -> impl Stream<Item = anyhow::Result<Line>> + Send + use<'a> {
    let tables = Table::of(projection).into_iter();
    let pages = stream::try_unfold((connection, tables, None), |(connection, mut tables, at)| async move {
        let Some((table, last)) = at.or_else(|| Some((tables.next()?, None))) else {
            return anyhow::Ok(None);
        };
        let page = table.page(&mut *connection, last.as_deref()).await;
        let page = page.with_context(|| format!("failed to read the table {} in MySQL", table.name))?;
        let next = page.last().map(|(key, _)| (table, Some(key.clone())));
        let line = |(key, content): Row| Some(Ok((LineKey::row(table.name, &key), content?)));
        let lines = page.into_iter().filter_map(line);
        Ok(Some((stream::iter(lines), (connection, tables, next))))
    });
    pages.try_flatten()
}

/// Opens a transaction that shows a view in MySQL at one point in time, no matter how long it is read. Also
/// returns the offsets that the view has folded.
pub(crate) async fn open_snapshot<'a>(
    connection: &'a mut MySqlConnection,
    projection: &Projection,
) -> anyhow::Result<(Offsets, Transaction<'a, MySql>)> {
    // Applies to the next transaction only.
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *connection).await?;
    let mut transaction = connection.begin_with("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
    let table = projection.catalogued.checkpoint_table();
    let select = format!("SELECT stream, partition_no, next_offset FROM {table} WHERE record_key = ''");
    let stored: Vec<(String, i32, i64)> =
        sqlx::query_as(AssertSqlSafe(select)).fetch_all(&mut *transaction).await?;
    let streams: Vec<EventStream> = projection.streams().collect();
    let offset = |(stream, number, next): (String, i32, i64)| {
        let stream = *streams.iter().find(|known| known.name() == stream)?;
        Some((Partition { stream, number }, next))
    };
    Ok((stored.into_iter().filter_map(offset).collect(), transaction))
}

/// Opens a dedicated connection for a snapshot. It stays open while the log is folded, which may take longer
/// than the server's timeout for idle connections of the pool.
pub(crate) async fn snapshot_connection(pool: &MySqlPool) -> anyhow::Result<MySqlConnection> {
    let mut connection = pool.acquire().await.context("failed to reach MySQL")?.detach();
    sqlx::query("SET SESSION wait_timeout = DEFAULT").execute(&mut connection).await?;
    Ok(connection)
}

impl Table {
    /// Returns the tables of a projection's view in the order of their names; none for a view in Redis.
    fn of(projection: &Projection) -> Vec<&'static Self> {
        let names = match projection.catalogued.view {
            View::MySql(tables) => tables,
            View::Redis(_) => &[],
        };
        let mut tables: Vec<_> =
            names.iter().filter_map(|name| ALL.iter().find(|table| table.name == *name)).collect();
        tables.sort_unstable_by_key(|table| table.name);
        tables
    }

    /// Returns the first page of rows, or the page after a key.
    async fn page(&self, connection: &mut MySqlConnection, after: Option<&[i64]>) -> sqlx::Result<Vec<Row>> {
        let (condition, values) = after.map_or_else(Default::default, |after| self.after(after));
        let (table, key) = (self.name, self.key.join(", "));
        let select =
            format!("SELECT * FROM {table} FORCE INDEX (PRIMARY) {condition} ORDER BY {key} LIMIT {PAGE}");
        let mut query = sqlx::query(AssertSqlSafe(select));
        for value in values {
            query = query.bind(value);
        }
        query.fetch_all(connection).await?.iter().map(|row| self.read(row)).collect()
    }

    /// Builds the condition that a row comes after a key, and its values. Not `(a, b) > (?, ?)`: for that the
    /// server scans the index from its start for every page.
    fn after(&self, after: &[i64]) -> (String, Vec<i64>) {
        let mut alternatives = Vec::new();
        let mut values = Vec::new();
        let mut same = String::new();
        for (number, column) in self.key.iter().enumerate() {
            alternatives.push(format!("{same}{column} > ?"));
            values.extend(after.iter().take(number + 1));
            same = format!("{same}{column} = ? AND ");
        }
        (format!("WHERE {}", alternatives.join(" OR ")), values)
    }

    fn read(&self, row: &MySqlRow) -> sqlx::Result<Row> {
        let key = self.key.iter().map(|column| row.try_get(*column)).collect::<sqlx::Result<_>>()?;
        Ok((key, self.content.read(row)?))
    }
}

impl Content {
    fn read(&self, row: &MySqlRow) -> sqlx::Result<Option<String>> {
        match self {
            Self::Row(content) => content(row).map(Some),
            Self::Counts(columns) => {
                let counts: Vec<i64> =
                    columns.iter().map(|column| row.try_get(*column)).collect::<sqlx::Result<_>>()?;
                let texts: Vec<_> = counts.iter().map(ToString::to_string).collect();
                Ok(counts.iter().any(|count| *count != 0).then(|| texts.join(" ")))
            }
        }
    }
}

fn user(row: &MySqlRow) -> sqlx::Result<String> {
    let UserRow { name, registered_ms, .. } = UserRow::from_row(row)?;
    Ok(format!("{} {registered_ms}", digest(&name)))
}

fn video(row: &MySqlRow) -> sqlx::Result<String> {
    let row = VideoRow::from_row(row)?;
    let VideoRow { author_id, state, uploaded_ms, published_ms, play_key, cover_key, .. } = &row;
    let (title, reason) = (digest(&row.title), digest(&row.reason));
    Ok(format!("{author_id} {title} {state} {uploaded_ms} {published_ms} {play_key} {cover_key} {reason}"))
}

fn comment(row: &MySqlRow) -> sqlx::Result<String> {
    let CommentRow { user_id, text, posted_ms, deleted, .. } = CommentRow::from_row(row)?;
    Ok(format!("{user_id} {} {posted_ms} {deleted}", digest(&text)))
}

fn message(row: &MySqlRow) -> sqlx::Result<String> {
    let MessageRow { message_id, from_user_id: from, to_user_id: to, content, .. } =
        MessageRow::from_row(row)?;
    Ok(format!("{message_id} {from} {to} {}", digest(&content)))
}

fn conversation(row: &MySqlRow) -> sqlx::Result<String> {
    let (message, from, last_ms): (i64, i64, i64) =
        (row.try_get("last_message_id")?, row.try_get("last_from_id")?, row.try_get("last_ms")?);
    let content: String = row.try_get("last_content")?;
    Ok(format!("{message} {from} {} {last_ms}", digest(&content)))
}

fn like(row: &MySqlRow) -> sqlx::Result<String> {
    let (author, liked_ms): (i64, i64) = (row.try_get("author_id")?, row.try_get("liked_ms")?);
    Ok(format!("{author} {liked_ms}"))
}

fn follow(row: &MySqlRow) -> sqlx::Result<String> {
    let followed_ms: i64 = row.try_get("followed_ms")?;
    Ok(followed_ms.to_string())
}

#[cfg(test)]
mod tests {
    use crate::projections;

    use super::*;

    #[test]
    fn tables_of_every_view_are_ordered_by_name() {
        for projection in projections::ALL {
            let View::MySql(names) = projection.catalogued.view else {
                continue;
            };
            let known: Vec<_> = Table::of(&projection).into_iter().map(|table| table.name).collect();
            let mut names = names.to_vec();
            names.sort_unstable();
            assert_eq!(known, names, "{}", projection.name());
        }
    }

    #[test]
    fn page_starts_after_the_last_primary_key() {
        let messages = ALL.iter().find(|table| table.name == "messages").unwrap();
        let (condition, values) = messages.after(&[1, 2, 3]);
        assert_eq!(
            condition,
            "WHERE low_id > ? OR low_id = ? AND high_id > ? OR low_id = ? AND high_id = ? AND create_ms > ?"
        );
        assert_eq!(values, [1, 1, 2, 1, 2, 3]);
    }
}
