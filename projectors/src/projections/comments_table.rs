//! The table `comments`. A deleted comment stays as a row without text, so that a repeated event can't revive it.

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{CommentEvent, Event};
use vidlog_schemas::rows::CommentRow;

use crate::Record;

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    write(connection, project(records)).boxed()
}

/// What a batch comes to: first the posted, then the deleted, as a deletion is final.
#[derive(Default)]
struct Writes {
    posted: Vec<CommentRow>,
    deleted: Vec<(i64, i64)>,
}

fn project(records: &[Record]) -> Writes {
    let mut writes = Writes::default();
    for record in records {
        let Event::Comment(event) = &record.envelope.event else {
            continue;
        };
        match event {
            CommentEvent::CommentPosted(posted) => writes.posted.push(CommentRow {
                comment_id: posted.comment_id.get(),
                video_id: posted.video_id.get(),
                user_id: posted.user_id.get(),
                text: posted.text.reveal().clone(),
                posted_ms: record.envelope.time_ms,
                deleted: false,
            }),
            CommentEvent::CommentDeleted(deleted) => {
                writes.deleted.push((deleted.video_id.get(), deleted.comment_id.get()));
            }
        }
    }
    writes
}

async fn write(connection: &mut MySqlConnection, writes: Writes) -> sqlx::Result<()> {
    if !writes.posted.is_empty() {
        QueryBuilder::new(
            "INSERT IGNORE INTO comments (video_id, comment_id, user_id, text, posted_ms, deleted) ",
        )
        .push_values(writes.posted, |mut values, row| {
            values
                .push_bind(row.video_id)
                .push_bind(row.comment_id)
                .push_bind(row.user_id)
                .push_bind(row.text)
                .push_bind(row.posted_ms)
                .push_bind(row.deleted);
        })
        .build()
        .execute(&mut *connection)
        .await?;
    }
    if !writes.deleted.is_empty() {
        QueryBuilder::new("UPDATE comments SET deleted = TRUE, text = '' WHERE (video_id, comment_id) IN ")
            .push_tuples(writes.deleted, |mut tuple, (video, comment)| {
                tuple.push_bind(video).push_bind(comment);
            })
            .build()
            .execute(connection)
            .await?;
    }
    Ok(())
}
