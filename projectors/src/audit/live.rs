//! What the views hold, as lines.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redis::{Value, cmd, from_redis_value};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool};
use vidlog_events::Stream;
use vidlog_schemas::{
    keys::ViewKey,
    projections::View,
    rows::{CommentRow, MessageRow, UserRow, VideoRow},
};

use super::{Lines, digest};
use crate::{
    projection::Projection,
    replay::Places,
    sink::{Partition, Target},
};

/// Keys looked for, and read, in one round trip.
const PAGE: usize = 1000;
/// Fields that hold what people wrote.
const TEXTS: [&str; 3] = ["name", "title", "reason"];

/// The lines of some projections' views, in the generations that the target's keys are of. A line of Redis is named as
/// the key is in the first generation.
pub async fn lines(target: &Target, projections: &[Projection]) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    if projections.iter().any(|projection| matches!(projection.catalogued.view, View::Redis(_))) {
        let is_wanted = |key: &ViewKey| {
            let is_of = |projection: &Projection| projection.catalogued == key.projection;
            projections.iter().any(is_of) && target.keys.generation(&key.projection) == key.generation
        };
        redis_lines(target, is_wanted, &mut lines).await.context("failed to read the views in Redis")?;
    }
    for projection in projections {
        if let View::MySql(tables) = projection.catalogued.view {
            let mut connection = target.mysql.acquire().await.context("failed to reach MySQL")?;
            tables_lines(&mut connection, tables, &mut lines).await?;
        }
    }
    Ok(lines)
}

/// The lines of a view in MySQL and the places that they are at, of one moment, while others go on writing.
pub async fn snapshot(pool: &MySqlPool, projection: &Projection) -> anyhow::Result<(Places, Lines)> {
    let mut connection = pool.acquire().await.context("failed to reach MySQL")?;
    // Of the next transaction alone.
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *connection).await?;
    let mut transaction = connection.begin_with("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
    let table = projection.catalogued.checkpoint_table();
    let select = format!("SELECT stream, partition_no, next_offset FROM {table} WHERE record_key = ''");
    let stored: Vec<(String, i32, i64)> =
        sqlx::query_as(AssertSqlSafe(select)).fetch_all(&mut *transaction).await?;
    let streams: Vec<Stream> = projection.streams().collect();
    let place = |(stream, number, next): (String, i32, i64)| {
        let stream = *streams.iter().find(|known| known.name() == stream)?;
        Some((Partition { stream, number }, next))
    };
    let places = stored.into_iter().filter_map(place).collect();
    let mut lines = Lines::new();
    if let View::MySql(tables) = projection.catalogued.view {
        tables_lines(&mut transaction, tables, &mut lines).await?;
    }
    transaction.commit().await?;
    Ok((places, lines))
}

/// The lines of some keys, by their names in the first generation, in the generation that the target's keys are of.
pub async fn key_lines(target: &Target, names: &BTreeSet<String>) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    let own = names.iter().filter_map(|name| target.keys.in_own_generation(name));
    let own: Vec<String> = own.collect();
    for page in own.chunks(PAGE) {
        read_keys(target, page.to_vec(), &mut lines).await?;
    }
    Ok(lines)
}

async fn redis_lines(
    target: &Target,
    is_wanted: impl Fn(&ViewKey) -> bool,
    lines: &mut Lines,
) -> anyhow::Result<()> {
    let mut scan = target.redis.scan(&target.keys.pattern(), PAGE);
    while let Some(found) = scan.next().await? {
        let names = found.into_iter().filter(|name| ViewKey::read(name).is_some_and(|key| is_wanted(&key)));
        read_keys(target, names.collect(), lines).await?;
    }
    Ok(())
}

async fn read_keys(target: &Target, names: Vec<String>, lines: &mut Lines) -> anyhow::Result<()> {
    let types: Vec<_> = names.iter().map(|name| cmd("TYPE").arg(name).take()).collect();
    let types = target.redis.all(&types).await?;
    let mut reads = Vec::with_capacity(names.len());
    for (name, kind) in names.iter().zip(types) {
        let kind: String = from_redis_value(kind)?;
        reads.push(match kind.as_str() {
            "hash" => cmd("HGETALL").arg(name).take(),
            "set" => cmd("SMEMBERS").arg(name).take(),
            _ => cmd("ZRANGE").arg(name).arg(0).arg(-1).arg("WITHSCORES").take(),
        });
    }
    let values = target.redis.all(&reads).await?;
    for ((name, read), value) in names.iter().zip(&reads).zip(values) {
        let Some(key) = ViewKey::read(name) else {
            continue;
        };
        let is_set =
            read.args_iter().next().is_some_and(|arg| matches!(arg, redis::Arg::Simple(b"SMEMBERS")));
        let members = if is_set { from_redis_value::<BTreeSet<String>>(value)? } else { pairs(value)? };
        // A key may have gone since it was found: an empty set is no key.
        if !members.is_empty() {
            lines.insert(key.name, members.into_iter().collect::<Vec<_>>().join(" "));
        }
    }
    Ok(())
}

/// Fields with values, or members with scores.
fn pairs(value: Value) -> anyhow::Result<BTreeSet<String>> {
    let pairs: BTreeMap<String, String> = from_redis_value(value)?;
    let show = |(field, value): (String, String)| {
        if TEXTS.contains(&field.as_str()) {
            format!("{field}={}", digest(&value))
        } else {
            format!("{field}={value}")
        }
    };
    Ok(pairs.into_iter().map(show).collect())
}

async fn tables_lines(
    connection: &mut MySqlConnection,
    tables: &[&str],
    lines: &mut Lines,
) -> anyhow::Result<()> {
    for table in tables {
        table_lines(connection, table, lines)
            .await
            .with_context(|| format!("failed to read the table {table} in MySQL"))?;
    }
    Ok(())
}

async fn table_lines(connection: &mut MySqlConnection, table: &str, lines: &mut Lines) -> sqlx::Result<()> {
    match table {
        "users" => user_lines(connection, lines).await,
        "videos" => video_lines(connection, lines).await,
        "comments" => comment_lines(connection, lines).await,
        "messages" => message_lines(connection, lines).await,
        "conversations" => conversation_lines(connection, lines).await,
        "likes" => like_lines(connection, lines).await,
        "follows" => follow_lines(connection, lines).await,
        _ => Err(sqlx::Error::Configuration(format!("nothing is known of the rows of {table}").into())),
    }
}

async fn user_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    for UserRow { user_id, name, registered_ms } in
        sqlx::query_as("SELECT * FROM users").fetch_all(connection).await?
    {
        lines.insert(format!("users/{user_id}"), format!("{} {registered_ms}", digest(&name)));
    }
    Ok(())
}

async fn video_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, VideoRow>("SELECT * FROM videos").fetch_all(connection).await? {
        let VideoRow { author_id, state, uploaded_ms, published_ms, play_key, cover_key, .. } = &row;
        let (title, reason) = (digest(&row.title), digest(&row.reason));
        lines.insert(
            format!("videos/{}", row.video_id),
            format!(
                "{author_id} {title} {state} {uploaded_ms} {published_ms} {play_key} {cover_key} {reason}"
            ),
        );
    }
    Ok(())
}

async fn like_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    let likes: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT video_id, user_id, author_id, liked_ms FROM likes")
            .fetch_all(connection)
            .await?;
    for (video, user, author, liked_ms) in likes {
        lines.insert(format!("likes/{video}/{user}"), format!("{author} {liked_ms}"));
    }
    Ok(())
}

async fn follow_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    let follows: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT follower_id, followee_id, followed_ms FROM follows")
            .fetch_all(connection)
            .await?;
    for (follower, followee, followed_ms) in follows {
        lines.insert(format!("follows/{follower}/{followee}"), followed_ms.to_string());
    }
    Ok(())
}

async fn comment_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, CommentRow>("SELECT * FROM comments").fetch_all(connection).await? {
        let CommentRow { comment_id, video_id, user_id, text, posted_ms, deleted } = row;
        lines.insert(
            format!("comments/{video_id}/{comment_id}"),
            format!("{user_id} {} {posted_ms} {deleted}", digest(&text)),
        );
    }
    Ok(())
}

async fn message_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, MessageRow>("SELECT * FROM messages").fetch_all(connection).await? {
        let MessageRow { message_id, from_user_id: from, to_user_id: to, content, create_ms } = row;
        lines.insert(
            format!("messages/{}/{}/{create_ms}", from.min(to), from.max(to)),
            format!("{message_id} {from} {to} {}", digest(&content)),
        );
    }
    Ok(())
}

async fn conversation_lines(connection: &mut MySqlConnection, lines: &mut Lines) -> sqlx::Result<()> {
    let conversations: Vec<(i64, i64, i64, i64, String, i64)> = sqlx::query_as(
        "SELECT low_id, high_id, last_message_id, last_from_id, last_content, last_ms FROM conversations",
    )
    .fetch_all(connection)
    .await?;
    for (low, high, message, from, content, last_ms) in conversations {
        lines.insert(
            format!("conversations/{low}/{high}"),
            format!("{message} {from} {} {last_ms}", digest(&content)),
        );
    }
    Ok(())
}
