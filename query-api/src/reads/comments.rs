//! Comments on a video.

use sqlx::FromRow;
use vidlog_contract::{objects::Comment, times};
use vidlog_read_models::{ReadError, ReadModels, Source};

use super::list::ListPage;
use crate::paging::{Page, SortKey};

#[derive(FromRow)]
struct Row {
    comment_id: i64,
    user_id: i64,
    text: String,
    posted_ms: i64,
}

/// Reads the comments on a video, newest first; `None` if no such video is visible to the viewer.
pub(crate) async fn of_video(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    video: i64,
    page: Page,
) -> Result<Option<ListPage<Comment>>, ReadError> {
    let (fact, mut rows) = tokio::try_join!(models.video_fact(source, video), rows(models, video, page))?;
    if !fact.is_some_and(|fact| fact.is_visible_to(viewer)) {
        return Ok(None);
    }
    let next = page.truncate(&mut rows, |row| SortKey { score: row.comment_id, id: row.comment_id });
    let authors: Vec<_> = rows.iter().map(|row| row.user_id).collect();
    let users = models.listed_users(source, viewer, &authors).await?;
    let comments = rows.into_iter().zip(users).map(|(row, user)| Comment {
        id: row.comment_id,
        user,
        content: row.text,
        create_date: times::month_and_day(row.posted_ms),
    });
    Ok(Some((comments.collect(), next)))
}

async fn rows(models: &ReadModels, video: i64, page: Page) -> Result<Vec<Row>, ReadError> {
    let query = sqlx::query_as(
        "SELECT comment_id, user_id, text, posted_ms FROM comments
         WHERE video_id = ? AND comment_id < ? AND NOT deleted ORDER BY comment_id DESC LIMIT ?",
    )
    .bind(video)
    .bind(page.after.map_or(i64::MAX, |after| after.id))
    .bind(page.fetch_limit() as u64);
    models.tables.run_for(video, query.fetch_all(models.tables.pool())).await
}
