//! Table `comments`. A deleted comment stays as a row without text, even if the deletion arrives first:
//! deletion is final, and a repeated event cannot restore the comment.

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{CommentEvent, Event};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::{batch, rows::CommentRow};

const DELETE: &str = concat!(
    "UPDATE ",
    vidlog_schemas::batch!("video_id", "comment_id"),
    " STRAIGHT_JOIN comments USING (video_id, comment_id) SET deleted = TRUE, text = ''"
);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    write(connection, project(records)).boxed()
}

/// Writes of a batch.
#[derive(Default)]
struct Writes {
    /// Rows of posted comments and of deletions, in order; for each id the first row counts.
    rows: Vec<CommentRow>,
    /// Video and comment ids of deletions.
    deleted: Vec<(i64, i64)>,
}

fn project(records: &[Record]) -> Writes {
    let mut writes = Writes::default();
    for record in records {
        let Event::Comment(event) = &record.envelope.event else {
            continue;
        };
        match event {
            CommentEvent::CommentPosted(posted) => writes.rows.push(CommentRow {
                comment_id: posted.comment_id.get(),
                video_id: posted.video_id.get(),
                user_id: posted.user_id.get(),
                text: posted.text.reveal().clone(),
                posted_ms: record.envelope.time_ms,
                deleted: false,
            }),
            CommentEvent::CommentDeleted(deleted) => {
                let (video_id, comment_id) = (deleted.video_id.get(), deleted.comment_id.get());
                writes.deleted.push((video_id, comment_id));
                writes.rows.push(CommentRow {
                    comment_id,
                    video_id,
                    user_id: 0,
                    text: String::new(),
                    posted_ms: 0,
                    deleted: true,
                });
            }
        }
    }
    writes
}

async fn write(connection: &mut MySqlConnection, writes: Writes) -> sqlx::Result<()> {
    if !writes.rows.is_empty() {
        QueryBuilder::new("INSERT INTO comments (video_id, comment_id, user_id, text, posted_ms, deleted) ")
            .push_values(writes.rows, |mut values, row| {
                values
                    .push_bind(row.video_id)
                    .push_bind(row.comment_id)
                    .push_bind(row.user_id)
                    .push_bind(row.text)
                    .push_bind(row.posted_ms)
                    .push_bind(row.deleted);
            })
            // Not `INSERT IGNORE`, which would also truncate values that do not fit.
            .push(" ON DUPLICATE KEY UPDATE comment_id = comments.comment_id")
            .build()
            .execute(&mut *connection)
            .await?;
    }
    if !writes.deleted.is_empty() {
        sqlx::query(DELETE).bind(batch::pairs(&writes.deleted)).execute(connection).await?;
    }
    Ok(())
}
