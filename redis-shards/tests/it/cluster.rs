//! A real cluster behaves as one server, also during migrations and outages.

use std::time::Instant;

use redis::{Cmd, ErrorKind, ServerErrorKind, cmd, from_redis_value};
use vidlog_redis_shards::Redis;
use vidlog_test_support::{DEADLINE, RedisCluster, until};

/// Keys of 16 hash tags.
fn keys() -> Vec<String> {
    (0..16).flat_map(|shard| (0..20).map(move |entity| format!("n:{{s{shard:02}}}:k:{entity}"))).collect()
}

fn as_set(key: &str, value: &str) -> Cmd {
    cmd("SET").arg(key).arg(value).take()
}

async fn scanned(redis: &Redis) -> redis::RedisResult<Vec<String>> {
    let mut names = Vec::new();
    let mut scan = redis.scan("n:*", 50);
    while let Some(page) = scan.next().await? {
        assert!(page.len() < 200, "a page is bounded, but has {}", page.len());
        names.extend(page);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_across_slots_keep_command_order() {
    let cluster = RedisCluster::start().await;
    let redis = cluster.connect();
    // Three commands per key: their replies depend on their order.
    let commands: Vec<_> = keys()
        .iter()
        .flat_map(|key| {
            [
                cmd("SETNX").arg(key).arg(key).take(),
                cmd("APPEND").arg(key).arg("!").take(),
                cmd("GET").arg(key).take(),
            ]
        })
        .collect();
    let replies = redis.pipeline(&commands).await.unwrap();
    for (key, replies) in keys().iter().zip(replies.chunks(3)) {
        assert_eq!(from_redis_value::<String>(replies[2].clone()).unwrap(), format!("{key}!"));
    }
    assert_eq!(scanned(&redis).await.unwrap(), {
        let mut keys = keys();
        keys.sort();
        keys
    });

    let wrong = [commands[2].clone(), cmd("LPUSH").arg(&keys()[40]).arg(1).take(), commands[5].clone()];
    assert!(redis.pipeline(&wrong).await.unwrap_err().to_string().contains("WRONGTYPE"));
    let cross_slot = cmd("DEL").arg(&keys()[0]).arg(&keys()[20]).take();
    let error = redis.query::<i64>(&cross_slot).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::CrossSlot));
}

#[tokio::test(flavor = "multi_thread")]
async fn call_follows_a_migrating_slot_or_fails() {
    let cluster = RedisCluster::start().await;
    let redis = cluster.connect();
    let (here, gone, new) = ("n:{s01}:here", "n:{s01}:gone", "n:{s01}:new");
    redis.pipeline(&[as_set(here, "1"), as_set(gone, "2")]).await.unwrap();
    // A client with an outdated slot map.
    let unaware = cluster.connect();
    let _: String = unaware.query(cmd("GET").arg(here)).await.unwrap();
    let sha: String =
        redis.query(cmd("SCRIPT").arg("LOAD").arg("return redis.call('MGET', unpack(KEYS))")).await.unwrap();
    let script = |keys: &[&str]| cmd("EVALSHA").arg(&sha).arg(keys.len()).arg(keys).take();

    let migration = cluster.begin_migration(here).await;
    migration.move_keys(&[gone.to_owned()]).await;
    for _ in 0..50 {
        // Concurrent commands on the same connections, to all nodes.
        let beside: Vec<_> = keys().iter().map(|key| as_set(key, "x")).collect();
        let mut commands = vec![
            cmd("HSETNX").arg(new).arg("f").arg("3").take(),
            cmd("PEXPIRE").arg(new).arg(60_000).take(),
            cmd("HGET").arg(new).arg("f").take(),
            cmd("GET").arg(here).take(),
            cmd("GET").arg(gone).take(),
            script(&[gone]),
        ];
        let (found, _) = tokio::join!(redis.pipeline(&commands), redis.pipeline(&beside));
        let found = found.unwrap();
        let values: Vec<String> =
            found[2..5].iter().map(|value| from_redis_value(value.clone()).unwrap()).collect();
        assert_eq!(values, ["3", "1", "2"]);
        assert_eq!(from_redis_value::<Vec<String>>(found[5].clone()).unwrap(), ["2"]);
        commands.push(script(&[here, gone]));
        let error = redis.pipeline(&commands).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::TryAgain),
            "a script needs all of its keys"
        );
    }
    let error = scanned(&redis).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::TryAgain));

    migration.finish().await;
    let both: Vec<String> = unaware.query(&script(&[here, gone])).await.unwrap();
    assert_eq!(both, ["1", "2"]);
    cluster.until_healthy().await;
    let names = scanned(&redis).await.unwrap();
    assert_eq!(names.len(), keys().len() + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn scan_fails_when_a_slot_moves() {
    let cluster = RedisCluster::start().await;
    let redis = cluster.connect();
    redis.pipeline(&keys().iter().map(|key| as_set(key, "x")).collect::<Vec<_>>()).await.unwrap();
    let mut scan = redis.scan("n:*", 10);
    assert!(scan.next().await.unwrap().is_some());
    cluster.begin_migration("n:{s00}:k:0").await.finish().await;
    let error = loop {
        match scan.next().await {
            Ok(page) => assert!(page.is_some(), "the scan must not end early"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::TryAgain));
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_outage_fails_calls_in_time_until_recovery() {
    let mut cluster = RedisCluster::start().await;
    let redis = cluster.connect();
    for node in 0..3 {
        cluster.node_mut(node).server.kill();
    }
    // A client that never connected.
    assert_fails_fast(&redis).await;
    for node in 0..3 {
        cluster.node_mut(node).server.restart();
    }
    cluster.until_healthy().await;
    let responds =
        async || redis.pipeline(&keys().iter().map(|key| as_set(key, "x")).collect::<Vec<_>>()).await.is_ok();
    until("the cluster responds", responds).await;

    // With one node down, a ping of all nodes fails.
    cluster.node_mut(1).server.kill();
    let fails = async || redis.query::<String>(&cmd("PING")).await.is_err();
    until("a ping fails", fails).await;
    cluster.node_mut(1).server.restart();
    cluster.until_healthy().await;
    until("the cluster responds again", responds).await;
    let _: String = redis.query(&cmd("PING")).await.unwrap();
}

async fn assert_fails_fast(redis: &Redis) {
    let began = Instant::now();
    let calls = (0..200).map(|_| async { redis.query::<String>(cmd("GET").arg("n:{s01}:here")).await });
    let failed = futures::future::join_all(calls).await;
    assert!(
        failed.iter().all(|answer| answer.as_ref().is_err_and(redis::RedisError::is_io_error)),
        "{failed:?}"
    );
    assert!(began.elapsed() < DEADLINE / 12, "{:?}", began.elapsed());
}
