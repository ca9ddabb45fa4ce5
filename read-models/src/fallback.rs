//! Cards from the MySQL tables, used while Redis is unavailable or a view is incomplete. Each function sends two queries
//! for any number of ids: slower than the views, but exact.

use std::collections::HashMap;

use sqlx::{MySql, QueryBuilder};
use vidlog_schemas::rows::{VideoRow, VideoState};

use crate::{
    card::{UserCard, VideoCard},
    error::{ReadError, Store},
    stores::Tables,
};

/// The viewer of an anonymous read. No user has the id 0, so it follows no user and likes no video.
const ANONYMOUS: i64 = 0;

/// Reads the cards of users. Every id has one, also of a user that does not exist.
pub(crate) async fn user_cards(
    tables: &Tables,
    viewer: Option<i64>,
    ids: &[i64],
) -> Result<HashMap<i64, UserCard>, ReadError> {
    let mut cards: HashMap<_, _> = ids.iter().map(|id| (*id, UserCard::default())).collect();
    if ids.is_empty() {
        return Ok(cards);
    }
    let names: Vec<(i64, String)> = {
        let mut query = QueryBuilder::new("SELECT user_id, name FROM users WHERE user_id IN ");
        push_ids(&mut query, ids);
        tables.run(query.build_query_as().persistent(false).fetch_all(tables.pool())).await?
    };
    for (id, name) in names {
        cards.entry(id).or_default().name = Some(name);
    }
    let mut query = user_counts(viewer.unwrap_or(ANONYMOUS), ids);
    let counts: Vec<(String, i64, i64)> =
        tables.run(query.build_query_as().persistent(false).fetch_all(tables.pool())).await?;
    for (what, id, count) in counts {
        let card = cards.entry(id).or_default();
        match what.as_str() {
            "following" => card.follow_count = count,
            "followers" => card.follower_count = count,
            "followed" => card.is_follow = count > 0,
            "favorited" => card.total_favorited = count,
            "works" => card.work_count = count,
            _ => card.favorite_count = count,
        }
    }
    Ok(cards)
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
    let rows: Vec<VideoRow> = {
        let mut query = QueryBuilder::new("SELECT * FROM videos WHERE video_id IN ");
        push_ids(&mut query, ids);
        tables.run(query.build_query_as().persistent(false).fetch_all(tables.pool())).await?
    };
    let mut cards = HashMap::with_capacity(rows.len());
    for row in rows {
        cards.insert(row.video_id, video_card(row)?);
    }
    let mut query = video_counts(viewer.unwrap_or(ANONYMOUS), ids);
    let counts: Vec<(String, i64, i64)> =
        tables.run(query.build_query_as().persistent(false).fetch_all(tables.pool())).await?;
    for (what, id, count) in counts {
        cards.entry(id).and_modify(|card| match what.as_str() {
            "likes" => card.favorite_count = count,
            "comments" => card.comment_count = count,
            _ => card.is_favorite = count > 0,
        });
    }
    Ok(cards)
}

/// Appends `(1, 2, 3)` after an `IN`.
fn push_ids(query: &mut QueryBuilder<MySql>, ids: &[i64]) {
    query.push("(");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")");
}

fn user_counts(viewer: i64, ids: &[i64]) -> QueryBuilder<MySql> {
    let mut query =
        QueryBuilder::new("SELECT 'following', follower_id, COUNT(*) FROM follows WHERE follower_id IN ");
    push_ids(&mut query, ids);
    query.push(" GROUP BY follower_id UNION ALL SELECT 'followers', followee_id, COUNT(*) FROM follows");
    query.push(" WHERE followee_id IN ");
    push_ids(&mut query, ids);
    query.push(
        " GROUP BY followee_id UNION ALL SELECT 'followed', followee_id, 1 FROM follows WHERE follower_id = ",
    );
    query.push_bind(viewer).push(" AND followee_id IN ");
    push_ids(&mut query, ids);
    query.push(" UNION ALL SELECT 'favorited', author_id, COUNT(*) FROM likes WHERE author_id IN ");
    push_ids(&mut query, ids);
    query.push(
        " GROUP BY author_id UNION ALL SELECT 'works', author_id, COUNT(*) FROM videos WHERE (state = ",
    );
    query.push_bind(VideoState::Published.number()).push(" OR author_id = ").push_bind(viewer);
    query.push(") AND author_id IN ");
    push_ids(&mut query, ids);
    query.push(
        " GROUP BY author_id UNION ALL SELECT 'favorites', user_id, COUNT(*) FROM likes WHERE user_id IN ",
    );
    push_ids(&mut query, ids);
    query.push(" GROUP BY user_id");
    query
}

fn video_counts(viewer: i64, ids: &[i64]) -> QueryBuilder<MySql> {
    let mut query = QueryBuilder::new("SELECT 'likes', video_id, COUNT(*) FROM likes WHERE video_id IN ");
    push_ids(&mut query, ids);
    query.push(" GROUP BY video_id UNION ALL SELECT 'comments', video_id, COUNT(*) FROM comments");
    query.push(" WHERE NOT deleted AND video_id IN ");
    push_ids(&mut query, ids);
    query.push(" GROUP BY video_id UNION ALL SELECT 'liked', video_id, 1 FROM likes WHERE user_id = ");
    query.push_bind(viewer).push(" AND video_id IN ");
    push_ids(&mut query, ids);
    query
}

fn video_card(row: VideoRow) -> Result<VideoCard, ReadError> {
    let state = VideoState::from_number(row.state)
        .ok_or_else(|| ReadError::fault(Store::MySql, format!("{} is no video state", row.state)))?;
    Ok(VideoCard {
        author_id: row.author_id,
        title: row.title,
        state,
        play_key: row.play_key,
        cover_key: row.cover_key,
        reason: row.reason,
        favorite_count: 0,
        comment_count: 0,
        is_favorite: false,
    })
}
