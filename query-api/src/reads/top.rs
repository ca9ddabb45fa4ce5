//! The most liked videos of a week.

use redis::{Cmd, cmd};
use vidlog_contract::objects::Video;
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::{
    keys::{Key, TOP_COUNTS, WEEK_MS, feed_week_of, top_score, top_week_of},
    rows::VideoState,
};

use super::list::ListPage;
use crate::paging::{Page, SortKey};

/// Reads a page of the videos published in a week, most liked first, ties by id like every list. Without a week it
/// continues in the week of the cursor, or else returns the newest week in which a video was published.
pub(crate) async fn page(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    week: Option<i64>,
    page: Page,
) -> Result<ListPage<Video>, ReadError> {
    let week = week.or_else(|| page.after.map(|after| top_week_of(after.score)));
    let mut sort_keys = match source {
        Source::Views => sort_keys_in_views(models, week, page).await?,
        Source::Tables => sort_keys_in_tables(models, week, page).await?,
    };
    let next = page.truncate(&mut sort_keys, |sort_key| *sort_key);
    let ids: Vec<_> = sort_keys.into_iter().map(|sort_key| sort_key.id).collect();
    let videos = models.videos(source, viewer, &ids).await?;
    Ok((videos.into_iter().flatten().collect(), next))
}

/// Merges the rankings of all shards: one round trip for the first page, two for a later one, which first counts the ties
/// with the last item, because a range by score returns all of them again.
async fn sort_keys_in_views(
    models: &ReadModels,
    week: Option<i64>,
    page: Page,
) -> Result<Vec<SortKey>, ReadError> {
    let rankings: Vec<Key> = models.keys.shards().map(|shard| models.keys.top(shard)).collect();
    let ties = match page.after {
        Some(after) => ties(models, &rankings, after.score).await?,
        None => vec![0; rankings.len()],
    };
    let range = |(ranking, ties): (&Key, usize)| most_liked(ranking, week, page, ties);
    let commands: Vec<_> = rankings.iter().zip(ties).map(range).collect();
    let mut replies = models.views.pipeline(&commands).await?;
    let mut sort_keys = Vec::new();
    for _ in &commands {
        let entries: Vec<(i64, i64)> = replies.take()?;
        sort_keys.extend(entries.into_iter().map(|(id, score)| SortKey { score, id }));
    }
    sort_keys.retain(|sort_key| page.after.is_none_or(|after| sort_key.is_after(after)));
    sort_keys.sort_by_key(|sort_key| sort_key.order());
    let newest = sort_keys.first().map(|first| top_week_of(first.score));
    sort_keys.retain(|sort_key| Some(top_week_of(sort_key.score)) == week.or(newest));
    sort_keys.truncate(page.fetch_limit());
    Ok(sort_keys)
}

/// Counts the videos with a score, in each ranking.
async fn ties(models: &ReadModels, rankings: &[Key], score: i64) -> Result<Vec<usize>, ReadError> {
    let count = |ranking: &Key| cmd("ZCOUNT").arg(ranking).arg(score).arg(score).take();
    let commands: Vec<_> = rankings.iter().map(count).collect();
    let mut replies = models.views.pipeline(&commands).await?;
    commands.iter().map(|_| replies.take()).collect()
}

/// The command for the most liked videos of a ranking, from the last item of the previous page on. Without a week they are
/// those of the newest week, and fewer of older ones.
fn most_liked(ranking: &Key, week: Option<i64>, page: Page, ties: usize) -> Cmd {
    let (lowest, highest) = match week {
        Some(week) => (top_score(week, 0).to_string(), top_score(week, TOP_COUNTS - 1)),
        None => ("-inf".to_owned(), i64::MAX),
    };
    let highest = page.after.map_or(highest, |after| highest.min(after.score));
    cmd("ZREVRANGEBYSCORE")
        .arg(ranking)
        .arg(highest)
        .arg(lowest)
        .arg("WITHSCORES")
        .arg("LIMIT")
        .arg(0)
        .arg(ties + page.fetch_limit())
        .take()
}

/// Reads the same from the tables: `?` are the state, the first and the last millisecond of the week, the likes (twice) and
/// the id of the last item of the previous page, and the number of rows. Sorts the videos of the week, whose counts are in
/// no index, because videos and likes are folded apart.
const TOP: &str = "SELECT video_id, COALESCE(like_count, 0) AS likes \
     FROM videos LEFT JOIN video_like_counts USING (video_id) \
     WHERE state = ? AND published_ms BETWEEN ? AND ? \
     HAVING likes < ? OR (likes = ? AND video_id < ?) ORDER BY likes DESC, video_id DESC LIMIT ?";

async fn sort_keys_in_tables(
    models: &ReadModels,
    week: Option<i64>,
    page: Page,
) -> Result<Vec<SortKey>, ReadError> {
    let week = match week {
        Some(week) => Some(week),
        None => newest_week_in_tables(models).await?,
    };
    let Some(week) = week else {
        return Ok(Vec::new());
    };
    let first = week.saturating_mul(WEEK_MS);
    let after = match page.after {
        Some(after) => SortKey { score: after.score - top_score(week, 0), id: after.id },
        None => SortKey { score: i64::MAX, id: i64::MAX },
    };
    let query = sqlx::query_as(TOP)
        .bind(VideoState::Published.number())
        .bind(first)
        .bind(first.saturating_add(WEEK_MS - 1))
        .bind(after.score)
        .bind(after.score)
        .bind(after.id)
        .bind(page.fetch_limit() as u64);
    let rows: Vec<(i64, i64)> = models.tables.run_for(week, query.fetch_all(models.tables.pool())).await?;
    Ok(rows.into_iter().map(|(id, likes)| SortKey { score: top_score(week, likes), id }).collect())
}

async fn newest_week_in_tables(models: &ReadModels) -> Result<Option<i64>, ReadError> {
    let query = sqlx::query_scalar("SELECT MAX(published_ms) FROM videos WHERE state = ?")
        .bind(VideoState::Published.number());
    let newest: Option<i64> = models.tables.run(query.fetch_one(models.tables.pool())).await?;
    Ok(newest.map(feed_week_of))
}
