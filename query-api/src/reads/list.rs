//! The lists that are one ZSET of ids: works, uploads, favourites, following, followers.

use redis::{Cmd, cmd};
use vidlog_contract::objects::{User, Video};
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::keys::Key;

use crate::paging::{Page, Place};

/// A list of a user's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum List {
    /// Its published videos, the newest upload first.
    Works(i64),
    /// Its videos in any state, the newest upload first.
    Uploads(i64),
    /// The videos that it likes, the latest like first.
    Favorites(i64),
    /// Whom it follows, the latest follow first.
    Following(i64),
    /// Who follows it, the latest follow first.
    Followers(i64),
}

/// A part of a list, and the cursor of the next part.
pub(crate) type Part<T> = (Vec<T>, Option<String>);

/// A list of videos, if there is such a user.
pub(crate) async fn videos(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    list: List,
    page: Page,
) -> Result<Option<Part<Video>>, ReadError> {
    let Some((ids, next)) = ids(models, source, list, page).await? else {
        return Ok(None);
    };
    let videos = models.videos(source, viewer, &ids).await?;
    Ok(Some((videos.into_iter().flatten().collect(), next)))
}

/// A list of users, if there is such a user.
pub(crate) async fn users(
    models: &ReadModels,
    source: Source,
    viewer: Option<i64>,
    list: List,
    page: Page,
) -> Result<Option<Part<User>>, ReadError> {
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
) -> Result<Option<Part<i64>>, ReadError> {
    let places = match source {
        Source::Views => places_in_views(models, list, page).await?,
        Source::Tables => places_in_tables(models, list, page).await?,
    };
    let Some(mut places) = places else {
        return Ok(None);
    };
    let next = page.cut(&mut places, |place| *place);
    Ok(Some((places.into_iter().map(|place| place.id).collect(), next)))
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

    /// The list as places, in the order of the ZSET: `?` are the user, the score and the digits of the place after
    /// which to begin, and how many to fetch.
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
            " < ? OR CAST(",
            $id,
            " AS CHAR) < ?) ORDER BY ",
            $score,
            " DESC, CAST(",
            $id,
            " AS CHAR) DESC LIMIT ?"
        )
    };
}

const WORKS: &str = list_sql!("videos", "video_id", "video_id", "author_id = ? AND state = 1");
const UPLOADS: &str = list_sql!("videos", "video_id", "video_id", "author_id = ?");
const FAVORITES: &str = list_sql!("likes", "video_id", "liked_ms", "user_id = ?");
const FOLLOWING: &str = list_sql!("follows", "followee_id", "followed_ms", "follower_id = ?");
const FOLLOWERS: &str = list_sql!("follows", "follower_id", "followed_ms", "followee_id = ?");

/// One round trip for a first page, two for another: how many share the score of the last place must be known first,
/// because they all come again.
async fn places_in_views(
    models: &ReadModels,
    list: List,
    page: Page,
) -> Result<Option<Vec<Place>>, ReadError> {
    let exists = cmd("HEXISTS").arg(models.keys.user_card(list.user())).arg("name").take();
    let key = list.key(models);
    let Some(after) = page.after else {
        let mut replies = models.views.pipeline(&[exists, newest(&key, page.fetch())]).await?;
        let exists: bool = replies.take()?;
        return Ok(exists.then_some(places(replies.take()?)));
    };
    let ties = cmd("ZCOUNT").arg(&key).arg(after.score).arg(after.score).take();
    let mut replies = models.views.pipeline(&[exists, ties]).await?;
    let (exists, ties): (bool, usize) = (replies.take()?, replies.take()?);
    if !exists {
        return Ok(None);
    }
    let from = models.views.query(&newest_from(&key, after.score, ties + page.fetch())).await?;
    let mut places = places(from);
    places.retain(|place| place.is_after(after));
    places.truncate(page.fetch());
    Ok(Some(places))
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

fn places(entries: Vec<(i64, i64)>) -> Vec<Place> {
    entries.into_iter().map(|(id, score)| Place { score, id }).collect()
}

async fn places_in_tables(
    models: &ReadModels,
    list: List,
    page: Page,
) -> Result<Option<Vec<Place>>, ReadError> {
    if !models.user_exists(Source::Tables, list.user()).await? {
        return Ok(None);
    }
    let after = page.after.unwrap_or(Place { score: i64::MAX, id: i64::MAX });
    let query = sqlx::query_as(list.sql())
        .bind(list.user())
        .bind(after.score)
        .bind(after.score)
        .bind(after.id.to_string())
        .bind(page.fetch() as u64);
    let rows: Vec<(i64, i64)> = models.tables.run(query.fetch_all(models.tables.pool())).await?;
    Ok(Some(rows.into_iter().map(|(score, id)| Place { score, id }).collect()))
}
