//! The tables of the views in MySQL, read a page at a time in the order of their primary keys.

use anyhow::Context;
use futures::{Stream, TryStreamExt, stream};
use sqlx::{AssertSqlSafe, FromRow, MySqlConnection, Row as _, mysql::MySqlRow};
use vidlog_schemas::{
    projections::View,
    rows::{CommentRow, MessageRow, UserRow, VideoRow},
};

use super::digest;
use vidlog_projection_engine::view::Projection;

/// Rows that are read at once.
const PAGE: usize = 1000;

/// A row: its primary key, and what its line says of the rest.
pub(crate) type Row = (Vec<i64>, String);

/// A table of a view.
pub(crate) struct Table {
    name: &'static str,
    /// The columns of its primary key. All are signed integers: their order is the same here as there.
    key: &'static [&'static str],
    content: fn(&MySqlRow) -> sqlx::Result<String>,
}

static ALL: [Table; 7] = [
    Table { name: "users", key: &["user_id"], content: user },
    Table { name: "videos", key: &["video_id"], content: video },
    Table { name: "comments", key: &["video_id", "comment_id"], content: comment },
    Table { name: "messages", key: &["low_id", "high_id", "create_ms"], content: message },
    Table { name: "conversations", key: &["low_id", "high_id"], content: conversation },
    Table { name: "likes", key: &["video_id", "user_id"], content: like },
    Table { name: "follows", key: &["follower_id", "followee_id"], content: follow },
];

impl Table {
    /// The tables of a projection's view; none of a view in Redis.
    pub(crate) fn of(projection: &Projection) -> impl Iterator<Item = &'static Self> + use<> {
        let names = match projection.catalogued.view {
            View::MySql(tables) => tables,
            View::Redis(_) => &[],
        };
        names.iter().filter_map(|name| ALL.iter().find(|table| table.name == *name))
    }

    /// The name of a row's line.
    pub(crate) fn line(&self, key: &[i64]) -> String {
        key.iter().fold(self.name.to_owned(), |name, part| format!("{name}/{part}"))
    }

    /// All rows, in the order of the primary key. Between two pages nothing is asked of the server, so that it does not
    /// matter how long who reads them takes.
    pub(crate) fn rows<'a>(
        &'a self,
        connection: &'a mut MySqlConnection,
    ) -> impl Stream<Item = anyhow::Result<Row>> + Send + 'a {
        let pages = stream::try_unfold((connection, None), move |(connection, last)| async move {
            let page = self.page(&mut *connection, last.as_deref()).await;
            let page = page.with_context(|| format!("failed to read the table {} in MySQL", self.name))?;
            let last = page.last().map(|(key, _)| key.clone());
            anyhow::Ok(last.map(|last| (stream::iter(page.into_iter().map(Ok)), (connection, Some(last)))))
        });
        pages.try_flatten()
    }

    /// The first rows, or those that come after a key.
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

    /// The condition that a row comes after a key, and its values. Not `(a, b) > (?, ?)`: for that the server walks over
    /// the whole index, up to the key, for every page.
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
        Ok((key, (self.content)(row)?))
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
    fn every_table_of_a_view_is_known() {
        for projection in projections::ALL {
            let View::MySql(names) = projection.catalogued.view else {
                continue;
            };
            let known: Vec<_> = Table::of(&projection).map(|table| table.name).collect();
            assert_eq!(known, names, "{}", projection.name());
        }
    }

    #[test]
    fn the_rows_after_a_key_are_those_with_a_later_part_after_equal_ones() {
        let messages = ALL.iter().find(|table| table.name == "messages").unwrap();
        let (condition, values) = messages.after(&[1, 2, 3]);
        assert_eq!(
            condition,
            "WHERE low_id > ? OR low_id = ? AND high_id > ? OR low_id = ? AND high_id = ? AND create_ms > ?"
        );
        assert_eq!(values, [1, 1, 2, 1, 2, 3]);
        assert_eq!(messages.line(&[1, 2, 3]), "messages/1/2/3");
    }
}
