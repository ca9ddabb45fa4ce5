//! Table `videos`, and the counts of each author's rows.

use std::collections::{BTreeMap, HashMap};

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, VideoEvent};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::{
    batch,
    rows::{VideoRow, VideoState},
};

use super::counts::{Changes, CountTable};

const LOAD: &str = concat!(
    "SELECT video_id, author_id, state FROM ",
    vidlog_schemas::batch!("video_id"),
    " STRAIGHT_JOIN videos USING (video_id)"
);
const OF_AUTHORS: CountTable<2> = CountTable {
    insert: "INSERT INTO user_work_counts (user_id, work_count, upload_count) ",
    add: " ON DUPLICATE KEY UPDATE work_count = work_count + VALUES(work_count),
            upload_count = upload_count + VALUES(upload_count)",
};

/// The author and the state of a row in the table.
type Known = (i64, i8);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        if records.is_empty() {
            return Ok(());
        }
        let rows = project(records);
        let known: Vec<(i64, i64, i8)> = sqlx::query_as(LOAD)
            .bind(batch::ids(rows.iter().map(|row| &row.video_id)))
            .fetch_all(&mut *connection)
            .await?;
        let known = known.into_iter().map(|(video, author, state)| (video, (author, state))).collect();
        let counts = count(&rows, &known);
        upsert(&mut *connection, rows).await?;
        counts.write(connection, &OF_AUTHORS).await
    }
    .boxed()
}

/// Returns one row per video. If the table has the row already, only an outcome is added to it, and only if
/// it has none: an outcome follows its upload, in the same batch or an earlier one.
fn project(records: &[Record]) -> Vec<VideoRow> {
    let mut rows: BTreeMap<i64, VideoRow> = BTreeMap::new();
    for record in records {
        let Event::Video(event) = &record.envelope.event else {
            continue;
        };
        match event {
            VideoEvent::VideoUploaded(uploaded) => {
                rows.entry(uploaded.video_id.get()).or_insert_with(|| VideoRow {
                    title: uploaded.title.reveal().clone(),
                    uploaded_ms: record.envelope.time_ms,
                    ..empty(uploaded.video_id.get(), uploaded.author_id.get())
                });
            }
            VideoEvent::VideoPublished(published) => {
                let row = rows
                    .entry(published.video_id.get())
                    .or_insert_with(|| empty(published.video_id.get(), published.author_id.get()));
                if row.state == VideoState::Processing.number() {
                    row.state = VideoState::Published.number();
                    row.published_ms = published.published_ms;
                    published.play_key.clone_into(&mut row.play_key);
                    published.cover_key.clone_into(&mut row.cover_key);
                }
            }
            VideoEvent::VideoRejected(rejected) => {
                let row = rows
                    .entry(rejected.video_id.get())
                    .or_insert_with(|| empty(rejected.video_id.get(), rejected.author_id.get()));
                if row.state == VideoState::Processing.number() {
                    row.state = VideoState::Rejected.number();
                    rejected.reason.clone_into(&mut row.reason);
                }
            }
        }
    }
    rows.into_values().collect()
}

/// Returns the changes of the counts. `known` has the videos of the batch that the table has.
fn count(rows: &[VideoRow], known: &HashMap<i64, Known>) -> Changes<2> {
    let (processing, published) = (VideoState::Processing.number(), VideoState::Published.number());
    let mut counts = Changes::default();
    for row in rows {
        let known = known.get(&row.video_id);
        let before = known.map_or(processing, |(_, state)| *state);
        let is_published = before == processing && row.state == published;
        let author = known.map_or(row.author_id, |(author, _)| *author);
        counts.add(author, [i64::from(is_published), i64::from(known.is_none())]);
    }
    counts
}

fn empty(video_id: i64, author_id: i64) -> VideoRow {
    VideoRow {
        video_id,
        author_id,
        title: String::new(),
        state: VideoState::Processing.number(),
        uploaded_ms: 0,
        published_ms: 0,
        play_key: String::new(),
        cover_key: String::new(),
        reason: String::new(),
    }
}

async fn upsert(connection: &mut MySqlConnection, rows: Vec<VideoRow>) -> sqlx::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    // MySQL assigns from left to right, and later expressions see the new values: `state` comes last.
    QueryBuilder::new(
        "INSERT INTO videos (video_id, author_id, title, state, uploaded_ms, published_ms, play_key, cover_key, reason) ",
    )
    .push_values(rows, |mut values, row| {
        values
            .push_bind(row.video_id)
            .push_bind(row.author_id)
            .push_bind(row.title)
            .push_bind(row.state)
            .push_bind(row.uploaded_ms)
            .push_bind(row.published_ms)
            .push_bind(row.play_key)
            .push_bind(row.cover_key)
            .push_bind(row.reason);
    })
    .push(
        " ON DUPLICATE KEY UPDATE
            published_ms = IF(state = 0, VALUES(published_ms), published_ms),
            play_key = IF(state = 0, VALUES(play_key), play_key),
            cover_key = IF(state = 0, VALUES(cover_key), cover_key),
            reason = IF(state = 0, VALUES(reason), reason),
            state = IF(state = 0, VALUES(state), state)",
    )
    .build()
    .execute(connection)
    .await?;
    Ok(())
}
