//! Projections on a Redis Cluster whose slots migrate and whose nodes crash.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::cmd;
use vidlog_projectors::projections;
use vidlog_schemas::keys::Shard;
use vidlog_service_kit::shutdown::Shutdown;
use vidlog_test_support::RedisCluster;

use crate::{
    folding::{assert_twice_equals_once, cases},
    support::{Running, TestSystem, envelope, liked, random_history, until},
};

/// Interval between two appends under load: some two hundred events a second.
const PAUSE: Duration = Duration::from_millis(25);

#[tokio::test(flavor = "multi_thread")]
async fn views_stay_exact_when_slots_move_and_nodes_lose_data() {
    let mut cluster = RedisCluster::start().await;
    let system = TestSystem::on_redis(cluster.url()).await;
    let running = Running::start(&system);
    system.append(&random_history(1500)).await;
    let shards: Vec<_> = system.target.keys.shards().collect();
    has_view(&system, &cluster, shards[3]).await;

    while_events_flow(&system, 0, async {
        move_under_load(&system, &cluster, shards[3]).await;
        let (_, crashing) = cluster.owner(&checkpoint(&system, shards[7])).await;
        cluster.node_mut(crashing).server.kill();
        let fails = async || system.target.redis.query::<String>(&cmd("PING")).await.is_err();
        until("calls fail", fails).await;
        cluster.node_mut(crashing).server.restart();
        cluster.until_healthy().await;
        move_under_load(&system, &cluster, shards[7]).await;
    })
    .await;

    let report = system.assert_views_equal_the_log().await;
    assert!(report.lines > 100, "{} lines", report.lines);
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_batch_is_a_no_op_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    for (events, cuts) in cases().into_iter().take(3) {
        assert_twice_equals_once(&TestSystem::on_redis(cluster.url()).await, &events, &cuts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_an_eviction_policy_is_rejected() {
    let cluster = RedisCluster::start().await;
    let system = TestSystem::on_redis(cluster.url()).await;
    let prepare = async || system.target.prepare(&Shutdown::new()).await;
    let (_, full) = cluster.owner(&checkpoint(&system, system.target.keys.shards().next().unwrap())).await;
    let set = |name, value| cmd("CONFIG").arg("SET").arg(name).arg(value).take();
    let _: String = cluster.node(full).server.query(&set("maxmemory-policy", "allkeys-lru")).await;
    prepare().await.expect("a Redis without a memory limit evicts nothing");
    let _: String = cluster.node(full).server.query(&set("maxmemory", "100mb")).await;
    let refused = prepare().await.unwrap_err().to_string();
    assert!(refused.contains("allkeys-lru") && refused.contains("noeviction"), "{refused}");
}

/// Migrates a shard's slot: half of its keys, and the rest after commands were redirected because of it.
async fn move_under_load(system: &TestSystem, cluster: &RedisCluster, shard: Shard) {
    has_view(system, cluster, shard).await;
    let migration = cluster.begin_migration(&checkpoint(system, shard)).await;
    let keys = migration.from.count_keys(migration.slot).await;
    let before = migration.redirections().await;
    assert!(migration.move_some(keys / 2).await > 0);
    let are_redirected = async || migration.redirections().await > before + 10;
    until("commands are redirected", are_redirected).await;
    migration.finish().await;
}

/// Appends likes of different users until an action ends.
async fn while_events_flow(system: &TestSystem, first: i64, action: impl Future<Output = ()>) {
    let is_done = AtomicBool::new(false);
    let flow = async {
        let mut pace = tokio::time::interval(PAUSE);
        let mut user = first;
        while !is_done.load(Ordering::Relaxed) {
            pace.tick().await;
            let likes: Vec<_> = (user + 1..user + 6)
                .map(|user| envelope(liked(user % 40 + 1, user), 1_710_000_000_000 + user))
                .collect();
            system.append(&likes).await;
            user += 5;
        }
    };
    let action = async {
        action.await;
        is_done.store(true, Ordering::Relaxed);
    };
    tokio::join!(flow, action);
}

/// Waits until likes are folded into a shard.
async fn has_view(system: &TestSystem, cluster: &RedisCluster, shard: Shard) {
    let key = checkpoint(system, shard);
    let folded = async || {
        let fields: Result<i64, _> = system.target.redis.query(cmd("HLEN").arg(&key)).await;
        fields.is_ok_and(|fields| fields > 0)
    };
    until("likes are folded into the shard", folded).await;
    // Keys of the view, besides its checkpoints.
    let (slot, at) = cluster.owner(&key).await;
    let has_keys = async || cluster.node(at).count_keys(slot).await > 4;
    until("there are keys to move", has_keys).await;
}

fn checkpoint(system: &TestSystem, shard: Shard) -> String {
    let likes = projections::find("likes").unwrap();
    system.target.keys.checkpoint(shard, &likes.catalogued).name
}
