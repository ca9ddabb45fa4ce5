//! The projections on a Redis Cluster, while slots move from node to node and nodes die.

mod handle;
mod nodes;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use redis::cmd;
use vidlog_projectors::projections;
use vidlog_schemas::keys::Shard;
use vidlog_service_kit::shutdown::Shutdown;

use self::nodes::Nodes;
use crate::{
    folding::{assert_twice_equals_once, cases},
    support::{Running, World, envelope, liked, made_up, until},
};

/// Between two appends while something else happens: some two hundred events a second.
const PAUSE: Duration = Duration::from_millis(25);

#[tokio::test(flavor = "multi_thread")]
async fn views_stay_exact_when_slots_move_and_nodes_lose_data() {
    let mut nodes = Nodes::start().await;
    let world = World::on_redis(nodes.url()).await;
    let running = Running::start(&world);
    world.append(&made_up(1500)).await;
    let shards: Vec<_> = world.target.keys.shards().collect();
    has_view(&world, &nodes, shards[3]).await;

    while_events_flow(&world, 0, async {
        move_under_load(&world, &nodes, shards[3]).await;
        let (_, dying) = nodes.owner(&checkpoint(&world, shards[7])).await;
        nodes.kill(dying);
        let away = async || world.target.redis.query::<String>(&cmd("PING")).await.is_err();
        until("the handle notices", away).await;
        nodes.restart(dying);
        nodes.are_whole().await;
        move_under_load(&world, &nodes, shards[7]).await;
    })
    .await;

    let report = world.assert_views_equal_the_log().await;
    assert!(report.lines > 100, "{} lines", report.lines);
    until("all is well", async || running.readiness.missing().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_batch_is_a_no_op_on_a_cluster() {
    let nodes = Nodes::start().await;
    for (events, cuts) in cases().into_iter().take(3) {
        assert_twice_equals_once(&World::on_redis(nodes.url()).await, &events, &cuts).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_an_eviction_policy_is_rejected() {
    let nodes = Nodes::start().await;
    let world = World::on_redis(nodes.url()).await;
    let prepare = async || world.target.prepare(&Shutdown::new()).await;
    let (_, full) = nodes.owner(&checkpoint(&world, world.target.keys.shards().next().unwrap())).await;
    let set = |name, value| cmd("CONFIG").arg("SET").arg(name).arg(value).take();
    let _: String = nodes.node(full).ask(&set("maxmemory-policy", "allkeys-lru")).await;
    prepare().await.expect("without a limit it never does");
    let _: String = nodes.node(full).ask(&set("maxmemory", "100mb")).await;
    let refused = prepare().await.unwrap_err().to_string();
    assert!(refused.contains("allkeys-lru") && refused.contains("noeviction"), "{refused}");
}

/// Moves a shard's slot, half of its keys first; then goes on when commands have met it like that.
async fn move_under_load(world: &World, nodes: &Nodes, shard: Shard) {
    has_view(world, nodes, shard).await;
    let moving = nodes.begin_move(&checkpoint(world, shard)).await;
    let keys: usize = moving.from.ask(cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(moving.slot)).await;
    let before = moving.from.refusals().await + moving.to.refusals().await;
    assert!(moving.keys(keys / 2).await > 0);
    let met = async || moving.from.refusals().await + moving.to.refusals().await > before + 10;
    until("commands meet a slot on the move", met).await;
    moving.end().await;
}

/// Appends likes, each of another user, until something is done.
async fn while_events_flow(world: &World, first: i64, something: impl Future<Output = ()>) {
    let is_done = AtomicBool::new(false);
    let flow = async {
        let mut pace = tokio::time::interval(PAUSE);
        let mut user = first;
        while !is_done.load(Ordering::Relaxed) {
            pace.tick().await;
            let likes: Vec<_> = (user + 1..user + 6)
                .map(|user| envelope(liked(user % 40 + 1, user), 1_710_000_000_000 + user))
                .collect();
            world.append(&likes).await;
            user += 5;
        }
    };
    let something = async {
        something.await;
        is_done.store(true, Ordering::Relaxed);
    };
    tokio::join!(flow, something);
}

/// Waits until likes are folded into a shard.
async fn has_view(world: &World, nodes: &Nodes, shard: Shard) {
    let key = checkpoint(world, shard);
    let folded = async || {
        let fields: Result<i64, _> = world.target.redis.query(cmd("HLEN").arg(&key)).await;
        fields.is_ok_and(|fields| fields > 0)
    };
    until("the shard is folded into", folded).await;
    // Beside the view's bookkeeping, so that there is something to move.
    let (slot, at) = nodes.owner(&key).await;
    let has_keys = async || {
        let keys: usize = nodes.nodes[at].ask(cmd("CLUSTER").arg("COUNTKEYSINSLOT").arg(slot)).await;
        keys > 4
    };
    until("there are keys to move", has_keys).await;
}

fn checkpoint(world: &World, shard: Shard) -> String {
    let likes = projections::find("likes").unwrap();
    world.target.keys.checkpoint(shard, &likes.catalogued).name
}
