//! Outcomes are decided once, and no two videos share a publish time, no matter what clocks do.

use std::collections::HashSet;

use futures::{StreamExt, stream};
use uuid::Uuid;
use vidlog_command_api::media::outcomes::{OutcomeStore, Upload, Verdict};

use super::support::*;
use crate::support::World;

const NOW: i64 = 1_700_000_000_000;
const HOUR: i64 = 60 * 60 * 1000;

#[tokio::test]
async fn concurrent_decisions_return_the_first_outcome() {
    let (world, _api) = World::with_api().await;
    let upload = Upload::from_envelope(upload(9)).unwrap();
    let decisions = (0..16).map(|number| {
        let (store, upload) = (OutcomeStore::new(world.mysql.clone()), upload.clone());
        let verdict = match number % 2 {
            0 => Verdict::Publish { play_key: format!("videos/{number}"), cover_key: "c".to_owned() },
            _ => Verdict::Reject { reason: number.to_string() },
        };
        async move { store.decide(&upload, verdict).await.unwrap().envelope }
    });
    let decided = futures::future::join_all(decisions).await;
    assert!(decided.iter().all(|envelope| *envelope == decided[0]));
}

#[tokio::test]
async fn publish_times_are_unique() {
    let (world, api) = World::with_api().await;
    let decide = |id: i64| {
        let store = OutcomeStore::new(api.state.mysql.clone());
        let upload = Upload::from_envelope(upload(id)).unwrap();
        let verdict = Verdict::Publish { play_key: "v".to_owned(), cover_key: "c".to_owned() };
        async move { published(&store.decide(&upload, verdict).await.unwrap().envelope).published_ms }
    };
    let before = now_ms(&world).await;
    // Concurrency within the number of connections.
    let times: Vec<_> = stream::iter((1..=200).map(decide)).buffer_unordered(16).collect().await;
    let after = now_ms(&world).await;
    assert_eq!(times.iter().collect::<HashSet<_>>().len(), 200);
    assert!(times.iter().all(|time| (before..=after + 200).contains(time)), "{before} {after} {times:?}");
    assert_eq!(world.count("media_outcomes").await, 200);
}

async fn now_ms(world: &World) -> i64 {
    let now = "SELECT CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)";
    sqlx::query_scalar(now).fetch_one(&world.mysql).await.unwrap()
}

/// Decides to publish a video at a time of MySQL's clock; returns its publish time.
async fn publish_at(world: &World, id: i64, now_ms: i64) -> i64 {
    let upload = Upload::from_envelope(upload(id)).unwrap();
    let verdict = Verdict::Publish { play_key: "v".to_owned(), cover_key: "c".to_owned() };
    let outcome = OutcomeStore::new(mysql_at(world, now_ms).await).decide(&upload, verdict).await.unwrap();
    published(&outcome.envelope).published_ms
}

#[tokio::test]
async fn videos_after_a_clock_that_was_ahead_are_not_hidden() {
    for ahead in [HOUR, 24 * HOUR] {
        let (world, _api) = World::with_api().await;
        let early = [publish_at(&world, 1, NOW + ahead).await, publish_at(&world, 2, NOW + ahead).await];
        assert_eq!(early, [NOW + ahead, NOW + ahead + 1]);
        // The clock is corrected.
        assert_eq!(publish_at(&world, 3, NOW).await, NOW);
        assert_eq!(publish_at(&world, 4, NOW).await, NOW + 1);
        // Later the right time reaches the times that are taken.
        assert_eq!(publish_at(&world, 5, NOW + ahead).await, NOW + ahead + 2);
    }
}

#[tokio::test]
async fn videos_after_a_clock_was_set_back_have_their_own_times() {
    let (world, _api) = World::with_api().await;
    assert_eq!(publish_at(&world, 1, NOW).await, NOW);
    // A small step back is within the difference of clocks.
    assert_eq!(publish_at(&world, 2, NOW - 1000).await, NOW + 1);
    for (id, back) in [(3, HOUR), (4, 24 * HOUR)] {
        assert_eq!(publish_at(&world, id, NOW - back).await, NOW - back);
    }
    assert_eq!(publish_at(&world, 5, NOW).await, NOW + 2);
}

#[tokio::test]
async fn rejection_has_the_time_of_mysql() {
    let (world, _api) = World::with_api().await;
    let upload = Upload::from_envelope(upload(1)).unwrap();
    let store = OutcomeStore::new(mysql_at(&world, NOW).await);
    let outcome = store.decide(&upload, Verdict::Reject { reason: String::new() }).await.unwrap();
    assert_eq!(outcome.envelope.time_ms, NOW);
}

#[tokio::test]
async fn publish_times_are_unique_despite_clock_jumps() {
    let (world, _api) = World::with_api().await;
    let seed = Uuid::new_v4();
    println!("seed {seed}");
    let mut times = HashSet::new();
    // Few values, so that the clock returns to times that are taken.
    for (id, byte) in (1..).zip(seed.as_bytes().repeat(8)) {
        let now_ms = NOW + i64::from(byte % 5) * HOUR;
        let time = publish_at(&world, id, now_ms).await;
        assert!(times.insert(time), "{time} twice");
        assert!((now_ms..now_ms + HOUR / 2).contains(&time), "{time} at {now_ms}");
    }
}

#[tokio::test]
async fn migration_takes_over_the_times_of_stored_outcomes() {
    let (world, _api) = World::with_api().await;
    for id in [1, 2, 3] {
        publish_at(&world, id, NOW).await;
    }
    sqlx::query("DELETE FROM publish_times").execute(&world.mysql).await.unwrap();
    let migration = include_str!("../../../../schemas/mysql/0009_publish_times.sql");
    sqlx::raw_sql(migration).execute(&world.mysql).await.unwrap();
    let times: Vec<i64> = sqlx::query_scalar("SELECT published_ms FROM publish_times ORDER BY published_ms")
        .fetch_all(&world.mysql)
        .await
        .unwrap();
    assert_eq!(times, [NOW, NOW + 1, NOW + 2]);
}
