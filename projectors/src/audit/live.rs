//! What the views hold, as lines.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use redis::{Value, cmd, from_redis_value};
use sqlx::MySqlPool;
use vidlog_schemas::rows::{CommentRow, MessageRow, UserRow, VideoRow};

use super::{Lines, digest};
use crate::sink::Target;

/// Keys looked for, and read, in one round trip.
const PAGE: usize = 1000;
/// Kinds of keys that are not folded from the log.
const NOT_VIEWS: [&str; 5] = ["checkpoint", "progress", "recent", "idempotency", "meta"];
/// Fields that hold what people wrote.
const TEXTS: [&str; 3] = ["name", "title", "reason"];

/// The lines of all views of a namespace.
pub async fn lines(target: &Target, namespace: &str) -> anyhow::Result<Lines> {
    let mut lines = redis_lines(target, namespace).await.context("failed to read the views in Redis")?;
    mysql_lines(&target.mysql, &mut lines).await.context("failed to read the views in MySQL")?;
    Ok(lines)
}

async fn redis_lines(target: &Target, namespace: &str) -> anyhow::Result<Lines> {
    let mut lines = Lines::new();
    let mut cursor = 0_u64;
    loop {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(format!("{namespace}:{{s*")).arg("COUNT").arg(PAGE);
        let (next, found): (u64, Vec<String>) = target.redis.query(&scan).await?;
        let names: Vec<_> = found.into_iter().filter(|name| is_view(name)).collect();
        read_keys(target, names, &mut lines).await?;
        if next == 0 {
            return Ok(lines);
        }
        cursor = next;
    }
}

/// `<namespace>:{sNN}:<kind>:<entity>`
fn is_view(name: &str) -> bool {
    name.split_once("}:")
        .and_then(|(_, rest)| rest.split(':').next())
        .is_some_and(|kind| !NOT_VIEWS.contains(&kind))
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
    for ((name, read), value) in names.into_iter().zip(&reads).zip(values) {
        let is_set =
            read.args_iter().next().is_some_and(|arg| matches!(arg, redis::Arg::Simple(b"SMEMBERS")));
        let members = if is_set { from_redis_value::<BTreeSet<String>>(value)? } else { pairs(value)? };
        lines.insert(name, members.into_iter().collect::<Vec<_>>().join(" "));
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

async fn mysql_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for UserRow { user_id, name, registered_ms } in
        sqlx::query_as("SELECT * FROM users").fetch_all(pool).await?
    {
        lines.insert(format!("users/{user_id}"), format!("{} {registered_ms}", digest(&name)));
    }
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
    let likes: Vec<(i64, i64, i64, i64)> =
        sqlx::query_as("SELECT video_id, user_id, author_id, liked_ms FROM likes").fetch_all(pool).await?;
    for (video, user, author, liked_ms) in likes {
        lines.insert(format!("likes/{video}/{user}"), format!("{author} {liked_ms}"));
    }
    let follows: Vec<(i64, i64, i64)> =
        sqlx::query_as("SELECT follower_id, followee_id, followed_ms FROM follows").fetch_all(pool).await?;
    for (follower, followee, followed_ms) in follows {
        lines.insert(format!("follows/{follower}/{followee}"), followed_ms.to_string());
    }
    for row in sqlx::query_as::<_, CommentRow>("SELECT * FROM comments").fetch_all(pool).await? {
        let CommentRow { comment_id, video_id, user_id, text, posted_ms, deleted } = row;
        lines.insert(
            format!("comments/{video_id}/{comment_id}"),
            format!("{user_id} {} {posted_ms} {deleted}", digest(&text)),
        );
    }
    message_lines(pool, lines).await
}

async fn message_lines(pool: &MySqlPool, lines: &mut Lines) -> sqlx::Result<()> {
    for row in sqlx::query_as::<_, MessageRow>("SELECT * FROM messages").fetch_all(pool).await? {
        let MessageRow { message_id, from_user_id: from, to_user_id: to, content, create_ms } = row;
        lines.insert(
            format!("messages/{}/{}/{create_ms}", from.min(to), from.max(to)),
            format!("{message_id} {from} {to} {}", digest(&content)),
        );
    }
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
