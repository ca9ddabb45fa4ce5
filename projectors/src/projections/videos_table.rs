//! Table `videos`.

use std::collections::BTreeMap;

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, VideoEvent};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::rows::{VideoRow, VideoState};

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    upsert(connection, project(records)).boxed()
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
