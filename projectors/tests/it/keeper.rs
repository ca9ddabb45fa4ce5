//! Publication of complete generations: never while a view is incomplete.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redis::cmd;
use vidlog_projectors::desired_state;
use vidlog_schemas::projections::{self, LIKES, Projection, View};

use crate::{
    operate::{projectors, said},
    support::{PARTITIONS, Running, World, envelope, liked, made_up, until},
};

/// The field of a view, and how many of some keys are there, at one moment.
const LOOK: &str = "return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('EXISTS', unpack(KEYS, 2))}";

fn views() -> impl Iterator<Item = &'static Projection> {
    projections::ALL.iter().filter(|projection| matches!(projection.view, View::Redis(_)))
}

/// Returns the generation that is published to readers.
async fn promised(world: &World, projection: &Projection) -> Option<u32> {
    let command = cmd("HGET").arg(world.target.keys.generations()).arg(projection.name).take();
    world.target.redis.query(&command).await.unwrap()
}

async fn until_complete(world: &World) {
    until("every view is complete", async || {
        for projection in views() {
            if promised(world, projection).await.is_none() {
                return false;
            }
        }
        true
    })
    .await;
}

/// Likes of many videos: their view takes many writes.
async fn append_likes(world: &World) {
    let likes: Vec<_> =
        (0..6000).map(|at| envelope(liked(at % 900 + 1, at % 40 + 1), 1_700_000_000_000 + at)).collect();
    world.append(&likes).await;
}

/// The names of all keys of kinds.
async fn keys_of(world: &World, kinds: &[&str]) -> Vec<String> {
    let mut keys = Vec::new();
    for kind in kinds {
        let pattern = format!("{}:*:{kind}:*", world.stores.namespace);
        keys.extend(world.target.redis.query::<Vec<String>>(cmd("KEYS").arg(pattern)).await.unwrap());
    }
    keys
}

/// Looks at the view of likes without a pause.
struct Watch<'a> {
    world: &'a World,
    keys: Vec<String>,
    /// What must not be seen: a promise with so many keys.
    is_wrong: fn(usize, usize) -> bool,
    wrong: AtomicUsize,
    missed: AtomicBool,
    is_over: AtomicBool,
}

impl<'a> Watch<'a> {
    async fn new(world: &'a World, is_wrong: fn(usize, usize) -> bool) -> Self {
        let keys = keys_of(world, &["likers", "favorites", "favorited"]).await;
        assert!(keys.len() > 900, "{}", keys.len());
        let (missed, is_over) = (AtomicBool::default(), AtomicBool::default());
        Self { world, keys, is_wrong, wrong: AtomicUsize::default(), missed, is_over }
    }

    async fn run(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let mut look = cmd("EVAL");
            look.arg(LOOK).arg(self.keys.len() + 1).arg(self.world.target.keys.generations());
            look.arg(&self.keys).arg(LIKES.name);
            let (promised, there): (Option<u32>, usize) = self.world.target.redis.query(&look).await.unwrap();
            if promised.is_none() {
                self.missed.store(true, Ordering::Relaxed);
            } else if (self.is_wrong)(there, self.keys.len()) {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Watches until the promise was taken back, and is there again.
    async fn while_lost(&self, lose: impl Future<Output = ()>) {
        let lost = async {
            lose.await;
            until("the view is marked incomplete", async || self.missed.load(Ordering::Relaxed)).await;
            until_complete(self.world).await;
            self.is_over.store(true, Ordering::Relaxed);
        };
        tokio::join!(lost, self.run());
        assert_eq!(self.wrong.load(Ordering::Relaxed), 0, "looks at which the view was promised wrongly");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_an_empty_log_are_complete() {
    let world = World::new().await;
    let instances = [Running::start(&world), Running::start(&world)];
    until_complete(&world).await;
    for projection in views() {
        assert_eq!(promised(&world, projection).await, Some(1));
    }
    for instance in &instances {
        until("the instance is ready", async || instance.readiness.missing().is_none()).await;
    }
    let fields: usize =
        world.target.redis.query(cmd("HLEN").arg(world.target.keys.generations())).await.unwrap();
    assert_eq!(fields, views().count(), "no claim tokens remain");
    for instance in instances {
        instance.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_redis_is_incomplete_until_refilled() {
    let world = World::new().await;
    let running = Running::start(&world);
    append_likes(&world).await;
    world.append(&made_up(300)).await;
    world.assert_views_equal_the_log().await;
    until_complete(&world).await;

    let watch = Watch::new(&world, |there, all| there < all).await;
    watch.while_lost(world.delete_redis_keys()).await;
    world.assert_views_equal_the_log().await;
    until("the projections are ready again", async || running.readiness.missing().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_view_is_marked_incomplete_before_the_refill() {
    let world = World::new().await;
    let running = Running::start(&world);
    append_likes(&world).await;
    world.assert_views_equal_the_log().await;
    until_complete(&world).await;

    // As when one node of a cluster restarts empty, which the controller must detect first.
    let watch = Watch::new(&world, |there, all| 0 < there && there < all).await;
    watch.while_lost(lose_likes(&world)).await;
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shard_count_is_restored_and_a_mismatch_stops_views() {
    let world = World::new().await;
    let running = Running::start(&world);
    append_likes(&world).await;
    until_complete(&world).await;
    let key = world.target.keys.shard_count();
    let known = async || {
        world.target.redis.query::<Option<u16>>(cmd("GET").arg(&key)).await.unwrap()
            == Some(world.stores.shards)
    };
    world.delete_redis_keys().await;
    until("the shard count is restored", known).await;
    until("the projections are ready", async || running.readiness.missing().is_none()).await;

    // As if a process with another shard count had started first.
    let _: String = world.target.redis.query(cmd("SET").arg(&key).arg(3)).await.unwrap();
    let is_reported = async || {
        let missing = running.readiness.missing().unwrap_or_default();
        (0..PARTITIONS).all(|number| {
            missing.contains(&format!("likes/likes:{number}: this namespace has 3 shards in Redis, but"))
        })
    };
    until("every partition reports the mismatch", is_reported).await;
    assert!(!running.readiness.missing().unwrap().contains("likes-table"), "MySQL has no shards");
    let _: String = world.target.redis.query(cmd("SET").arg(&key).arg(world.stores.shards)).await.unwrap();
    until("the projections are ready again", async || running.readiness.missing().is_none()).await;
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

/// Deletes the view of likes with its positions, but not its published generation.
async fn lose_likes(world: &World) {
    let mut lost = keys_of(world, &["likers", "favorites", "favorited"]).await;
    lost.extend(keys_of(world, &["checkpoint"]).await.into_iter().filter(|key| key.contains(":likes")));
    let _: i64 = world.target.redis.query(cmd("DEL").arg(lost)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_view_is_marked_incomplete_when_lost() {
    let world = World::new().await;
    let running = Running::start(&world);
    append_likes(&world).await;
    world.assert_views_equal_the_log().await;
    until_complete(&world).await;
    let paused = said(&projectors(&world, &["pause", LIKES.name]));
    assert_eq!(paused, "likes is paused: 3 partitions stand still\n");

    lose_likes(&world).await;
    until("the view is marked incomplete", async || promised(&world, &LIKES).await.is_none()).await;
    said(&projectors(&world, &["resume", LIKES.name]));
    world.assert_views_equal_the_log().await;
    until_complete(&world).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn next_process_completes_a_killed_refill() {
    let world = World::new().await;
    append_likes(&world).await;
    let mut process = world.start_projectors("127.0.0.1:0", &[]);
    let first = world.target.keys.likers(1);
    until("the view is being filled", async || {
        world.target.redis.query::<bool>(cmd("EXISTS").arg(&first)).await.unwrap()
    })
    .await;
    process.kill();
    assert_eq!(promised(&world, &LIKES).await, None);

    let next = world.start_projectors("127.0.0.1:0", &[]);
    until_complete(&world).await;
    world.assert_views_equal_the_log().await;
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_published_generation_is_corrected() {
    let world = World::new().await;
    let running = Running::start(&world);
    until_complete(&world).await;
    // Generation 7 does not exist. The controller keeps it for a while, since another process may have created it.
    for other in [0, 7] {
        let command = cmd("HSET").arg(world.target.keys.generations()).arg(LIKES.name).arg(other).take();
        let _: i64 = world.target.redis.query(&command).await.unwrap();
        until("the generation is corrected", async || promised(&world, &LIKES).await == Some(1)).await;
    }
    running.stop().await;
}

/// Creates a world whose log is unavailable, with a view whose published generation is 1 and whose live one is 2, at the
/// given positions.
async fn after_a_switch(first: i64, second: i64) -> World {
    let mut world = World::new().await;
    "127.0.0.1:1".clone_into(&mut world.log.kafka_brokers);
    let likes = vidlog_projectors::projections::find(LIKES.name).unwrap();
    desired_state::hold(&world.target.mysql, &likes, std::time::Duration::from_secs(5)).await.unwrap();
    assert!(desired_state::take_over(&world.target.mysql, &likes, 1).await.unwrap());
    for (generation, next) in [(1, first), (2, second)] {
        let keys = world.target.keys.of_generation(&LIKES, generation);
        for shard in keys.shards() {
            let set = cmd("HSET").arg(keys.checkpoint(shard, &LIKES)).arg("likes:0").arg(next).take();
            let _: i64 = world.target.redis.query(&set).await.unwrap();
        }
    }
    let say = cmd("HSET").arg(world.target.keys.generations()).arg(LIKES.name).arg(1).take();
    let _: i64 = world.target.redis.query(&say).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn cutover_is_published_during_a_kafka_outage() {
    let world = after_a_switch(7, 8).await;
    let running = Running::start(&world);
    until("the generation is corrected", async || promised(&world, &LIKES).await == Some(2)).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_live_generation_is_marked_incomplete() {
    let world = after_a_switch(7, 6).await;
    let running = Running::start(&world);
    until("the view is marked incomplete", async || promised(&world, &LIKES).await.is_none()).await;
    let is_reported = async || {
        let missing = running.readiness.missing().unwrap_or_default();
        missing.lines().any(|line| line.starts_with("likes/view: waiting for the log: "))
    };
    until("the cause is reported", is_reported).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_detects_a_shard_lost_while_stopped() {
    let world = World::new().await;
    append_likes(&world).await;
    let running = Running::start(&world);
    until_complete(&world).await;
    world.assert_views_equal_the_log().await;
    running.stop().await;

    // As a node of a cluster would. Another node holds the published generations.
    let lost = cmd("KEYS").arg(format!("{}:{{s05}}:*", world.stores.namespace)).take();
    let lost: Vec<String> = world.target.redis.query(&lost).await.unwrap();
    let _: i64 = world.target.redis.query(cmd("DEL").arg(lost)).await.unwrap();
    assert_eq!(promised(&world, &LIKES).await, Some(1));
    // The pause prevents a refill before the loss is detected.
    let likes = vidlog_projectors::projections::find("likes").unwrap();
    desired_state::pause(&world.target.mysql, &likes).await.unwrap();
    let running = Running::start(&world);
    until("the view is marked incomplete", async || promised(&world, &LIKES).await.is_none()).await;
    desired_state::resume(&world.target.mysql, &likes).await.unwrap();
    until_complete(&world).await;
    world.assert_views_equal_the_log().await;
    running.stop().await;
}
