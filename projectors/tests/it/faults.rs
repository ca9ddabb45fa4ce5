//! The runner under faults: killed processes and stores that lose writes.

use std::time::Duration;

use redis::cmd;
use tokio::time::{MissedTickBehavior, interval, timeout};
use vidlog_events::Stream;
use vidlog_projectors::{log::Partition, projections};
use vidlog_schemas::projections::LIKES_TABLE;
use vidlog_service_kit::mysql;

use crate::support::{ChildProcess, PARTITIONS, Running, TestSystem, envelope, liked, random_history, until};

/// Starts all projections in a separate process.
fn start(system: &TestSystem) -> ChildProcess {
    system.start_projectors("127.0.0.1:0", &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn views_stay_exact_after_kills() {
    let system = TestSystem::new().await;
    let events = random_history(6000);
    let mut rounds = events.chunks(events.len().div_ceil(4));
    let mut process = start(&system);
    for round in rounds.by_ref().take(3) {
        // The kill is during the round: after its first records, before its last.
        let before = folded(&system).await;
        system.append(round).await;
        until("the projectors fold records", async || folded(&system).await > before).await;
        process.kill();
        process = start(&system);
    }
    for round in rounds {
        system.append(round).await;
    }
    let report = system.assert_views_equal_the_log().await;
    assert_eq!(report.records, events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn views_stay_exact_when_instances_change_during_lag() {
    let system = TestSystem::new().await;
    // More records than the queue of one partition holds, so it is paused, resumed and reassigned.
    let lag: Vec<_> =
        (0..12_000).map(|user| envelope(liked(1, user % 4000 + 1), 1_700_000_000_000 + user)).collect();
    system.append(&lag).await;
    let mut first = start(&system);
    until("the first instance folds records", async || folded(&system).await > 0).await;
    let second = start(&system);
    until("both instances share the groups", async || system.group_members("likes") == 2).await;
    first.kill();
    system.append(&random_history(1000)).await;
    system.assert_views_equal_the_log().await;
    drop(second);
}

#[tokio::test(flavor = "multi_thread")]
async fn view_starts_when_its_store_becomes_available() {
    let system = TestSystem::new().await;
    system.append(&random_history(300)).await;
    sqlx::query("RENAME TABLE checkpoints_likes_table_2 TO elsewhere")
        .execute(&system.target.mysql)
        .await
        .unwrap();
    let running = Running::start(&system);
    let is_reported = async || {
        running
            .readiness
            .unready()
            .is_some_and(|missing| missing.contains("failed to read the view's position"))
    };
    until("the error is reported", is_reported).await;
    sqlx::query("RENAME TABLE elsewhere TO checkpoints_likes_table_2")
        .execute(&system.target.mysql)
        .await
        .unwrap();
    system.assert_views_equal_the_log().await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn emptied_redis_is_refilled_automatically() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let events = random_history(800);
    system.append(&events).await;
    system.assert_views_equal_the_log().await;

    // Without new events the runner must detect the loss by polling.
    system.delete_redis_keys().await;
    let report = system.assert_views_equal_the_log().await;
    assert!(report.lines > 100);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_progress_is_republished_after_redis_loss() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let is_published = async || {
        let query = cmd("HVALS").arg(system.target.keys.progress(&LIKES_TABLE)).take();
        system.target.redis.query::<Vec<i64>>(&query).await.unwrap().contains(&1)
    };
    until("the progress is published", is_published).await;

    // No event follows the loss, and the view itself has lost nothing.
    system.delete_redis_keys().await;
    until("the progress is published again", is_published).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn restored_mysql_view_is_refilled_automatically() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&random_history(800)).await;
    system.assert_views_equal_the_log().await;

    let mut transaction = system.target.mysql.begin().await.unwrap();
    // All tables of the view, as a restored backup has them.
    for statement in [
        "DELETE FROM likes",
        "DELETE FROM video_like_counts",
        "DELETE FROM user_like_counts",
        "UPDATE checkpoints_likes_table_2 SET next_offset = 0",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
    system.assert_views_equal_the_log().await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_ahead_of_its_log_is_not_changed() {
    let system = TestSystem::new().await;
    for number in 0..PARTITIONS {
        for shard in system.target.keys.shards() {
            let keys = &system.target.keys;
            let likes = &vidlog_schemas::projections::LIKES;
            for key in [keys.checkpoint(shard, likes), keys.parts_checkpoint(shard, likes)] {
                let set = cmd("HSET").arg(&key).arg(format!("likes:{number}")).arg(1000).take();
                let _: i64 = system.target.redis.query(&set).await.unwrap();
            }
        }
    }
    let running = Running::start(&system);
    system.append(&[envelope(liked(1, 1), 1_700_000_000_000)]).await;
    let is_reported =
        async || running.readiness.unready().is_some_and(|missing| missing.contains("the view is at 1000"));
    until("the mismatch is reported", is_reported).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn view_of_another_log_is_not_changed() {
    let system = TestSystem::new().await;
    let likes = |range: std::ops::RangeInclusive<i64>| -> Vec<_> {
        range.map(|user| envelope(liked(1, user), 1_700_000_000_000 + user)).collect()
    };
    system.append(&likes(1..=5)).await;
    let running = Running::start(&system);
    system.assert_views_equal_the_log().await;
    running.stop().await;

    // Longer than the position of the view, so offsets do not reveal the replacement.
    system.recreate_topic(Stream::Likes).await;
    system.append(&likes(11..=30)).await;
    let running = Running::start(&system);
    for view in ["likes/likes:", "likes-table/likes:"] {
        let is_reported = async || {
            let missing = running.readiness.unready().unwrap_or_default();
            missing.lines().any(|line| line.starts_with(view) && line.contains("this log is not the one"))
        };
        until("the mismatch is reported", is_reported).await;
    }
    assert_eq!(likers(&system).await, 5);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_of_an_empty_log_is_its_first_record() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    until("the instance joins the groups", async || {
        system.group_members("likes") == 1 && system.group_members("likes-table") == 1
    })
    .await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    let first = envelope(liked(1, 1), 1_700_000_000_000);
    system.append(std::slice::from_ref(&first)).await;
    let first = first.id.to_string();
    until("Redis stores the identity", async || {
        let query = cmd("HVALS").arg(system.target.keys.logs()).take();
        system.target.redis.query::<Vec<String>>(&query).await.unwrap() == [first.clone()]
    })
    .await;
    until("MySQL stores the identity", async || {
        let query = sqlx::query_scalar::<_, String>("SELECT first_record FROM logs");
        query.fetch_all(&system.target.mysql).await.unwrap() == [first.clone()]
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trickling_records_do_not_delay_alignment() {
    /// Shorter than the time after which an idle partition aligns, 500 ms; only a few such intervals reach the time
    /// between two alignments, 1 s.
    const TRICKLE: Duration = Duration::from_millis(300);
    /// Fewer than the batches between two alignments, 32.
    const RECORDS: i64 = 31;
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    until("the instance joins the group", async || system.group_members("likes") == 1).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    let mut trickle = interval(TRICKLE);
    trickle.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for user in 1..=RECORDS {
        trickle.tick().await;
        system.append(&[envelope(liked(1, user), 1_700_000_000_000 + user)]).await;
        until("the record is folded", async || likers(&system).await == user).await;
        if folded(&system).await > 0 {
            return running.stop().await;
        }
    }
    panic!("the view did not align");
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_of_a_silent_writer_blocks_no_connection() {
    let system = TestSystem::new().await;
    let add = "INSERT INTO logs VALUES ('likes', 0, 'a')";
    sqlx::query(add).execute(&system.target.mysql).await.unwrap();
    let lock = "SELECT * FROM logs FOR UPDATE";
    let mut silent = system.target.mysql.begin().await.unwrap();
    sqlx::query(lock).fetch_all(&mut *silent).await.unwrap();

    let pool = mysql::open(system.stores.mysql_url.reveal(), 1).unwrap();
    let cut_off = async {
        let mut transaction = pool.begin().await.unwrap();
        sqlx::query(lock).fetch_all(&mut *transaction).await
    };
    assert!(timeout(Duration::from_millis(200), cut_off).await.is_err());
    // Shorter than the lock wait timeout of the server, 50 s.
    let others = timeout(Duration::from_secs(30), async {
        loop {
            match sqlx::query_as("SELECT @@wait_timeout, @@sql_mode").fetch_one(&pool).await {
                Ok(session) => return session,
                Err(sqlx::Error::PoolTimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (silence_s, mode): (u64, String) = others.await.expect("the pool has a connection again");
    assert_eq!(silence_s, 60, "the server closes silent connections");
    assert!(mode.contains("STRICT_ALL_TABLES"), "{mode}");
    silent.rollback().await.unwrap();
}

/// Returns the number of users who like video 1.
async fn likers(system: &TestSystem) -> i64 {
    system.target.redis.query(cmd("SCARD").arg(system.target.keys.likers(1))).await.unwrap()
}

/// Returns the number of records that all parts of the views of likes and messages contain.
async fn folded(system: &TestSystem) -> i64 {
    let mut sum = 0;
    for name in ["likes", "messages-table"] {
        let projection = projections::find(name).unwrap();
        let stream = projection.streams().next().unwrap();
        let partitions: Vec<_> = (0..PARTITIONS).map(|number| Partition { stream, number }).collect();
        let positions = system.target.view(projection).positions(&partitions).await.unwrap();
        sum += positions.iter().map(vidlog_projectors::store::Position::lowest).sum::<i64>();
    }
    sum
}
