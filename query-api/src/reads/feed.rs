//! The global feed.

use redis::cmd;
use vidlog_contract::{limits::FEED_PAGE, objects::Video};
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::{keys::feed_week_of, rows::VideoState};

/// Weeks read first. On a busy system they fill the page.
const FIRST_WEEKS: usize = 2;
/// The most weeks read. The week of `before_ms` may hold no earlier video, but every other week holds at least one, so
/// the page is full if enough videos exist.
const MAX_WEEKS: usize = FEED_PAGE + 1;
/// The most pages of ids skipped because none of their videos has a card (the cards lag far behind the feed).
const MAX_EMPTY_PAGES: usize = 10;

/// A video with its publish time.
pub(crate) struct Published {
    pub(crate) video: Video,
    pub(crate) published_ms: i64,
}

/// Reads the newest videos published before a time, or the newest of all.
pub(crate) async fn page(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    mut before_ms: Option<i64>,
) -> Result<Vec<Published>, ReadError> {
    for _ in 0..MAX_EMPTY_PAGES {
        let entries = match source {
            Source::Views => ids_in_views(models, before_ms).await?,
            Source::Tables => ids_in_tables(models, before_ms).await?,
        };
        let Some((_, oldest_ms)) = entries.last().copied() else {
            break;
        };
        let ids: Vec<_> = entries.iter().map(|(id, _)| *id).collect();
        let videos = models.videos(source, viewer, &ids).await?;
        let page: Vec<_> = videos
            .into_iter()
            .zip(entries)
            .filter_map(|(video, (_, published_ms))| Some(Published { video: video?, published_ms }))
            .collect();
        if !page.is_empty() {
            return Ok(page);
        }
        before_ms = Some(oldest_ms);
    }
    Ok(Vec::new())
}

/// Reads ids and publish times from the newest weeks, and from older ones if those have too few.
async fn ids_in_views(models: &ReadModels, before_ms: Option<i64>) -> Result<Vec<(i64, i64)>, ReadError> {
    let newest_week =
        before_ms.map_or_else(|| "+inf".to_owned(), |before_ms| feed_week_of(before_ms).to_string());
    let command = cmd("ZREVRANGEBYSCORE")
        .arg(models.keys.feed_weeks())
        .arg(newest_week)
        .arg("-inf")
        .arg("LIMIT")
        .arg(0)
        .arg(MAX_WEEKS)
        .take();
    let weeks: Vec<i64> = models.views.query(&command).await?;
    let (first, older) = weeks.split_at(weeks.len().min(FIRST_WEEKS));
    let mut entries = ids_of_weeks(models, first, before_ms).await?;
    if entries.len() < FEED_PAGE && !older.is_empty() {
        entries.extend(ids_of_weeks(models, older, before_ms).await?);
    }
    entries.truncate(FEED_PAGE);
    Ok(entries)
}

async fn ids_of_weeks(
    models: &ReadModels,
    weeks: &[i64],
    before_ms: Option<i64>,
) -> Result<Vec<(i64, i64)>, ReadError> {
    let before = before_ms.map_or_else(|| "+inf".to_owned(), |before_ms| format!("({before_ms}"));
    let newest_of = |week: &i64| {
        cmd("ZREVRANGEBYSCORE")
            .arg(models.keys.feed_week(*week))
            .arg(&before)
            .arg("-inf")
            .arg("WITHSCORES")
            .arg("LIMIT")
            .arg(0)
            .arg(FEED_PAGE)
            .take()
    };
    let commands: Vec<_> = weeks.iter().map(newest_of).collect();
    let mut replies = models.views.pipeline(&commands).await?;
    let mut entries = Vec::with_capacity(FEED_PAGE);
    for _ in &commands {
        entries.extend(replies.take::<Vec<(i64, i64)>>()?);
    }
    Ok(entries)
}

async fn ids_in_tables(models: &ReadModels, before_ms: Option<i64>) -> Result<Vec<(i64, i64)>, ReadError> {
    let query = sqlx::query_as(
        "SELECT video_id, published_ms FROM videos WHERE state = ? AND published_ms < ?
         ORDER BY published_ms DESC LIMIT ?",
    )
    .bind(VideoState::Published.number())
    .bind(before_ms.unwrap_or(i64::MAX))
    .bind(FEED_PAGE as u64);
    models.tables.run(query.fetch_all(models.tables.pool())).await
}
