//! Friends: mutual follows of a user.

use std::collections::HashMap;

use redis::cmd;
use vidlog_contract::objects::FriendUser;
use vidlog_read_models::{ReadError, ReadModels, Source};
use vidlog_schemas::batch;

use super::list::ListPage;
use crate::paging::{Page, SortKey};

const LATEST: &str = concat!(
    "SELECT low_id, high_id, last_from_id, last_content FROM ",
    vidlog_schemas::batch!("low_id", "high_id"),
    " STRAIGHT_JOIN conversations USING (low_id, high_id)"
);

/// The latest message of a conversation.
struct Latest {
    from_id: i64,
    content: String,
}

/// Reads a user's friends, latest first, each with the latest message between it and the caller; `None` if the user does
/// not exist.
pub(crate) async fn of_user(
    models: &ReadModels,
    source: Source,
    caller: i64,
    user: i64,
    page: Page,
) -> Result<Option<ListPage<FriendUser>>, ReadError> {
    let sort_keys = match source {
        Source::Views => sort_keys_in_views(models, user, page).await?,
        Source::Tables => sort_keys_in_tables(models, user, page).await?,
    };
    let Some(mut sort_keys) = sort_keys else {
        return Ok(None);
    };
    let next = page.truncate(&mut sort_keys, |sort_key| *sort_key);
    let ids: Vec<_> = sort_keys.into_iter().map(|sort_key| sort_key.id).collect();
    let (users, mut latest) = tokio::try_join!(
        models.listed_users(source, Some(caller), &ids),
        latest_messages(models, caller, &ids)
    )?;
    let friends = users.into_iter().map(|user| {
        let latest = latest.remove(&user.id);
        let msg_type = i32::from(latest.as_ref().is_some_and(|latest| latest.from_id == caller));
        FriendUser { user, message: latest.map(|latest| latest.content).unwrap_or_default(), msg_type }
    });
    Ok(Some((friends.collect(), next)))
}

/// The score of a friend is the time of the later of the two follows.
async fn sort_keys_in_views(
    models: &ReadModels,
    user: i64,
    page: Page,
) -> Result<Option<Vec<SortKey>>, ReadError> {
    let keys = &models.keys;
    let exists = cmd("HEXISTS").arg(keys.user_card(user)).arg("name").take();
    let friends = cmd("ZINTER")
        .arg(2)
        .arg(keys.following(user))
        .arg(keys.followers(user))
        .arg("AGGREGATE")
        .arg("MAX")
        .arg("WITHSCORES")
        .take();
    let mut replies = models.views.pipeline(&[exists, friends]).await?;
    let exists: bool = replies.take()?;
    let friends: Vec<(i64, i64)> = replies.take()?;
    if !exists {
        return Ok(None);
    }
    let mut sort_keys: Vec<_> = friends.into_iter().map(|(id, score)| SortKey { score, id }).collect();
    sort_keys.sort_by_cached_key(|sort_key| sort_key.order());
    sort_keys.retain(|sort_key| page.after.is_none_or(|after| sort_key.is_after(after)));
    Ok(Some(sort_keys))
}

/// `?` are the user, the score (twice) and the id of the last item of the previous page, and the number of rows. Looks up
/// every follow of the user, but not every follower.
const FRIENDS: &str =
    "SELECT GREATEST(there.followed_ms, back.followed_ms) AS score, there.followee_id AS friend_id
     FROM follows AS there FORCE INDEX (PRIMARY) STRAIGHT_JOIN follows AS back FORCE INDEX (PRIMARY)
         ON back.follower_id = there.followee_id AND back.followee_id = there.follower_id
     WHERE there.follower_id = ?
     HAVING score < ? OR (score = ? AND friend_id < ?) ORDER BY score DESC, friend_id DESC LIMIT ?";

async fn sort_keys_in_tables(
    models: &ReadModels,
    user: i64,
    page: Page,
) -> Result<Option<Vec<SortKey>>, ReadError> {
    if !models.user_exists(Source::Tables, user).await? {
        return Ok(None);
    }
    let after = page.after.unwrap_or(SortKey { score: i64::MAX, id: i64::MAX });
    let query = sqlx::query_as(FRIENDS)
        .bind(user)
        .bind(after.score)
        .bind(after.score)
        .bind(after.id)
        .bind(page.fetch_limit() as u64);
    let rows: Vec<(i64, i64)> = models.tables.run_for(user, query.fetch_all(models.tables.pool())).await?;
    Ok(Some(rows.into_iter().map(|(score, id)| SortKey { score, id }).collect()))
}

/// Reads the latest message between the caller and each of others, by the other's id.
async fn latest_messages(
    models: &ReadModels,
    caller: i64,
    others: &[i64],
) -> Result<HashMap<i64, Latest>, ReadError> {
    if others.is_empty() {
        return Ok(HashMap::new());
    }
    let pairs: Vec<_> = others.iter().map(|other| (caller.min(*other), caller.max(*other))).collect();
    let query = sqlx::query_as(LATEST).bind(batch::pairs(&pairs));
    let rows: Vec<(i64, i64, i64, String)> = models.tables.run(query.fetch_all(models.tables.pool())).await?;
    let latest = rows.into_iter().map(|(low, high, from_id, content)| {
        (if low == caller { high } else { low }, Latest { from_id, content })
    });
    Ok(latest.collect())
}
