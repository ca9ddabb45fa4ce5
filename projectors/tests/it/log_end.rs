//! Logs whose last or first offsets hold no record that a consumer receives: transaction markers, aborted records, and
//! what `DeleteRecords` removed. Whatever reads such a log finishes, and what it cannot receive counts as folded.

use std::time::{Duration, Instant};

use rdkafka::{Offset, producer::Producer};
use redis::cmd;
use serde_json::Value;
use tokio::time::sleep;
use vidlog_events::{Envelope, Stream};
use vidlog_schemas::projections::{self, LIKES, View};

use crate::{
    operate::projectors,
    support::{PARTITIONS, Running, World, envelope, liked, made_up, partition_of},
};

const T: i64 = 1_700_000_000_000;
/// A transaction's timeout for the broker.
const BROKER: Duration = Duration::from_secs(30);
/// Deadline of what takes a second or two on an idle machine.
const BOUND: Duration = Duration::from_mins(1);
/// A user whose likes are in aborted transactions only.
const NOBODY: i64 = 4711;
/// The projections that fold likes.
const LIKE_VIEWS: [&str; 3] = ["likes", "likes-table", "top-videos"];

/// Likes of several videos by a range of users: some in each partition.
fn likes(users: std::ops::Range<i64>) -> Vec<Envelope> {
    users.flat_map(|user| (1..=9).map(move |video| envelope(liked(video, user), T + user))).collect()
}

async fn commit(world: &World, events: &[Envelope]) {
    world.append_in_transaction(events).await.commit_transaction(BROKER).unwrap();
}

async fn abort(world: &World, events: &[Envelope]) {
    world.append_in_transaction(events).await.abort_transaction(BROKER).unwrap();
}

async fn until(what: &str, condition: impl AsyncFn() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(why) = condition().await {
        assert!(begun.elapsed() < BOUND, "waited too long until {what}: {why}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the partitions of all projections in `status --json`, or an error if a source is unavailable.
fn partitions(world: &World) -> Result<Vec<(String, Value)>, String> {
    let output = projectors(world, &["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    if status["unknown"] != serde_json::json!([]) {
        return Err(status["unknown"].to_string());
    }
    let mut partitions = Vec::new();
    for projection in status["projections"].as_array().unwrap() {
        let name = projection["name"].as_str().unwrap();
        for partition in projection["partitions"].as_array().unwrap() {
            partitions.push((name.to_owned(), partition.clone()));
        }
    }
    Ok(partitions)
}

/// Why not every partition of every projection is caught up, as the status has it.
fn caught_up(world: &World) -> Result<(), String> {
    let is_behind = |partition: &Value| partition["lag"] != 0 || partition["lag_seconds"] != 0.0;
    match partitions(world)?.into_iter().find(|(_, partition)| is_behind(partition)) {
        Some((name, partition)) => Err(format!("{name}: {partition}")),
        None => Ok(()),
    }
}

/// Why readers do not read every view in Redis.
async fn complete(world: &World) -> Result<(), String> {
    for projection in projections::ALL.iter().filter(|found| matches!(found.view, View::Redis(_))) {
        let command = cmd("HGET").arg(world.target.keys.generations()).arg(projection.name).take();
        if world.target.redis.query::<Option<u32>>(&command).await.unwrap().is_none() {
            return Err(format!("{} is not complete", projection.name));
        }
    }
    Ok(())
}

async fn until_caught_up(world: &World) {
    until("every view is complete", async || complete(world).await).await;
    until("every view is caught up", async || caught_up(world)).await;
}

/// The output of a command, whose exit code says whether there are differences.
fn compared(world: &World, arguments: &[&str]) -> (bool, String) {
    let begun = Instant::now();
    let output = projectors(world, arguments);
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("differences"), "{arguments:?}: {out}{errors}");
    assert!(begun.elapsed() < BOUND, "{arguments:?} took {:?}", begun.elapsed());
    (output.status.success(), out.into_owned())
}

fn assert_equal(world: &World, arguments: &[&str]) {
    let (is_equal, out) = compared(world, arguments);
    assert!(is_equal, "{arguments:?}: {out}");
}

/// The users who like a video, in the generation that readers read.
async fn likers(world: &World, video: i64) -> Vec<i64> {
    let command = cmd("HGET").arg(world.target.keys.generations()).arg(LIKES.name).take();
    let live: Option<u32> = world.target.redis.query(&command).await.unwrap();
    let key = world.target.keys.of_generation(&LIKES, live.unwrap_or(1)).likers(video);
    let mut likers: Vec<i64> = world.target.redis.query(cmd("SMEMBERS").arg(&key)).await.unwrap();
    likers.sort_unstable();
    likers
}

async fn rows(world: &World, user: i64) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM likes WHERE user_id = ?").bind(user);
    count.fetch_one(&world.target.mysql).await.unwrap()
}

/// Whether a like by nobody, which is in aborted transactions only, is in a view.
async fn assert_nothing_aborted(world: &World) {
    for video in 1..=9 {
        assert!(!likers(world, video).await.contains(&NOBODY), "video {video}");
    }
    assert_eq!(rows(world, NOBODY).await, 0);
}

/// Everything that reads the log to its end finishes on it, and finds that the views are what it says.
async fn assert_all_finish(world: &World) {
    until_caught_up(world).await;
    assert_equal(world, &["audit"]);
    for name in LIKE_VIEWS {
        assert_equal(world, &["rebuild", name]);
    }
    until_caught_up(world).await;

    world.delete_redis_keys().await;
    until_caught_up(world).await;
    assert_equal(world, &["audit"]);

    // The end of the log, as a position too.
    let folded = projectors(world, &["as-of", "end", "--until", "2100-01-01T00:00:00Z"]);
    assert!(folded.status.success(), "{folded:?}");
    if !likers(world, 1).await.is_empty() {
        let partition = partition_of("1");
        let (_, end) = world.watermarks(Stream::Likes)[usize::try_from(partition).unwrap()];
        let position = format!("likes:{partition}:{end}");
        let folded = projectors(world, &["as-of", "position", "--until", &position]);
        assert!(folded.status.success(), "{folded:?}");
    }
    for name in ["end", "position"] {
        assert!(projectors(world, &["as-of", name, "--drop"]).status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_marker_at_the_end_counts_as_folded() {
    let world = World::new().await;
    let running = Running::start(&world);
    // Of every stream. Repeated, as the ids of two histories collide.
    let events = made_up(300);
    world.append(&events).await;
    commit(&world, &events).await;
    assert_all_finish(&world).await;
    running.stop().await;

    // Over a restart too, and records go on after it.
    let running = Running::start(&world);
    world.append(&likes(10..12)).await;
    until_caught_up(&world).await;
    assert_equal(&world, &["audit"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_at_the_end_are_never_folded() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&made_up(300)).await;
    abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    assert_all_finish(&world).await;
    assert_nothing_aborted(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_only_aborted_records_counts_as_empty() {
    let world = World::new().await;
    let running = Running::start(&world);
    until_caught_up(&world).await;
    abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    assert_all_finish(&world).await;
    running.stop().await;

    // The first record that is folded is not at offset 0, and identifies the log all the same.
    let running = Running::start(&world);
    world.append(&likes(1..3)).await;
    assert_all_finish(&world).await;
    running.stop().await;
    let running = Running::start(&world);
    world.append(&likes(3..5)).await;
    assert_all_finish(&world).await;
    assert_nothing_aborted(&world).await;
    assert_eq!(likers(&world, 1).await, [1, 2, 3, 4]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offset_gaps_between_records_are_skipped() {
    let world = World::new().await;
    abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    for round in 1..6 {
        world.append(&likes(round..round + 1)).await;
        commit(&world, &likes(round + 10..round + 11)).await;
        abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    }
    world.append(&likes(30..31)).await;
    let running = Running::start(&world);
    assert_all_finish(&world).await;
    assert_nothing_aborted(&world).await;
    assert_eq!(likers(&world, 1).await, [1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 30]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_marker_is_no_lag_of_a_paused_view() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..5)).await;
    until_caught_up(&world).await;
    for name in LIKE_VIEWS {
        assert!(projectors(&world, &["pause", name]).status.success());
    }
    abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    until("nothing is behind", async || caught_up(&world)).await;
    let paused: Vec<_> = partitions(&world)
        .unwrap()
        .into_iter()
        .filter(|(_, partition)| partition["state"] == "paused")
        .filter(|(_, partition)| partition["partition"].as_str().unwrap().starts_with("likes:"))
        .collect();
    assert_eq!(paused.len(), LIKE_VIEWS.len() * usize::try_from(PARTITIONS).unwrap());
    for (name, partition) in paused {
        assert!(partition["position"].as_i64() < partition["end"].as_i64(), "{name}: {partition}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_transaction_delays_only_what_follows_it() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..5)).await;
    let open = world.append_in_transaction(&likes(NOBODY..NOBODY + 1)).await;
    // They are behind the last stable offset: no consumer gets them before the transaction ends.
    world.append(&likes(5..9)).await;
    assert_all_finish(&world).await;
    assert_eq!(likers(&world, 1).await, [1, 2, 3, 4]);
    let (_, end) = world.watermarks(Stream::Likes)[0];
    let beyond = format!("likes:0:{}", end + 1);
    let refused = projectors(&world, &["as-of", "beyond", "--until", &beyond]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("the log has no likes:0:"), "{why}");

    open.abort_transaction(BROKER).unwrap();
    until("what followed is folded", async || match likers(&world, 1).await.len() {
        8 => Ok(()),
        found => Err(format!("{found} likers")),
    })
    .await;
    assert_all_finish(&world).await;
    assert_nothing_aborted(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_behind_a_marker_are_listed_and_retried() {
    let world = World::new().await;
    let running = Running::start(&world);
    let partition = world.append_garbage(Stream::Likes, "1").await;
    world.append(&likes(1..3)).await;
    abort(&world, &likes(NOBODY..NOBODY + 1)).await;
    // The topic of dead letters ends with markers as well.
    let listed = async || {
        let output = projectors(&world, &["dead-letters", "list", "--json", "likes"]);
        let listed: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        listed.first().map(|parked| parked["waiting"].clone())
    };
    until("the key is parked", async || match listed().await {
        Some(waiting) if waiting == 3 => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    world.abort_in_dead_letters(Stream::Likes).await;

    let place = [format!("likes:{partition}"), "0".to_owned()];
    let shown = projectors(&world, &["dead-letters", "show", "likes", &place[0], &place[1]]);
    assert!(shown.status.success(), "{shown:?}");
    for name in LIKE_VIEWS {
        let retried = projectors(&world, &["dead-letters", "retry", name]);
        assert_eq!(retried.status.code(), Some(1), "there is no fix for garbage: {retried:?}");
        let discarded = projectors(&world, &["dead-letters", "discard", name, &place[0], &place[1]]);
        assert!(discarded.status.success(), "{discarded:?}");
    }
    assert_eq!(likers(&world, 1).await, [1, 2]);
    assert_all_finish(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_is_filled_from_a_truncated_log() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..11)).await;
    until_caught_up(&world).await;
    let before: Vec<_> = (0..).zip(world.watermarks(Stream::Likes)).collect();
    world.append(&likes(11..16)).await;
    until_caught_up(&world).await;
    let cut: Vec<_> = before.iter().map(|(number, (_, end))| (*number, Offset::Offset(*end))).collect();
    world.delete_records(Stream::Likes, &cut).await;

    // The views have what is gone from the log, and keep it. Comparisons finish, and show it.
    until_caught_up(&world).await;
    assert!(!compared(&world, &["audit"]).0);
    for name in LIKE_VIEWS {
        let (is_equal, out) = compared(&world, &["rebuild", name]);
        assert!(!is_equal && out.contains("generation 1 stays live"), "{out}");
    }
    assert_eq!(likers(&world, 1).await, (1..16).collect::<Vec<_>>());
    assert_eq!(rows(&world, 1).await, 9);

    // A refill of a lost view has only the records that remain in the log.
    world.delete_redis_keys().await;
    until_caught_up(&world).await;
    assert_eq!(likers(&world, 1).await, (11..16).collect::<Vec<_>>());
    assert_equal(&world, &["audit", "likes"]);
    let (is_equal, out) = compared(&world, &["rebuild", "likes-table", "--take-over"]);
    assert!(!is_equal && out.contains("generation 2 is live"), "{out}");
    assert_eq!(rows(&world, 1).await, 0);
    assert_all_finish(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fully_truncated_log_counts_as_folded() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..11)).await;
    until_caught_up(&world).await;
    let all: Vec<_> = (0..PARTITIONS).map(|number| (number, Offset::End)).collect();
    world.delete_records(Stream::Likes, &all).await;
    assert!(world.watermarks(Stream::Likes).iter().all(|(first, end)| first == end && *end > 0));
    until_caught_up(&world).await;
    assert!(!compared(&world, &["rebuild", "likes-table"]).0);

    world.delete_redis_keys().await;
    until_caught_up(&world).await;
    assert!(likers(&world, 1).await.is_empty());
    assert_equal(&world, &["audit", "likes"]);
    let (_, out) = compared(&world, &["rebuild", "likes-table", "--take-over"]);
    assert!(out.contains("is live"), "{out}");
    assert_all_finish(&world).await;

    // Later records are folded, also by a view without a position.
    world.append(&likes(11..13)).await;
    until_caught_up(&world).await;
    assert_eq!(likers(&world, 1).await, [11, 12]);
    world.delete_redis_keys().await;
    assert_all_finish(&world).await;
    assert_eq!(likers(&world, 1).await, [11, 12]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_that_missed_deleted_records_waits_for_a_rebuild() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..11)).await;
    until_caught_up(&world).await;
    running.stop().await;
    world.append(&likes(11..16)).await;
    let missed: Vec<_> =
        (0..).zip(world.watermarks(Stream::Likes)).map(|(at, (_, end))| (at, Offset::Offset(end))).collect();
    world.append(&likes(16..21)).await;
    world.delete_records(Stream::Likes, &missed).await;

    let running = Running::start(&world);
    until_gone(&running).await;
    assert_eq!(likers(&world, 1).await, (1..11).collect::<Vec<_>>(), "the missing records are not skipped");
    assert!(caught_up(&world).is_err());
    rebuild_what_is_left(&world).await;
    assert_eq!(likers(&world, 1).await, (16..21).collect::<Vec<_>>());
    assert_all_finish(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_view_whose_next_records_are_deleted_waits_for_a_rebuild() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&likes(1..11)).await;
    until_caught_up(&world).await;
    // Consumers do not receive the records after an open transaction.
    let open = world.append_in_transaction(&likes(NOBODY..NOBODY + 1)).await;
    world.append(&likes(11..16)).await;
    let all: Vec<_> = (0..PARTITIONS).map(|number| (number, Offset::End)).collect();
    world.delete_records(Stream::Likes, &all).await;
    until_gone(&running).await;
    assert_eq!(likers(&world, 1).await, (1..11).collect::<Vec<_>>(), "the missing records are not skipped");

    open.abort_transaction(BROKER).unwrap();
    world.append(&likes(16..21)).await;
    rebuild_what_is_left(&world).await;
    assert_eq!(likers(&world, 1).await, (16..21).collect::<Vec<_>>());
    assert_all_finish(&world).await;
    running.stop().await;
}

/// Waits until every partition of the views of likes reports that its next records were deleted.
async fn until_gone(running: &Running) {
    until("the gap is reported", async || {
        let missing = running.readiness.missing().unwrap_or_default();
        let is_reported = |name: &&str| {
            (0..PARTITIONS).all(|number| {
                let part = format!("{name}/likes:{number}");
                missing.lines().any(|line| line.contains(&part) && line.contains("gone from the log"))
            })
        };
        if LIKE_VIEWS.iter().all(is_reported) { Ok(()) } else { Err(missing) }
    })
    .await;
}

async fn rebuild_what_is_left(world: &World) {
    for name in LIKE_VIEWS {
        let (_, out) = compared(world, &["rebuild", name, "--take-over"]);
        assert!(out.contains("generation 2 is live"), "{out}");
    }
    until_caught_up(world).await;
}
