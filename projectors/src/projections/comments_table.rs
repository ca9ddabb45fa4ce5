//! Table `comments`. A deleted comment stays as a row without text, even if the deletion arrives first:
//! deletion is final, and a repeated event cannot restore the comment. Table `video_comment_counts`: the comments that
//! are not deleted.

use std::collections::{BTreeMap, HashMap};

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{CommentEvent, Event};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::{batch, rows::CommentRow};

use super::counts::{Changes, CountTable};

const LOAD: &str = concat!(
    "SELECT video_id, comment_id, deleted FROM ",
    vidlog_schemas::batch!("video_id", "comment_id"),
    " STRAIGHT_JOIN comments USING (video_id, comment_id)"
);
const DELETE: &str = concat!(
    "UPDATE ",
    vidlog_schemas::batch!("video_id", "comment_id"),
    " STRAIGHT_JOIN comments USING (video_id, comment_id) SET deleted = TRUE, text = ''"
);
const OF_VIDEOS: CountTable<1> = CountTable {
    insert: "INSERT INTO video_comment_counts (video_id, comment_count) ",
    add: " ON DUPLICATE KEY UPDATE comment_count = comment_count + VALUES(comment_count)",
};

/// Ids of video and comment.
type Pair = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        if records.is_empty() {
            return Ok(());
        }
        let writes = project(records);
        let pairs: Vec<Pair> = writes.rows.iter().map(|row| (row.video_id, row.comment_id)).collect();
        let rows: Vec<(i64, i64, bool)> =
            sqlx::query_as(LOAD).bind(batch::pairs(&pairs)).fetch_all(&mut *connection).await?;
        let known = rows.into_iter().map(|(video, comment, deleted)| ((video, comment), deleted)).collect();
        let counts = count(&writes, &known);
        write(&mut *connection, writes).await?;
        counts.write(connection, &OF_VIDEOS).await
    }
    .boxed()
}

/// Writes of a batch.
#[derive(Default)]
struct Writes {
    /// Rows of posted comments and of deletions, in order; for each id the first row counts.
    rows: Vec<CommentRow>,
    /// Video and comment ids of deletions.
    deleted: Vec<Pair>,
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

/// Returns the changes of the counts. `known` has the comments of the batch that the table has, and whether each is
/// deleted.
fn count(writes: &Writes, known: &HashMap<Pair, bool>) -> Changes<1> {
    let visible = |pair: &Pair| known.get(pair).map(|deleted| i64::from(!deleted));
    // A deletion decides, no matter whether it is before or after the comment.
    let mut after: BTreeMap<Pair, i64> = BTreeMap::new();
    for row in &writes.rows {
        let pair = (row.video_id, row.comment_id);
        let is_visible = after.entry(pair).or_insert_with(|| visible(&pair).unwrap_or(1));
        if row.deleted {
            *is_visible = 0;
        }
    }
    let mut counts = Changes::default();
    for (pair, after) in after {
        counts.add(pair.0, [after - visible(&pair).unwrap_or(0)]);
    }
    counts
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
