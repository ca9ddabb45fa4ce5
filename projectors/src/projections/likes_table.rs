//! Table `likes`, the durable counterpart of the sets in Redis, and the counts of its rows.

use std::collections::HashMap;

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, LikeEvent};

use super::{
    counts::{Changes, CountTable},
    membership::{Net, net},
};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::batch;

const LOAD: &str = concat!(
    "SELECT video_id, user_id, author_id FROM ",
    vidlog_schemas::batch!("video_id", "user_id"),
    " STRAIGHT_JOIN likes USING (video_id, user_id)"
);
const DELETE: &str = concat!(
    "DELETE likes FROM ",
    vidlog_schemas::batch!("video_id", "user_id"),
    " STRAIGHT_JOIN likes USING (video_id, user_id)"
);
const OF_VIDEOS: CountTable<1> = CountTable {
    insert: "INSERT INTO video_like_counts (video_id, like_count) ",
    add: " ON DUPLICATE KEY UPDATE like_count = like_count + VALUES(like_count)",
};
const OF_USERS: CountTable<2> = CountTable {
    insert: "INSERT INTO user_like_counts (user_id, total_favorited, favorite_count) ",
    add: " ON DUPLICATE KEY UPDATE total_favorited = total_favorited + VALUES(total_favorited),
            favorite_count = favorite_count + VALUES(favorite_count)",
};

/// Ids of video and user.
type Pair = (i64, i64);
/// Id of the video's author, and the time of the like in ms.
type Like = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        if records.is_empty() {
            return Ok(());
        }
        let net = net(records.iter().filter_map(project));
        let rows: Vec<(i64, i64, i64)> =
            sqlx::query_as(LOAD).bind(batch::pairs(net.keys())).fetch_all(&mut *connection).await?;
        let authors = rows.into_iter().map(|(video, user, author)| ((video, user), author)).collect();
        write(connection, net, &authors).await
    }
    .boxed()
}

fn project(record: &Record) -> Option<(Pair, Option<Like>)> {
    let Event::Like(event) = &record.envelope.event else {
        return None;
    };
    Some(match event {
        LikeEvent::VideoLiked(liked) => (
            (liked.video_id.get(), liked.user_id.get()),
            Some((liked.author_id.get(), record.envelope.time_ms)),
        ),
        LikeEvent::VideoUnliked(unliked) => ((unliked.video_id.get(), unliked.user_id.get()), None),
    })
}

/// Writes a batch. `authors` has the rows of its likes that the table has, with the video's author.
async fn write(
    connection: &mut MySqlConnection,
    net: Net<Pair, Like>,
    authors: &HashMap<Pair, i64>,
) -> sqlx::Result<()> {
    let Net { removed, added } = net.on(|pair| authors.contains_key(pair));
    let (mut of_videos, mut of_users) = (Changes::default(), Changes::default());
    let mut count = |(video, user): Pair, author: i64, by: i64| {
        of_videos.add(video, [by]);
        of_users.add(author, [by, 0]);
        of_users.add(user, [0, by]);
    };
    for pair in &removed {
        count(*pair, authors.get(pair).copied().unwrap_or_default(), -1);
    }
    for (pair, (author, _)) in &added {
        count(*pair, *author, 1);
    }
    if !removed.is_empty() {
        sqlx::query(DELETE).bind(batch::pairs(&removed)).execute(&mut *connection).await?;
    }
    if !added.is_empty() {
        QueryBuilder::new("INSERT INTO likes (video_id, user_id, author_id, liked_ms) ")
            .push_values(added, |mut values, ((video, user), (author, liked_ms))| {
                values.push_bind(video).push_bind(user).push_bind(author).push_bind(liked_ms);
            })
            .build()
            .execute(&mut *connection)
            .await?;
    }
    of_videos.write(&mut *connection, &OF_VIDEOS).await?;
    of_users.write(connection, &OF_USERS).await
}
