//! Logs whose last or first offsets hold no record that a consumer receives: transaction markers, aborted records, and
//! what `DeleteRecords` removed. Every reader of such a log finishes, and offsets without a record count as folded.

use std::time::{Duration, Instant};

use rdkafka::{Offset, producer::Producer};
use redis::cmd;
use serde_json::Value;
use tokio::time::sleep;
use vidlog_events::{Envelope, Stream};
use vidlog_schemas::projections::{self, LIKES, View};

use crate::{
    operate::projectors,
    support::{PARTITIONS, Running, TestSystem, envelope, liked, partition_of, random_history},
};

const T: i64 = 1_700_000_000_000;
/// Timeout for a response of the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(30);
/// Deadline of steps that take a second or two on an idle machine.
const STEP_TIMEOUT: Duration = Duration::from_mins(1);
/// A user whose likes are in aborted transactions only.
const ABORTED_USER: i64 = 4711;
/// The projections that fold likes.
const LIKE_VIEWS: [&str; 3] = ["likes", "likes-table", "top-videos"];

/// Likes of several videos by a range of users: some in each partition.
fn likes(users: std::ops::Range<i64>) -> Vec<Envelope> {
    users.flat_map(|user| (1..=9).map(move |video| envelope(liked(video, user), T + user))).collect()
}

async fn commit(system: &TestSystem, events: &[Envelope]) {
    system.append_in_transaction(events).await.commit_transaction(BROKER_TIMEOUT).unwrap();
}

async fn abort(system: &TestSystem, events: &[Envelope]) {
    system.append_in_transaction(events).await.abort_transaction(BROKER_TIMEOUT).unwrap();
}

async fn until(what: &str, condition: impl AsyncFn() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(why) = condition().await {
        assert!(begun.elapsed() < STEP_TIMEOUT, "waited too long until {what}: {why}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Returns the partitions of all projections in `status --json`, or an error if a source is unavailable.
fn partitions(system: &TestSystem) -> Result<Vec<(String, Value)>, String> {
    let output = projectors(system, &["status", "--json"]);
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

/// Returns an error with a partition that `status` does not report as caught up, if there is one.
fn caught_up(system: &TestSystem) -> Result<(), String> {
    let is_behind = |partition: &Value| partition["lag"] != 0 || partition["lag_seconds"] != 0.0;
    match partitions(system)?.into_iter().find(|(_, partition)| is_behind(partition)) {
        Some((name, partition)) => Err(format!("{name}: {partition}")),
        None => Ok(()),
    }
}

/// Returns an error with a view in Redis that is not complete, if there is one.
async fn complete(system: &TestSystem) -> Result<(), String> {
    for projection in projections::ALL.iter().filter(|found| matches!(found.view, View::Redis(_))) {
        let command = cmd("HGET").arg(system.target.keys.generations()).arg(projection.name).take();
        if system.target.redis.query::<Option<u32>>(&command).await.unwrap().is_none() {
            return Err(format!("{} is not complete", projection.name));
        }
    }
    Ok(())
}

async fn until_caught_up(system: &TestSystem) {
    until("every view is complete", async || complete(system).await).await;
    until("every view is caught up", async || caught_up(system)).await;
}

/// Runs a command that compares; returns whether it found no differences, and its output.
fn compared(system: &TestSystem, arguments: &[&str]) -> (bool, String) {
    let begun = Instant::now();
    let output = projectors(system, arguments);
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("differences"), "{arguments:?}: {out}{errors}");
    assert!(begun.elapsed() < STEP_TIMEOUT, "{arguments:?} took {:?}", begun.elapsed());
    (output.status.success(), out.into_owned())
}

fn assert_equal(system: &TestSystem, arguments: &[&str]) {
    let (is_equal, out) = compared(system, arguments);
    assert!(is_equal, "{arguments:?}: {out}");
}

/// The users who like a video, in the generation that readers read.
async fn likers(system: &TestSystem, video: i64) -> Vec<i64> {
    let command = cmd("HGET").arg(system.target.keys.generations()).arg(LIKES.name).take();
    let live: Option<u32> = system.target.redis.query(&command).await.unwrap();
    let key = system.target.keys.of_generation(&LIKES, live.unwrap_or(1)).likers(video);
    let mut likers: Vec<i64> = system.target.redis.query(cmd("SMEMBERS").arg(&key)).await.unwrap();
    likers.sort_unstable();
    likers
}

async fn rows(system: &TestSystem, user: i64) -> i64 {
    let count = sqlx::query_scalar("SELECT COUNT(*) FROM likes WHERE user_id = ?").bind(user);
    count.fetch_one(&system.target.mysql).await.unwrap()
}

/// Asserts that no view has a like of an aborted transaction.
async fn assert_nothing_aborted(system: &TestSystem) {
    for video in 1..=9 {
        assert!(!likers(system, video).await.contains(&ABORTED_USER), "video {video}");
    }
    assert_eq!(rows(system, ABORTED_USER).await, 0);
}

/// Runs everything that reads the log to its end, and asserts that it finishes and finds no difference.
async fn assert_all_finish(system: &TestSystem) {
    until_caught_up(system).await;
    assert_equal(system, &["audit"]);
    for name in LIKE_VIEWS {
        assert_equal(system, &["rebuild", name]);
    }
    until_caught_up(system).await;

    system.delete_redis_keys().await;
    until_caught_up(system).await;
    assert_equal(system, &["audit"]);

    // Also up to a position at the end of the log.
    let folded = projectors(system, &["as-of", "end", "--until", "2100-01-01T00:00:00Z"]);
    assert!(folded.status.success(), "{folded:?}");
    if !likers(system, 1).await.is_empty() {
        let partition = partition_of("1");
        let (_, end) = system.watermarks(Stream::Likes)[usize::try_from(partition).unwrap()];
        let position = format!("likes:{partition}:{end}");
        let folded = projectors(system, &["as-of", "position", "--until", &position]);
        assert!(folded.status.success(), "{folded:?}");
    }
    for name in ["end", "position"] {
        assert!(projectors(system, &["as-of", name, "--drop"]).status.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_marker_at_the_end_counts_as_folded() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    // Events of every stream. Appended twice, as the ids of two histories would collide.
    let events = random_history(300);
    system.append(&events).await;
    commit(&system, &events).await;
    assert_all_finish(&system).await;
    running.stop().await;

    // After a restart, with later records.
    let running = Running::start(&system);
    system.append(&likes(10..12)).await;
    until_caught_up(&system).await;
    assert_equal(&system, &["audit"]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_at_the_end_are_never_folded() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&random_history(300)).await;
    abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    assert_all_finish(&system).await;
    assert_nothing_aborted(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_of_only_aborted_records_counts_as_empty() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    until_caught_up(&system).await;
    abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    assert_all_finish(&system).await;
    running.stop().await;

    // The first record that consumers receive is not at offset 0, and identifies the log nevertheless.
    let running = Running::start(&system);
    system.append(&likes(1..3)).await;
    assert_all_finish(&system).await;
    running.stop().await;
    let running = Running::start(&system);
    system.append(&likes(3..5)).await;
    assert_all_finish(&system).await;
    assert_nothing_aborted(&system).await;
    assert_eq!(likers(&system, 1).await, [1, 2, 3, 4]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offset_gaps_between_records_are_skipped() {
    let system = TestSystem::new().await;
    abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    for round in 1..6 {
        system.append(&likes(round..round + 1)).await;
        commit(&system, &likes(round + 10..round + 11)).await;
        abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    }
    system.append(&likes(30..31)).await;
    let running = Running::start(&system);
    assert_all_finish(&system).await;
    assert_nothing_aborted(&system).await;
    assert_eq!(likers(&system, 1).await, [1, 2, 3, 4, 5, 11, 12, 13, 14, 15, 30]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_marker_is_no_lag_of_a_paused_view() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..5)).await;
    until_caught_up(&system).await;
    for name in LIKE_VIEWS {
        assert!(projectors(&system, &["pause", name]).status.success());
    }
    abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    until("no partition lags", async || caught_up(&system)).await;
    let paused: Vec<_> = partitions(&system)
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
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..5)).await;
    let open = system.append_in_transaction(&likes(ABORTED_USER..ABORTED_USER + 1)).await;
    // Behind the last stable offset: consumers receive them after the transaction has ended.
    system.append(&likes(5..9)).await;
    assert_all_finish(&system).await;
    assert_eq!(likers(&system, 1).await, [1, 2, 3, 4]);
    let (_, end) = system.watermarks(Stream::Likes)[0];
    let beyond = format!("likes:0:{}", end + 1);
    let refused = projectors(&system, &["as-of", "beyond", "--until", &beyond]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("the log has no likes:0:"), "{why}");

    open.abort_transaction(BROKER_TIMEOUT).unwrap();
    until("the later records are folded", async || match likers(&system, 1).await.len() {
        8 => Ok(()),
        found => Err(format!("{found} likers")),
    })
    .await;
    assert_all_finish(&system).await;
    assert_nothing_aborted(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_behind_a_marker_are_listed_and_retried() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let partition = system.append_garbage(Stream::Likes, "1").await;
    system.append(&likes(1..3)).await;
    abort(&system, &likes(ABORTED_USER..ABORTED_USER + 1)).await;
    // The dead-letter topic ends with markers, too.
    let listed = async || {
        let output = projectors(&system, &["dead-letters", "list", "--json", "likes"]);
        let listed: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
        listed.first().map(|parked| parked["waiting"].clone())
    };
    until("the key is parked", async || match listed().await {
        Some(waiting) if waiting == 3 => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await;
    system.abort_in_dead_letters(Stream::Likes).await;

    let place = [format!("likes:{partition}"), "0".to_owned()];
    let shown = projectors(&system, &["dead-letters", "show", "likes", &place[0], &place[1]]);
    assert!(shown.status.success(), "{shown:?}");
    for name in LIKE_VIEWS {
        let retried = projectors(&system, &["dead-letters", "retry", name]);
        assert_eq!(retried.status.code(), Some(1), "there is no fix for garbage: {retried:?}");
        let discarded = projectors(&system, &["dead-letters", "discard", name, &place[0], &place[1]]);
        assert!(discarded.status.success(), "{discarded:?}");
    }
    assert_eq!(likers(&system, 1).await, [1, 2]);
    assert_all_finish(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_is_filled_from_a_truncated_log() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..11)).await;
    until_caught_up(&system).await;
    let before: Vec<_> = (0..).zip(system.watermarks(Stream::Likes)).collect();
    system.append(&likes(11..16)).await;
    until_caught_up(&system).await;
    let cut: Vec<_> = before.iter().map(|(number, (_, end))| (*number, Offset::Offset(*end))).collect();
    system.delete_records(Stream::Likes, &cut).await;

    // The views keep the deleted records. Comparisons finish, and report them as differences.
    until_caught_up(&system).await;
    assert!(!compared(&system, &["audit"]).0);
    for name in LIKE_VIEWS {
        let (is_equal, out) = compared(&system, &["rebuild", name]);
        assert!(!is_equal && out.contains("generation 1 stays live"), "{out}");
    }
    assert_eq!(likers(&system, 1).await, (1..16).collect::<Vec<_>>());
    assert_eq!(rows(&system, 1).await, 9);

    // A refill of a lost view has only the records that remain in the log.
    system.delete_redis_keys().await;
    until_caught_up(&system).await;
    assert_eq!(likers(&system, 1).await, (11..16).collect::<Vec<_>>());
    assert_equal(&system, &["audit", "likes"]);
    let (is_equal, out) = compared(&system, &["rebuild", "likes-table", "--take-over"]);
    assert!(!is_equal && out.contains("generation 2 is live"), "{out}");
    assert_eq!(rows(&system, 1).await, 0);
    assert_all_finish(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fully_truncated_log_counts_as_folded() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..11)).await;
    until_caught_up(&system).await;
    let all: Vec<_> = (0..PARTITIONS).map(|number| (number, Offset::End)).collect();
    system.delete_records(Stream::Likes, &all).await;
    assert!(system.watermarks(Stream::Likes).iter().all(|(first, end)| first == end && *end > 0));
    until_caught_up(&system).await;
    assert!(!compared(&system, &["rebuild", "likes-table"]).0);

    system.delete_redis_keys().await;
    until_caught_up(&system).await;
    assert!(likers(&system, 1).await.is_empty());
    assert_equal(&system, &["audit", "likes"]);
    let (_, out) = compared(&system, &["rebuild", "likes-table", "--take-over"]);
    assert!(out.contains("is live"), "{out}");
    assert_all_finish(&system).await;

    // Later records are folded, also by a view without a position.
    system.append(&likes(11..13)).await;
    until_caught_up(&system).await;
    assert_eq!(likers(&system, 1).await, [11, 12]);
    system.delete_redis_keys().await;
    assert_all_finish(&system).await;
    assert_eq!(likers(&system, 1).await, [11, 12]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_that_missed_deleted_records_waits_for_a_rebuild() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..11)).await;
    until_caught_up(&system).await;
    running.stop().await;
    system.append(&likes(11..16)).await;
    let before: Vec<_> =
        (0..).zip(system.watermarks(Stream::Likes)).map(|(at, (_, end))| (at, Offset::Offset(end))).collect();
    system.append(&likes(16..21)).await;
    system.delete_records(Stream::Likes, &before).await;

    let running = Running::start(&system);
    until_gap_is_reported(&running).await;
    assert_eq!(likers(&system, 1).await, (1..11).collect::<Vec<_>>(), "the missing records are not skipped");
    assert!(caught_up(&system).is_err());
    rebuild_from_remaining_records(&system).await;
    assert_eq!(likers(&system, 1).await, (16..21).collect::<Vec<_>>());
    assert_all_finish(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running_view_whose_next_records_are_deleted_waits_for_a_rebuild() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&likes(1..11)).await;
    until_caught_up(&system).await;
    // Consumers do not receive the records after an open transaction.
    let open = system.append_in_transaction(&likes(ABORTED_USER..ABORTED_USER + 1)).await;
    system.append(&likes(11..16)).await;
    let all: Vec<_> = (0..PARTITIONS).map(|number| (number, Offset::End)).collect();
    system.delete_records(Stream::Likes, &all).await;
    until_gap_is_reported(&running).await;
    assert_eq!(likers(&system, 1).await, (1..11).collect::<Vec<_>>(), "the missing records are not skipped");

    open.abort_transaction(BROKER_TIMEOUT).unwrap();
    system.append(&likes(16..21)).await;
    rebuild_from_remaining_records(&system).await;
    assert_eq!(likers(&system, 1).await, (16..21).collect::<Vec<_>>());
    assert_all_finish(&system).await;
    running.stop().await;
}

/// Waits until every partition of the views of likes reports that its next records were deleted.
async fn until_gap_is_reported(running: &Running) {
    until("the gap is reported", async || {
        let missing = running.readiness.unready().unwrap_or_default();
        let is_reported = |name: &&str| {
            (0..PARTITIONS).all(|number| {
                let part = format!("{name}/likes:{number}");
                missing.lines().any(|line| line.contains(&part) && line.contains("deleted from the log"))
            })
        };
        if LIKE_VIEWS.iter().all(is_reported) { Ok(()) } else { Err(missing) }
    })
    .await;
}

async fn rebuild_from_remaining_records(system: &TestSystem) {
    for name in LIKE_VIEWS {
        let (_, out) = compared(system, &["rebuild", name, "--take-over"]);
        assert!(out.contains("generation 2 is live"), "{out}");
    }
    until_caught_up(system).await;
}
