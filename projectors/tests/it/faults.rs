//! The runner under faults: processes that die, stores that lose writes.

use std::time::Duration;

use redis::cmd;
use tokio::time::{sleep, timeout};
use vidlog_events::Stream;
use vidlog_projectors::{log::Partition, projections};
use vidlog_schemas::projections::LIKES_TABLE;
use vidlog_service_kit::mysql;

use crate::support::{ChildProcess, PARTITIONS, Running, World, envelope, liked, made_up, until};

/// Starts every projection in a process of its own.
fn start(world: &World) -> ChildProcess {
    world.start_projectors("127.0.0.1:0", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_projector_leaves_exact_views() {
    let world = World::new().await;
    let events = made_up(6000);
    let mut rounds = events.chunks(events.len().div_ceil(4));
    let mut process = start(&world);
    for round in rounds.by_ref().take(3) {
        // Killed while it folds: after it has begun on the round, before it can have ended.
        let before = folded(&world).await;
        world.append(round).await;
        until("the projectors fold", async || folded(&world).await > before).await;
        process.kill();
        process = start(&world);
    }
    for round in rounds {
        world.append(round).await;
    }
    let report = world.assert_views_equal_the_log().await;
    assert_eq!(report.records, events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_come_and_go_in_the_middle_of_a_long_lag() {
    let world = World::new().await;
    // More than a partition's queue holds, in one partition: it is paused and resumed, and changes hands meanwhile.
    let lag: Vec<_> =
        (0..12_000).map(|user| envelope(liked(1, user % 4000 + 1), 1_700_000_000_000 + user)).collect();
    world.append(&lag).await;
    let mut first = start(&world);
    until("the first folds", async || folded(&world).await > 0).await;
    let second = start(&world);
    until("they share the groups", async || world.group_members("likes") == 2).await;
    first.kill();
    world.append(&made_up(1000)).await;
    world.assert_views_equal_the_log().await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_whose_store_is_away_at_the_start_begins_when_it_is_back() {
    let world = World::new().await;
    world.append(&made_up(300)).await;
    sqlx::query("RENAME TABLE checkpoints_likes_table TO elsewhere")
        .execute(&world.target.mysql)
        .await
        .unwrap();
    let running = Running::start(&world);
    let told = async || {
        running.readiness.missing().is_some_and(|missing| missing.contains("the store does not return"))
    };
    until("it is told", told).await;
    sqlx::query("RENAME TABLE elsewhere TO checkpoints_likes_table")
        .execute(&world.target.mysql)
        .await
        .unwrap();
    world.assert_views_equal_the_log().await;
    until("all is well", async || running.readiness.missing().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_everything_is_refilled_without_help() {
    let world = World::new().await;
    let running = Running::start(&world);
    let events = made_up(800);
    world.append(&events).await;
    world.assert_views_equal_the_log().await;

    // No event comes after the loss: that the store went back has to be noticed by itself.
    world.delete_redis_keys().await;
    let report = world.assert_views_equal_the_log().await;
    assert!(report.lines > 100);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_a_mysql_view_is_is_told_again_when_redis_lost_it() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let told = async || {
        let told = cmd("HVALS").arg(world.target.keys.progress(&LIKES_TABLE)).take();
        world.target.redis.query::<Vec<i64>>(&told).await.unwrap().contains(&1)
    };
    until("readers are told", told).await;

    // No event comes after the loss, and the view has lost nothing.
    world.delete_redis_keys().await;
    until("readers are told again", told).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mysql_view_restored_to_an_earlier_position_is_refilled_without_help() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append(&made_up(800)).await;
    world.assert_views_equal_the_log().await;

    let mut transaction = world.target.mysql.begin().await.unwrap();
    for statement in ["DELETE FROM likes", "UPDATE checkpoints_likes_table SET next_offset = 0"] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    world.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_further_than_its_log_is_left_alone() {
    let world = World::new().await;
    for number in 0..PARTITIONS {
        for shard in world.target.keys.shards() {
            let keys = &world.target.keys;
            let likes = &vidlog_schemas::projections::LIKES;
            for key in [keys.checkpoint(shard, likes), keys.parts_checkpoint(shard, likes)] {
                let set = cmd("HSET").arg(&key).arg(format!("likes:{number}")).arg(1000).take();
                let _: i64 = world.target.redis.query(&set).await.unwrap();
            }
        }
    }
    let running = Running::start(&world);
    world.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let told =
        async || running.readiness.missing().is_some_and(|missing| missing.contains("the view is at 1000"));
    until("the mismatch is reported", told).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_was_folded_from_another_log_is_left_alone() {
    let world = World::new().await;
    let likes = |range: std::ops::RangeInclusive<i64>| -> Vec<_> {
        range.map(|user| envelope(liked(1, user), 1_700_000_000_000 + user)).collect()
    };
    world.append(&likes(1..=5)).await;
    let running = Running::start(&world);
    world.assert_views_equal_the_log().await;
    running.stop().await;

    // Longer than the view is far: no offset tells that it is not the same.
    world.recreate_topic(Stream::Likes).await;
    world.append(&likes(11..=30)).await;
    let running = Running::start(&world);
    for view in ["likes/likes:", "likes-table/likes:"] {
        let told = async || {
            let missing = running.readiness.missing().unwrap_or_default();
            missing.lines().any(|line| line.starts_with(view) && line.contains("this log is not the one"))
        };
        until("the mismatch is reported", told).await;
    }
    let likers: i64 = world.target.redis.query(cmd("SCARD").arg(world.target.keys.likers(1))).await.unwrap();
    assert_eq!(likers, 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_empty_at_the_start_is_remembered_from_its_first_record_on() {
    let world = World::new().await;
    let running = Running::start(&world);
    until("it is in the groups", async || {
        world.group_members("likes") == 1 && world.group_members("likes-table") == 1
    })
    .await;
    until("all is ready", async || running.readiness.missing().is_none()).await;

    let first = envelope(liked(1, 1), 1_700_000_000_000);
    world.append(std::slice::from_ref(&first)).await;
    let first = first.id.to_string();
    until("Redis remembers it", async || {
        let known = cmd("HVALS").arg(world.target.keys.logs()).take();
        world.target.redis.query::<Vec<String>>(&known).await.unwrap() == [first.clone()]
    })
    .await;
    until("MySQL remembers it", async || {
        let known = sqlx::query_scalar::<_, String>("SELECT first_record FROM logs");
        known.fetch_all(&world.target.mysql).await.unwrap() == [first.clone()]
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_settles_while_records_trickle_in() {
    let world = World::new().await;
    let running = Running::start(&world);
    until("it is in the group", async || world.group_members("likes") == 1).await;
    until("all is ready", async || running.readiness.missing().is_none()).await;
    // Never still for so long that it settles because of that, and fewer batches than it settles after.
    for user in 1..=31 {
        world.append(&[envelope(liked(1, user), 1_700_000_000_000 + user)]).await;
        sleep(Duration::from_millis(300)).await;
        if folded(&world).await > 0 {
            return running.stop().await;
        }
    }
    panic!("no part of the view came to the same place as the others");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_went_silent_with_a_lock_keeps_no_connection_from_others() {
    let world = World::new().await;
    let add = "INSERT INTO logs VALUES ('likes', 0, 'a')";
    sqlx::query(add).execute(&world.target.mysql).await.unwrap();
    let lock = "SELECT * FROM logs FOR UPDATE";
    let mut silent = world.target.mysql.begin().await.unwrap();
    sqlx::query(lock).fetch_all(&mut *silent).await.unwrap();

    let pool = mysql::open(world.stores.mysql_url.reveal(), 1).unwrap();
    let cut_off = async {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query(lock).fetch_all(&mut *transaction).await
    };
    assert!(timeout(Duration::from_millis(200), cut_off).await.is_err());
    // Sooner than the server would give up on the lock by itself, after 50 s.
    let others = timeout(Duration::from_secs(30), async {
        loop {
            match sqlx::query_as("SELECT @@wait_timeout, @@sql_mode").fetch_one(&pool).await {
                Ok(session) => return session,
                Err(sqlx::Error::PoolTimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (silence_s, mode): (u64, String) = others.await.expect("others have the connection");
    assert_eq!(silence_s, 60, "the server gives up on the silent one");
    assert!(mode.contains("STRICT_ALL_TABLES"), "{mode}");
    silent.rollback().await.unwrap();
}

/// Records that the views of likes and of messages have passed.
async fn folded(world: &World) -> i64 {
    let mut sum = 0;
    for name in ["likes", "messages-table"] {
        let projection = projections::find(name).unwrap();
        let stream = projection.streams().next().unwrap();
        let partitions: Vec<_> = (0..PARTITIONS).map(|number| Partition { stream, number }).collect();
        let positions = world.target.view(projection).positions(&partitions).await.unwrap();
        sum += positions.iter().map(vidlog_projectors::store::Position::lowest).sum::<i64>();
    }
    sum
}
