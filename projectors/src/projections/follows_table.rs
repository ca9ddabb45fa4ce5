//! Table `follows`: durable counterpart of the sets in Redis.

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, FollowEvent};

use super::membership::{Net, net};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::batch;

const DELETE: &str = concat!(
    "DELETE follows FROM ",
    vidlog_schemas::batch!("follower_id", "followee_id"),
    " STRAIGHT_JOIN follows USING (follower_id, followee_id)"
);

/// Ids of follower and followee.
type Pair = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    write(connection, net(records.iter().filter_map(project))).boxed()
}

/// Returns the pair and, if it was added, the time in ms.
fn project(record: &Record) -> Option<(Pair, Option<i64>)> {
    let Event::Follow(event) = &record.envelope.event else {
        return None;
    };
    Some(match event {
        FollowEvent::UserFollowed(followed) => {
            ((followed.follower_id.get(), followed.followee_id.get()), Some(record.envelope.time_ms))
        }
        FollowEvent::UserUnfollowed(unfollowed) => {
            ((unfollowed.follower_id.get(), unfollowed.followee_id.get()), None)
        }
    })
}

async fn write(connection: &mut MySqlConnection, net: Net<Pair, i64>) -> sqlx::Result<()> {
    if !net.removed.is_empty() {
        sqlx::query(DELETE).bind(batch::pairs(&net.removed)).execute(&mut *connection).await?;
    }
    if !net.added.is_empty() {
        QueryBuilder::new("INSERT INTO follows (follower_id, followee_id, followed_ms) ")
            .push_values(net.added, |mut values, ((follower, followee), followed_ms)| {
                values.push_bind(follower).push_bind(followee).push_bind(followed_ms);
            })
            // Not `INSERT IGNORE`, which would also truncate values that do not fit.
            .push(" ON DUPLICATE KEY UPDATE follower_id = follows.follower_id")
            .build()
            .execute(connection)
            .await?;
    }
    Ok(())
}
