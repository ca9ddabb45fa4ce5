//! Table `follows`, the durable counterpart of the sets in Redis, and the counts of its rows.

use std::collections::HashSet;

use futures::{FutureExt, future::BoxFuture};
use sqlx::{MySqlConnection, QueryBuilder};
use vidlog_events::{Event, FollowEvent};

use super::{
    counts::{Changes, CountTable},
    membership::{Net, net},
};
use vidlog_projection_engine::log::Record;
use vidlog_schemas::batch;

const LOAD: &str = concat!(
    "SELECT follower_id, followee_id FROM ",
    vidlog_schemas::batch!("follower_id", "followee_id"),
    " STRAIGHT_JOIN follows USING (follower_id, followee_id)"
);
const DELETE: &str = concat!(
    "DELETE follows FROM ",
    vidlog_schemas::batch!("follower_id", "followee_id"),
    " STRAIGHT_JOIN follows USING (follower_id, followee_id)"
);
const OF_USERS: CountTable<2> = CountTable {
    insert: "INSERT INTO user_follow_counts (user_id, follow_count, follower_count) ",
    add: " ON DUPLICATE KEY UPDATE follow_count = follow_count + VALUES(follow_count),
            follower_count = follower_count + VALUES(follower_count)",
};

/// Ids of follower and followee.
type Pair = (i64, i64);

pub(super) fn apply<'a>(
    connection: &'a mut MySqlConnection,
    records: &'a [Record],
) -> BoxFuture<'a, sqlx::Result<()>> {
    async move {
        if records.is_empty() {
            return Ok(());
        }
        let net = net(records.iter().filter_map(project));
        let rows: Vec<Pair> =
            sqlx::query_as(LOAD).bind(batch::pairs(net.keys())).fetch_all(&mut *connection).await?;
        write(connection, net, &rows.into_iter().collect()).await
    }
    .boxed()
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

/// Writes a batch. `present` has the pairs of it that the table has.
async fn write(
    connection: &mut MySqlConnection,
    net: Net<Pair, i64>,
    present: &HashSet<Pair>,
) -> sqlx::Result<()> {
    let Net { removed, added } = net.on(|pair| present.contains(pair));
    let mut of_users = Changes::default();
    let mut count = |(follower, followee): Pair, by: i64| {
        of_users.add(follower, [by, 0]);
        of_users.add(followee, [0, by]);
    };
    for pair in &removed {
        count(*pair, -1);
    }
    for (pair, _) in &added {
        count(*pair, 1);
    }
    if !removed.is_empty() {
        sqlx::query(DELETE).bind(batch::pairs(&removed)).execute(&mut *connection).await?;
    }
    if !added.is_empty() {
        QueryBuilder::new("INSERT INTO follows (follower_id, followee_id, followed_ms) ")
            .push_values(added, |mut values, ((follower, followee), followed_ms)| {
                values.push_bind(follower).push_bind(followee).push_bind(followed_ms);
            })
            .build()
            .execute(&mut *connection)
            .await?;
    }
    of_users.write(connection, &OF_USERS).await
}
