//! Publication of complete generations: never while a view is incomplete.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::cmd;
use vidlog_projectors::desired_state;
use vidlog_schemas::projections::{self, LIKES, Projection, View};

use crate::{
    operate::{projectors, stdout},
    support::{PARTITIONS, Running, TestSystem, envelope, liked, random_history, until},
};

/// Returns the published generation and the number of existing keys, atomically.
const SNAPSHOT: &str = "return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('EXISTS', unpack(KEYS, 2))}";

fn views() -> impl Iterator<Item = &'static Projection> {
    projections::ALL.iter().filter(|projection| matches!(projection.view, View::Redis(_)))
}

/// Returns the generation that is published to readers.
async fn published_generation(system: &TestSystem, projection: &Projection) -> Option<u32> {
    let command = cmd("HGET").arg(system.target.keys.generations()).arg(projection.name).take();
    system.target.redis.query(&command).await.unwrap()
}

async fn until_complete(system: &TestSystem) {
    until("every view is complete", async || {
        for projection in views() {
            if published_generation(system, projection).await.is_none() {
                return false;
            }
        }
        true
    })
    .await;
}

/// Likes of many videos: their view takes many writes.
async fn append_likes(system: &TestSystem) {
    let likes: Vec<_> =
        (0..6000).map(|at| envelope(liked(at % 900 + 1, at % 40 + 1), 1_700_000_000_000 + at)).collect();
    system.append(&likes).await;
}

/// The names of all keys of some kinds.
async fn keys_of(system: &TestSystem, kinds: &[&str]) -> Vec<String> {
    let mut keys = Vec::new();
    for kind in kinds {
        let pattern = format!("{}:*:{kind}:*", system.stores.namespace);
        keys.extend(system.target.redis.query::<Vec<String>>(cmd("KEYS").arg(pattern)).await.unwrap());
    }
    keys
}

/// Reads the marker and the keys of the view of likes continuously.
struct Watcher<'a> {
    system: &'a TestSystem,
    keys: Vec<String>,
    /// Whether a published view may not have so many of all keys.
    is_wrong: fn(usize, usize) -> bool,
    wrong: AtomicUsize,
    missed: AtomicBool,
    is_over: AtomicBool,
}

impl<'a> Watcher<'a> {
    async fn new(system: &'a TestSystem, is_wrong: fn(usize, usize) -> bool) -> Self {
        let keys = keys_of(system, &["likers", "favorites", "favorited"]).await;
        assert!(keys.len() > 900, "{}", keys.len());
        let (missed, is_over) = (AtomicBool::default(), AtomicBool::default());
        Self { system, keys, is_wrong, wrong: AtomicUsize::default(), missed, is_over }
    }

    async fn run(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let mut snapshot = cmd("EVAL");
            snapshot.arg(SNAPSHOT).arg(self.keys.len() + 1).arg(self.system.target.keys.generations());
            snapshot.arg(&self.keys).arg(LIKES.name);
            let (published, existing): (Option<u32>, usize) =
                self.system.target.redis.query(&snapshot).await.unwrap();
            if published.is_none() {
                self.missed.store(true, Ordering::Relaxed);
            } else if (self.is_wrong)(existing, self.keys.len()) {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Watches until the view was marked incomplete, and is complete again.
    async fn while_lost(&self, lose: impl Future<Output = ()>) {
        let lost = async {
            lose.await;
            until("the view is marked incomplete", async || self.missed.load(Ordering::Relaxed)).await;
            until_complete(self.system).await;
            self.is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(lost, self.run());
        assert_eq!(self.wrong.load(Ordering::Relaxed), 0, "snapshots of a published but incomplete view");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_an_empty_log_are_complete() {
    let system = TestSystem::new().await;
    let instances = [Running::start(&system), Running::start(&system)];
    until_complete(&system).await;
    for projection in views() {
        assert_eq!(published_generation(&system, projection).await, Some(1));
    }
    for instance in &instances {
        until("the instance is ready", async || instance.readiness.unready().is_none()).await;
    }
    let fields: usize =
        system.target.redis.query(cmd("HLEN").arg(system.target.keys.generations())).await.unwrap();
    assert_eq!(fields, views().count(), "no claim tokens remain");
    for instance in instances {
        instance.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_redis_is_incomplete_until_refilled() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    append_likes(&system).await;
    system.append(&random_history(300)).await;
    system.assert_views_equal_the_log().await;
    until_complete(&system).await;

    let watcher = Watcher::new(&system, |existing, all| existing < all).await;
    watcher.while_lost(system.delete_redis_keys()).await;
    system.assert_views_equal_the_log().await;
    until("the projections are ready again", async || running.readiness.unready().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_view_is_marked_incomplete_before_the_refill() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    append_likes(&system).await;
    system.assert_views_equal_the_log().await;
    until_complete(&system).await;

    // As when one node of a cluster restarts empty, which the controller must detect first.
    let watcher = Watcher::new(&system, |existing, all| 0 < existing && existing < all).await;
    watcher.while_lost(lose_likes(&system)).await;
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shard_count_is_restored_and_a_mismatch_stops_views() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    append_likes(&system).await;
    until_complete(&system).await;
    let key = system.target.keys.shard_count();
    let known = async || {
        system.target.redis.query::<Option<u16>>(cmd("GET").arg(&key)).await.unwrap()
            == Some(system.stores.shards)
    };
    system.delete_redis_keys().await;
    until("the shard count is restored", known).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    // As if a process with another shard count had started first.
    let _: String = system.target.redis.query(cmd("SET").arg(&key).arg(3)).await.unwrap();
    let is_reported = async || {
        let missing = running.readiness.unready().unwrap_or_default();
        (0..PARTITIONS).all(|number| {
            missing.contains(&format!("likes/likes:{number}: this namespace has 3 shards in Redis, but"))
        })
    };
    until("every partition reports the mismatch", is_reported).await;
    assert!(!running.readiness.unready().unwrap().contains("likes-table"), "MySQL has no shards");
    let _: String = system.target.redis.query(cmd("SET").arg(&key).arg(system.stores.shards)).await.unwrap();
    until("the projections are ready again", async || running.readiness.unready().is_none()).await;
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

/// Deletes the view of likes with its positions, but not its published generation.
async fn lose_likes(system: &TestSystem) {
    let mut lost = keys_of(system, &["likers", "favorites", "favorited"]).await;
    lost.extend(keys_of(system, &["checkpoint"]).await.into_iter().filter(|key| key.contains(":likes")));
    let _: i64 = system.target.redis.query(cmd("DEL").arg(lost)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_view_is_marked_incomplete_when_lost() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    append_likes(&system).await;
    system.assert_views_equal_the_log().await;
    until_complete(&system).await;
    let paused = stdout(&projectors(&system, &["pause", LIKES.name]));
    assert_eq!(paused, "likes is paused: 3 partitions stopped\n");

    lose_likes(&system).await;
    until("the view is marked incomplete", async || published_generation(&system, &LIKES).await.is_none())
        .await;
    stdout(&projectors(&system, &["resume", LIKES.name]));
    system.assert_views_equal_the_log().await;
    until_complete(&system).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_process_completes_a_killed_refill() {
    let system = TestSystem::new().await;
    append_likes(&system).await;
    let mut process = system.start_projectors("127.0.0.1:0", &[]);
    let first = system.target.keys.likers(1);
    until("the view is being filled", async || {
        system.target.redis.query::<bool>(cmd("EXISTS").arg(&first)).await.unwrap()
    })
    .await;
    process.kill();
    assert_eq!(published_generation(&system, &LIKES).await, None);

    let next = system.start_projectors("127.0.0.1:0", &[]);
    until_complete(&system).await;
    system.assert_views_equal_the_log().await;
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_published_generation_is_corrected() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    until_complete(&system).await;
    // Generation 7 does not exist. The controller keeps it for a while, since another process may have created it.
    for other in [0, 7] {
        let command = cmd("HSET").arg(system.target.keys.generations()).arg(LIKES.name).arg(other).take();
        let _: i64 = system.target.redis.query(&command).await.unwrap();
        until("the generation is corrected", async || published_generation(&system, &LIKES).await == Some(1))
            .await;
    }
    running.stop().await;
}

/// Creates a system whose log is unavailable, with a view whose published generation is 1 and whose live one is 2, at the
/// given positions.
async fn after_a_switch(first: i64, second: i64) -> TestSystem {
    let mut system = TestSystem::new().await;
    "127.0.0.1:1".clone_into(&mut system.log.kafka_brokers);
    let likes = vidlog_projectors::projections::find(LIKES.name).unwrap();
    desired_state::hold(&system.target.mysql, &likes, std::time::Duration::from_secs(5)).await.unwrap();
    assert!(desired_state::take_over(&system.target.mysql, &likes, 1).await.unwrap());
    for (generation, next) in [(1, first), (2, second)] {
        let keys = system.target.keys.of_generation(&LIKES, generation);
        for shard in keys.shards() {
            let set = cmd("HSET").arg(keys.checkpoint(shard, &LIKES)).arg("likes:0").arg(next).take();
            let _: i64 = system.target.redis.query(&set).await.unwrap();
        }
    }
    let publish = cmd("HSET").arg(system.target.keys.generations()).arg(LIKES.name).arg(1).take();
    let _: i64 = system.target.redis.query(&publish).await.unwrap();
    system
}

#[tokio::test(flavor = "multi_thread")]
async fn cutover_is_published_during_a_kafka_outage() {
    let system = after_a_switch(7, 8).await;
    let running = Running::start(&system);
    until("the generation is corrected", async || published_generation(&system, &LIKES).await == Some(2))
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_live_generation_is_marked_incomplete() {
    let system = after_a_switch(7, 6).await;
    let running = Running::start(&system);
    until("the view is marked incomplete", async || published_generation(&system, &LIKES).await.is_none())
        .await;
    let is_reported = async || {
        let missing = running.readiness.unready().unwrap_or_default();
        missing.lines().any(|line| line.starts_with("likes/view: waiting for the log: "))
    };
    until("the cause is reported", is_reported).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_detects_a_shard_lost_while_stopped() {
    let system = TestSystem::new().await;
    append_likes(&system).await;
    let running = Running::start(&system);
    until_complete(&system).await;
    system.assert_views_equal_the_log().await;
    running.stop().await;

    // As a node of a cluster would. Another node holds the published generations.
    let lost = cmd("KEYS").arg(format!("{}:{{s05}}:*", system.stores.namespace)).take();
    let lost: Vec<String> = system.target.redis.query(&lost).await.unwrap();
    let _: i64 = system.target.redis.query(cmd("DEL").arg(lost)).await.unwrap();
    assert_eq!(published_generation(&system, &LIKES).await, Some(1));
    // The pause prevents a refill before the loss is detected.
    let likes = vidlog_projectors::projections::find("likes").unwrap();
    desired_state::pause(&system.target.mysql, &likes).await.unwrap();
    let running = Running::start(&system);
    until("the view is marked incomplete", async || published_generation(&system, &LIKES).await.is_none())
        .await;
    desired_state::resume(&system.target.mysql, &likes).await.unwrap();
    until_complete(&system).await;
    system.assert_views_equal_the_log().await;
    running.stop().await;
}
