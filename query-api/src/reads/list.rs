//! The lists that are one ZSET of ids: works, uploads, favorites, following, followers.

use redis::{Cmd, cmd};
use vidlog_contract::objects::{User, Video};
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::keys::Key;

use crate::paging::{Page, SortKey};

/// A list of a user.
#[derive(Clone, Copy, Debug)]
pub(crate) enum List {
    /// Published videos, latest upload first.
    Works(i64),
    /// Videos in any state, latest upload first.
    Uploads(i64),
    /// Liked videos, latest like first.
    Favorites(i64),
    /// Followed users, latest follow first.
    Following(i64),
    /// Followers, latest follow first.
    Followers(i64),
}

/// A page of a list, and the cursor of the next page.
pub(crate) type ListPage<T> = (Vec<T>, Option<String>);

/// Reads a list of videos; `None` if the user does not exist.
pub(crate) async fn videos(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    list: List,
    page: Page,
) -> Result<Option<ListPage<Video>>, ReadError> {
    let Some((ids, next)) = ids(models, source, list, page).await? else {
        return Ok(None);
    };
    let videos = models.videos(source, viewer, &ids).await?;
    Ok(Some((videos.into_iter().flatten().collect(), next)))
}

/// Reads a list of users; `None` if the user does not exist.
pub(crate) async fn users(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    list: List,
    page: Page,
) -> Result<Option<ListPage<User>>, ReadError> {
    let Some((ids, next)) = ids(models, source, list, page).await? else {
        return Ok(None);
    };
    Ok(Some((models.listed_users(source, viewer, &ids).await?, next)))
}

async fn ids(
    models: &ReadModels,
    source: Source,
    list: List,
    page: Page,
) -> Result<Option<ListPage<i64>>, ReadError> {
    let sort_keys = match source {
        Source::Views => sort_keys_in_views(models, list, page).await?,
        Source::Tables => sort_keys_in_tables(models, list, page).await?,
    };
    let Some(mut sort_keys) = sort_keys else {
        return Ok(None);
    };
    let next = page.truncate(&mut sort_keys, |sort_key| *sort_key);
    Ok(Some((sort_keys.into_iter().map(|sort_key| sort_key.id).collect(), next)))
}

impl List {
    const fn user(self) -> i64 {
        match self {
            Self::Works(user)
            | Self::Uploads(user)
            | Self::Favorites(user)
            | Self::Following(user)
            | Self::Followers(user) => user,
        }
    }

    fn key(self, models: &ReadModels) -> Key {
        match self {
            Self::Works(user) => models.keys.works(user),
            Self::Uploads(user) => models.keys.uploads(user),
            Self::Favorites(user) => models.keys.favorites(user),
            Self::Following(user) => models.keys.following(user),
            Self::Followers(user) => models.keys.followers(user),
        }
    }

    /// Returns the query of the sort keys, in the order of an index. `?` are the user, the score (twice) and the id of the
    /// last item of the previous page, and the number of rows.
    const fn sql(self) -> &'static str {
        match self {
            Self::Works(_) => WORKS,
            Self::Uploads(_) => UPLOADS,
            Self::Favorites(_) => FAVORITES,
            Self::Following(_) => FOLLOWING,
            Self::Followers(_) => FOLLOWERS,
        }
    }
}

macro_rules! list_sql {
    ($table:literal, $id:literal, $score:literal, $condition:literal) => {
        concat!(
            "SELECT ",
            $score,
            ", ",
            $id,
            " FROM ",
            $table,
            " WHERE ",
            $condition,
            " AND ",
            $score,
            " <= ? AND (",
            $score,
            " < ? OR ",
            $id,
            " < ?) ORDER BY ",
            $score,
            " DESC, ",
            $id,
            " DESC LIMIT ?"
        )
    };
}

const WORKS: &str = list_sql!("videos", "video_id", "video_id", "author_id = ? AND state = 1");
const UPLOADS: &str = list_sql!("videos", "video_id", "video_id", "author_id = ?");
const FAVORITES: &str = list_sql!("likes", "video_id", "liked_ms", "user_id = ?");
const FOLLOWING: &str = list_sql!("follows", "followee_id", "followed_ms", "follower_id = ?");
const FOLLOWERS: &str = list_sql!("follows", "follower_id", "followed_ms", "followee_id = ?");

/// Reads a page of sort keys: one round trip for the first page, two for a later one. A later page first counts the items
/// with the score of the last item, because a range by score returns all of them again.
async fn sort_keys_in_views(
    models: &ReadModels,
    list: List,
    page: Page,
) -> Result<Option<Vec<SortKey>>, ReadError> {
    let exists = cmd("HEXISTS").arg(models.keys.user_card(list.user())).arg("name").take();
    let key = list.key(models);
    let Some(after) = page.after else {
        let mut replies = models.views.pipeline(&[exists, newest(&key, page.fetch_limit())]).await?;
        let exists: bool = replies.take()?;
        return Ok(exists.then_some(parse_sort_keys(replies.take()?)));
    };
    let ties = cmd("ZCOUNT").arg(&key).arg(after.score).arg(after.score).take();
    let mut replies = models.views.pipeline(&[exists, ties]).await?;
    let (exists, ties): (bool, usize) = (replies.take()?, replies.take()?);
    if !exists {
        return Ok(None);
    }
    let from = models.views.query(&newest_from(&key, after.score, ties + page.fetch_limit())).await?;
    let mut sort_keys = parse_sort_keys(from);
    sort_keys.retain(|sort_key| sort_key.is_after(after));
    sort_keys.truncate(page.fetch_limit());
    Ok(Some(sort_keys))
}

fn newest(key: &Key, count: usize) -> Cmd {
    cmd("ZREVRANGE").arg(key).arg(0).arg(count - 1).arg("WITHSCORES").take()
}

fn newest_from(key: &Key, score: i64, count: usize) -> Cmd {
    cmd("ZREVRANGEBYSCORE")
        .arg(key)
        .arg(score)
        .arg("-inf")
        .arg("WITHSCORES")
        .arg("LIMIT")
        .arg(0)
        .arg(count)
        .take()
}

fn parse_sort_keys(entries: Vec<(i64, i64)>) -> Vec<SortKey> {
    entries.into_iter().map(|(id, score)| SortKey { score, id }).collect()
}

async fn sort_keys_in_tables(
    models: &ReadModels,
    list: List,
    page: Page,
) -> Result<Option<Vec<SortKey>>, ReadError> {
    if !models.user_exists(Source::Tables, list.user()).await? {
        return Ok(None);
    }
    let after = page.after.unwrap_or(SortKey { score: i64::MAX, id: i64::MAX });
    let query = sqlx::query_as(list.sql())
        .bind(list.user())
        .bind(after.score)
        .bind(after.score)
        .bind(after.id)
        .bind(page.fetch_limit() as u64);
    let rows: Vec<(i64, i64)> =
        models.tables.run_for(list.user(), query.fetch_all(models.tables.pool())).await?;
    Ok(Some(rows.into_iter().map(|(score, id)| SortKey { score, id }).collect()))
}
