//! Cards from the MySQL tables, used while Redis is unavailable or a view is incomplete. One query for any number of ids,
//! and a fixed number of index lookups for each: nothing is counted on read.

use std::collections::HashMap;

use sqlx::FromRow;
use vidlog_schemas::{
    batch,
    rows::{VideoRow, VideoState},
};

use crate::{
    card::{UserCard, VideoCard},
    error::{ReadError, Store},
    stores::Tables,
};

/// The viewer of an anonymous read. No user has the id 0, so it follows no user and likes no video.
const ANONYMOUS: i64 = 0;

/// The order of the parameters is that of the text: the ids, then the viewer.
const USERS: &str = concat!(
    "SELECT batch.user_id, name, follow_count, follower_count, total_favorited, favorite_count, work_count,
         upload_count, viewers.followed_ms
     FROM ",
    vidlog_schemas::batch!("user_id"),
    " LEFT JOIN users ON users.user_id = batch.user_id
     LEFT JOIN user_follow_counts ON user_follow_counts.user_id = batch.user_id
     LEFT JOIN user_like_counts ON user_like_counts.user_id = batch.user_id
     LEFT JOIN user_work_counts ON user_work_counts.user_id = batch.user_id
     LEFT JOIN follows AS viewers FORCE INDEX (PRIMARY) ON viewers.follower_id = ? AND viewers.followee_id = batch.user_id"
);

const VIDEOS: &str = concat!(
    "SELECT videos.*, like_count, comment_count, viewers.liked_ms
     FROM ",
    vidlog_schemas::batch!("video_id"),
    " STRAIGHT_JOIN videos ON videos.video_id = batch.video_id
     LEFT JOIN video_like_counts ON video_like_counts.video_id = batch.video_id
     LEFT JOIN video_comment_counts ON video_comment_counts.video_id = batch.video_id
     LEFT JOIN likes AS viewers FORCE INDEX (PRIMARY) ON viewers.video_id = batch.video_id AND viewers.user_id = ?"
);

#[derive(FromRow)]
#[expect(clippy::struct_field_names, reason = "the fields are named as the columns")]
struct User {
    user_id: i64,
    name: Option<String>,
    follow_count: Option<i64>,
    follower_count: Option<i64>,
    total_favorited: Option<i64>,
    favorite_count: Option<i64>,
    work_count: Option<i64>,
    upload_count: Option<i64>,
    /// When the viewer followed the user.
    followed_ms: Option<i64>,
}

#[derive(FromRow)]
struct Video {
    #[sqlx(flatten)]
    row: VideoRow,
    like_count: Option<i64>,
    comment_count: Option<i64>,
    /// When the viewer liked the video.
    liked_ms: Option<i64>,
}

/// Reads the cards of users. Every id has one, also of a user that does not exist.
pub(crate) async fn user_cards(
    tables: &Tables,
    viewer: Option<i64>,
    ids: &[i64],
) -> Result<HashMap<i64, UserCard>, ReadError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = sqlx::query_as(USERS).bind(batch::ids(ids)).bind(viewer.unwrap_or(ANONYMOUS));
    let users: Vec<User> = tables.run(query.fetch_all(tables.pool())).await?;
    Ok(users.into_iter().map(|user| (user.user_id, user_card(user, viewer))).collect())
}

/// Reads the cards of the videos that exist.
pub(crate) async fn video_cards(
    tables: &Tables,
    viewer: Option<i64>,
    ids: &[i64],
) -> Result<HashMap<i64, VideoCard>, ReadError> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let query = sqlx::query_as(VIDEOS).bind(batch::ids(ids)).bind(viewer.unwrap_or(ANONYMOUS));
    let videos: Vec<Video> = tables.run(query.fetch_all(tables.pool())).await?;
    videos.into_iter().map(|video| Ok((video.row.video_id, video_card(video)?))).collect()
}

fn user_card(user: User, viewer: Option<i64>) -> UserCard {
    let works = if viewer == Some(user.user_id) { user.upload_count } else { user.work_count };
    UserCard {
        name: user.name,
        follow_count: user.follow_count.unwrap_or(0),
        follower_count: user.follower_count.unwrap_or(0),
        is_follow: user.followed_ms.is_some(),
        total_favorited: user.total_favorited.unwrap_or(0),
        work_count: works.unwrap_or(0),
        favorite_count: user.favorite_count.unwrap_or(0),
    }
}

fn video_card(video: Video) -> Result<VideoCard, ReadError> {
    let row = video.row;
    let state = VideoState::from_number(row.state)
        .ok_or_else(|| ReadError::fault(Store::MySql, format!("{} is no video state", row.state)))?;
    Ok(VideoCard {
        author_id: row.author_id,
        title: row.title,
        state,
        play_key: row.play_key,
        cover_key: row.cover_key,
        reason: row.reason,
        favorite_count: video.like_count.unwrap_or(0),
        comment_count: video.comment_count.unwrap_or(0),
        is_favorite: video.liked_ms.is_some(),
    })
}
