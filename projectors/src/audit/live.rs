//! What the views hold, as lines.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redis::{Value, cmd, from_redis_value};
use sqlx::MySqlPool;
use vidlog_schemas::{
    keys::ViewKey,
    projections::View,
    rows::{CommentRow, MessageRow, UserRow, VideoRow},
};

use super::{Lines, digest};
use crate::{projection::Projection, sink::Target};

/// Keys looked for, and read, in one round trip.
const PAGE: usize = 1000;
/// Fields that hold what people wrote.
const TEXTS: [&str; 3] = ["name", "title", "reason"];

/// The lines of some projections' views, in the generations that the target's keys are of. A line of Redis is named as
/// the key is in the first generation.
pub async fn lines(target: &Target, namespace: &str, projections: &[Projection]) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    if projections.iter().any(|projection| matches!(projection.catalogued.view, View::Redis(_))) {
        let is_wanted = |key: &ViewKey| {
            let is_of = |projection: &Projection| projection.catalogued == key.projection;
            projections.iter().any(is_of) && target.keys.generation(&key.projection) == key.generation
        };
        redis_lines(target, namespace, is_wanted, &mut lines)
            .await
            .context("failed to read the views in Redis")?;
    }
    for projection in projections {
        if let View::MySql(tables) = projection.catalogued.view {
            for table in tables {
                mysql_lines(&target.mysql, table, &mut lines)
                    .await
                    .with_context(|| format!("failed to read the table {table} in MySQL"))?;
            }
        }
    }
    Ok(lines)
}

async fn redis_lines(
    target: &Target,
    namespace: &str,
    is_wanted: impl Fn(&ViewKey) -> bool,
    lines: &mut Lines,
) -> anyhow::Result<()> {
    let mut cursor = 0_u64;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{namespace}:{{s*")).arg("COUNT").arg(PAGE);
        let (next, found): (u64, Vec<String>) = target.redis.query(&scan).await?;
        let names = found.into_iter().filter(|name| ViewKey::read(name).is_some_and(|key| is_wanted(&key)));
        read_keys(target, names.collect(), lines).await?;
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
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

async fn mysql_lines(pool: &MySqlPool, table: &str, lines: &mut Lines) -> sqlx::Result<()> {
    match table {
        "users" => user_lines(pool, lines).await,
        "videos" => video_lines(pool, lines).await,
        "comments" => comment_lines(pool, lines).await,
        "messages" => message_lines(pool, lines).await,
        "conversations" => conversation_lines(pool, lines).await,
        "likes" => like_lines(pool, lines).await,
        "follows" => follow_lines(pool, lines).await,
        _ => Err(sqlx::Error::Configuration(format!("nothing is known of the rows of {table}").into())),
    }
}

async fn user_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for UserRow { user_id, name, registered_ms } in
        sqlx::query_as("SELECT * FROM users").fetch_all(pool).await?
    {
        lines.insert(format!("users/{user_id}"), format!("{} {registered_ms}", digest(&name)));
    }
    Ok(())
}

async fn video_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, VideoRow>("SELECT * FROM videos").fetch_all(pool).await? {
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

async fn like_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    let likes: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT video_id, user_id, author_id, liked_ms FROM likes").fetch_all(pool).await?;
    for (video, user, author, liked_ms) in likes {
        lines.insert(format!("likes/{video}/{user}"), format!("{author} {liked_ms}"));
    }
    Ok(())
}

async fn follow_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    let follows: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT follower_id, followee_id, followed_ms FROM follows").fetch_all(pool).await?;
    for (follower, followee, followed_ms) in follows {
        lines.insert(format!("follows/{follower}/{followee}"), followed_ms.to_string());
    }
    Ok(())
}

async fn comment_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, CommentRow>("SELECT * FROM comments").fetch_all(pool).await? {
        let CommentRow { comment_id, video_id, user_id, text, posted_ms, deleted } = row;
        lines.insert(
            format!("comments/{video_id}/{comment_id}"),
            format!("{user_id} {} {posted_ms} {deleted}", digest(&text)),
        );
    }
    Ok(())
}

async fn message_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, MessageRow>("SELECT * FROM messages").fetch_all(pool).await? {
        let MessageRow { message_id, from_user_id: from, to_user_id: to, content, create_ms } = row;
        lines.insert(
            format!("messages/{}/{}/{create_ms}", from.min(to), from.max(to)),
            format!("{message_id} {from} {to} {}", digest(&content)),
        );
    }
    Ok(())
}

async fn conversation_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    let conversations: Vec<(i64, i64, i64, i64, String, i64)> = sqlx::query_as(
        "SELECT low_id, high_id, last_message_id, last_from_id, last_content, last_ms FROM conversations",
    )
    .fetch_all(pool)
    .await?;
    for (low, high, message, from, content, last_ms) in conversations {
        lines.insert(
            format!("conversations/{low}/{high}"),
            format!("{message} {from} {} {last_ms}", digest(&content)),
        );
    }
    Ok(())
}
