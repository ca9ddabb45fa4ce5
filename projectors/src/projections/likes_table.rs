//! Table `likes`: durable counterpart of the sets in Redis.

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, LikeEvent};

use super::membership::{Net, net};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::batch;

const DELETE: &str = concat!(
    "DELETE likes FROM ",
    vidlog_schemas::batch!("video_id", "user_id"),
    " STRAIGHT_JOIN likes USING (video_id, user_id)"
);

/// Ids of video and user.
type Pair = (i64, i64);
/// Id of the video's author, and the time of the like in ms.
type Like = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    write(connection, net(records.iter().filter_map(project))).boxed()
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

async fn write(connection: &mut MySqlConnection, net: Net<Pair, Like>) -> sqlx::Result<()> {
    if !net.removed.is_empty() {
        sqlx::query(DELETE).bind(batch::pairs(&net.removed)).execute(&mut *connection).await?;
    }
    if !net.added.is_empty() {
        QueryBuilder::new("INSERT INTO likes (video_id, user_id, author_id, liked_ms) ")
            .push_values(net.added, |mut values, ((video, user), (author, liked_ms))| {
                values.push_bind(video).push_bind(user).push_bind(author).push_bind(liked_ms);
            })
            // Not `INSERT IGNORE`, which would also truncate values that do not fit.
            .push(" ON DUPLICATE KEY UPDATE user_id = likes.user_id")
            .build()
            .execute(connection)
            .await?;
    }
    Ok(())
}
