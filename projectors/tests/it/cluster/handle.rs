//! The handle on a cluster answers as it does on one server.

use std::time::Instant;

use redis::{Cmd, ErrorKind, ServerErrorKind, cmd, from_redis_value};
use vidlog_redis_shards::Redis;

use super::nodes::Nodes;
use crate::support::{DEADLINE, until};

/// Keys over all shards of the usual number.
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
    let nodes = Nodes::start().await;
    let redis = Redis::open(&nodes.url()).unwrap();
    // Each key three times: that they are carried out in order shows in what they answer.
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
    let answers = redis.all(&commands).await.unwrap();
    for (key, answers) in keys().iter().zip(answers.chunks(3)) {
        assert_eq!(from_redis_value::<String>(answers[2].clone()).unwrap(), format!("{key}!"));
    }
    assert_eq!(scanned(&redis).await.unwrap(), {
        let mut keys = keys();
        keys.sort();
        keys
    });

    let wrong = [commands[2].clone(), cmd("LPUSH").arg(&keys()[40]).arg(1).take(), commands[5].clone()];
    assert!(redis.all(&wrong).await.unwrap_err().to_string().contains("WRONGTYPE"));
    let apart = cmd("DEL").arg(&keys()[0]).arg(&keys()[20]).take();
    let error = redis.query::<i64>(&apart).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::CrossSlot));
}

#[tokio::test(flavor = "multi_thread")]
async fn call_follows_a_migrating_slot_or_fails() {
    let nodes = Nodes::start().await;
    let redis = Redis::open(&nodes.url()).unwrap();
    let (here, gone, new) = ("n:{s01}:here", "n:{s01}:gone", "n:{s01}:new");
    redis.all(&[as_set(here, "1"), as_set(gone, "2")]).await.unwrap();
    // Another process, that knows where the slots were before.
    let unaware = Redis::open(&nodes.url()).unwrap();
    let _: String = unaware.query(cmd("GET").arg(here)).await.unwrap();
    let sha: String =
        redis.query(cmd("SCRIPT").arg("LOAD").arg("return redis.call('MGET', unpack(KEYS))")).await.unwrap();
    let script = |keys: &[&str]| cmd("EVALSHA").arg(&sha).arg(keys.len()).arg(keys).take();

    let moving = nodes.begin_move(here).await;
    moving.these(&[gone.to_owned()]).await;
    for _ in 0..50 {
        // Others on the same connection, whose slots the target has or has not.
        let beside: Vec<_> = keys().iter().map(|key| as_set(key, "x")).collect();
        let mut commands = vec![
            cmd("HSETNX").arg(new).arg("f").arg("3").take(),
            cmd("PEXPIRE").arg(new).arg(60_000).take(),
            cmd("HGET").arg(new).arg("f").take(),
            cmd("GET").arg(here).take(),
            cmd("GET").arg(gone).take(),
            script(&[gone]),
        ];
        let (found, _) = tokio::join!(redis.all(&commands), redis.all(&beside));
        let found = found.unwrap();
        let values: Vec<String> =
            found[2..5].iter().map(|value| from_redis_value(value.clone()).unwrap()).collect();
        assert_eq!(values, ["3", "1", "2"]);
        assert_eq!(from_redis_value::<Vec<String>>(found[5].clone()).unwrap(), ["2"]);
        commands.push(script(&[here, gone]));
        let error = redis.all(&commands).await.unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::TryAgain),
            "half of the keys are no answer"
        );
    }
    let error = scanned(&redis).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::TryAgain));

    moving.end().await;
    let both: Vec<String> = unaware.query(&script(&[here, gone])).await.unwrap();
    assert_eq!(both, ["1", "2"]);
    nodes.are_whole().await;
    let names = scanned(&redis).await.unwrap();
    assert_eq!(names.len(), keys().len() + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn scan_fails_when_a_slot_moves() {
    let nodes = Nodes::start().await;
    let redis = Redis::open(&nodes.url()).unwrap();
    redis.all(&keys().iter().map(|key| as_set(key, "x")).collect::<Vec<_>>()).await.unwrap();
    let mut scan = redis.scan("n:*", 10);
    assert!(scan.next().await.unwrap().is_some());
    nodes.begin_move("n:{s00}:k:0").await.end().await;
    let error = loop {
        match scan.next().await {
            Ok(page) => assert!(page.is_some(), "the walk must not end as if nothing had happened"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::TryAgain));
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_outage_fails_calls_in_time_until_recovery() {
    let mut nodes = Nodes::start().await;
    let redis = Redis::open(&nodes.url()).unwrap();
    for node in 0..3 {
        nodes.kill(node);
    }
    // Never connected, as in a process that starts before its store.
    assert_fails_at_once(&redis).await;
    for node in 0..3 {
        nodes.restart(node);
    }
    nodes.are_whole().await;
    let answers =
        async || redis.all(&keys().iter().map(|key| as_set(key, "x")).collect::<Vec<_>>()).await.is_ok();
    until("it is found", answers).await;

    // One of three is enough that the probe fails, and a call about its slots.
    nodes.kill(1);
    let fails = async || redis.query::<String>(&cmd("PING")).await.is_err();
    until("a node is missed", fails).await;
    nodes.restart(1);
    nodes.are_whole().await;
    until("it is found again", answers).await;
    let _: String = redis.query(&cmd("PING")).await.unwrap();
}

async fn assert_fails_at_once(redis: &Redis) {
    let began = Instant::now();
    let calls = (0..200).map(|_| async { redis.query::<String>(cmd("GET").arg("n:{s01}:here")).await });
    let failed = futures::future::join_all(calls).await;
    assert!(
        failed.iter().all(|answer| answer.as_ref().is_err_and(redis::RedisError::is_io_error)),
        "{failed:?}"
    );
    assert!(began.elapsed() < DEADLINE / 12, "{:?}", began.elapsed());
}
