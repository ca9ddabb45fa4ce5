//! Batches that always fail: the partition is blocked until the cause is removed, and other projections continue.

use std::time::{Duration, Instant};

use redis::cmd;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use vidlog_events::Stream;
use vidlog_projectors::{desired_state, projections, view::Projection};
use vidlog_test_support::RedisServer;

use crate::{
    operate::{partitions_of, projectors},
    support::{Running, TestSystem, envelope, get, get_metrics, liked, partition_of, until},
};

const T: i64 = 1_700_000_000_000;
/// Longer than the 5 s after which a partition is blocked, and shorter than the timeout of a write, 10 s.
const REPORTED: Duration = Duration::from_secs(9);

fn projection(name: &str) -> Projection {
    projections::find(name).unwrap()
}

async fn like(system: &TestSystem, user: i64) {
    system.append(&[envelope(liked(1, user), T + user)]).await;
}

/// The partitions of a projection that `status` reports as blocked, with the reason.
fn blocked(system: &TestSystem, projection: &str) -> Vec<(String, String)> {
    let blocked = |partition: &Value| partition["state"] == "blocked";
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let partitions = partitions_of(system, projection).into_iter().filter(blocked);
    partitions.map(|partition| (text(&partition["partition"]), text(&partition["why"]))).collect()
}

/// Waits until one partition of a projection is blocked for a reason, in the readiness and in the status.
async fn until_blocked(system: &TestSystem, running: &Running, projection: &str, reason: &str) {
    let component = format!("{projection}/likes:");
    until("the partition is not ready", async || {
        let unready = running.readiness.unready().unwrap_or_default();
        unready.lines().any(|line| line.starts_with(&component) && line.ends_with(reason))
    })
    .await;
    until("the status shows the blocked partition", async || {
        let blocked = blocked(system, projection);
        blocked.len() == 1 && blocked[0].1 == reason
    })
    .await;
}

async fn until_ready(system: &TestSystem, running: &Running, projection: &str) {
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    until("no partition is blocked", async || blocked(system, projection).is_empty()).await;
    let audited = projectors(system, &["audit", projection]);
    assert!(audited.status.success(), "{audited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn full_redis_blocks_the_partition() {
    let server = RedisServer::start(Vec::new).await;
    let system = TestSystem::on_redis(server.url()).await;
    let running = Running::of(&system, vec![projection("likes"), projection("likes-table")]);
    like(&system, 1).await;
    let likers = system.target.keys.likers(1);
    let likers = async || system.target.redis.query::<i64>(cmd("SCARD").arg(&likers)).await.unwrap();
    until("the record is folded", async || likers().await == 1).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    let limit = |bytes| cmd("CONFIG").arg("SET").arg("maxmemory").arg(bytes).take();
    let _: String = server.query(&limit(1)).await;
    like(&system, 2).await;
    until_blocked(&system, &running, "likes", "Redis error OOM").await;
    assert_eq!(likers().await, 1);
    let _: String = server.query(&limit(0)).await;
    until("the record is folded", async || likers().await == 2).await;
    until_ready(&system, &running, "likes").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_table_blocks_the_partition() {
    let system = TestSystem::new().await;
    let running = Running::of(&system, vec![projection("likes"), projection("likes-table")]);
    like(&system, 1).await;
    until("the record is folded", async || rows(&system).await == Some(1)).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    sqlx::query("RENAME TABLE likes TO elsewhere").execute(&system.target.mysql).await.unwrap();
    like(&system, 2).await;
    until_blocked(&system, &running, "likes-table", "MySQL error 1146: table or database missing").await;
    assert!(blocked(&system, "likes").is_empty(), "the other projection continues");
    sqlx::query("RENAME TABLE elsewhere TO likes").execute(&system.target.mysql).await.unwrap();
    until("the record is folded", async || rows(&system).await == Some(2)).await;
    until_ready(&system, &running, "likes-table").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_table_blocks_the_partition() {
    let system = TestSystem::new().await;
    let running = Running::of(&system, vec![projection("likes"), projection("likes-table")]);
    like(&system, 1).await;
    until("the record is folded", async || rows(&system).await == Some(1)).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    // The error of a server whose disk is full.
    let full = "CREATE TRIGGER full BEFORE INSERT ON likes FOR EACH ROW
                SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1114, MESSAGE_TEXT = 'The table is full'";
    sqlx::raw_sql(full).execute(&system.target.mysql).await.unwrap();
    like(&system, 2).await;
    until_blocked(&system, &running, "likes-table", "MySQL error 1114: table or disk full").await;
    sqlx::raw_sql("DROP TRIGGER full").execute(&system.target.mysql).await.unwrap();
    until("the record is folded", async || rows(&system).await == Some(2)).await;
    until_ready(&system, &running, "likes-table").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_privilege_blocks_the_partition() {
    let system = TestSystem::new().await;
    let execute = async |statement: String| {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&system.target.mysql).await.unwrap();
    };
    let (_projectors, ops) = system.start_with_ops(&["--only", "likes-table"]).await;
    let readyz = async || get(&ops, "/readyz").await.unwrap_or_default();
    like(&system, 1).await;
    until("the record is folded", async || rows(&system).await == Some(1)).await;
    until("the projection is ready", async || readyz().await.starts_with("HTTP/1.0 200")).await;

    // The server checks the privileges of the trigger's definer, who has none, for each row.
    let user = &system.stores.namespace[..30];
    execute(format!("CREATE USER '{user}'@'%'")).await;
    execute(format!(
        "CREATE DEFINER = '{user}'@'%' TRIGGER unprivileged BEFORE INSERT ON likes
         FOR EACH ROW SET NEW.liked_ms = NEW.liked_ms"
    ))
    .await;
    like(&system, 2).await;
    let refused = Instant::now();
    until("the partition is blocked", async || {
        let answer = readyz().await;
        let line = format!("likes-table/likes:{}: MySQL error 1142: privilege missing", partition_of("1"));
        answer.starts_with("HTTP/1.0 503") && answer.lines().any(|found| found == line)
    })
    .await;
    assert!(refused.elapsed() < REPORTED, "{:?}", refused.elapsed());
    until("the status shows the reason", async || {
        let blocked = blocked(&system, "likes-table");
        blocked.len() == 1 && blocked[0].1 == "MySQL error 1142: privilege missing"
    })
    .await;
    execute("DROP TRIGGER unprivileged".to_owned()).await;
    until("the record is folded", async || rows(&system).await == Some(2)).await;
    until("the projection is ready", async || readyz().await.starts_with("HTTP/1.0 200")).await;
    execute(format!("DROP USER '{user}'@'%'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_store_blocks_the_partition() {
    let system = TestSystem::new().await;
    let running = Running::of(&system, vec![projection("likes"), projection("likes-table")]);
    like(&system, 1).await;
    until("the record is folded", async || rows(&system).await == Some(1)).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    // Statements on the table wait without a limit, as on a server that is suspended.
    let mut lock = system.target.mysql.acquire().await.unwrap();
    sqlx::raw_sql("LOCK TABLES likes WRITE").execute(&mut *lock).await.unwrap();
    like(&system, 2).await;
    let hangs = Instant::now();
    until_blocked(&system, &running, "likes-table", "writing a batch takes more than 5 s").await;
    assert!(hangs.elapsed() < REPORTED, "{:?}", hangs.elapsed());
    sqlx::raw_sql("UNLOCK TABLES").execute(&mut *lock).await.unwrap();
    until("the record is folded", async || rows(&system).await == Some(2)).await;
    until_ready(&system, &running, "likes-table").await;
    running.stop().await;
}

/// The number of likes in MySQL.
async fn rows(system: &TestSystem) -> Option<i64> {
    sqlx::query_scalar("SELECT COUNT(*) FROM likes").fetch_one(&system.target.mysql).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_of_a_projection_without_an_instance_is_exported() {
    let system = TestSystem::new().await;
    let (_observer, ops) = system.start_with_ops(&["--only", "user-cards"]).await;
    like(&system, 1).await;
    let exported = async |metric: &str, state: &str| -> Vec<f64> {
        let metrics = get_metrics(&ops).await.unwrap_or_default();
        let prefix = format!("{metric}{{projection=\"likes\",partition=\"likes:");
        let of_state = |line: &&str| line.contains(state);
        let values = metrics.lines().filter(|line| line.starts_with(&prefix)).filter(of_state);
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect()
    };
    let sum = async |metric, state| exported(metric, state).await.into_iter().sum::<f64>();
    let is = async |metric, state, expected: f64| (sum(metric, state).await - expected).abs() < 0.5;
    until("the lag is exported", async || is("projector_lag_records", "", 1.0).await).await;
    assert!(sum("projector_lag_seconds", "").await > 1e6, "the like is years old");
    assert!(is("projector_partition_state", "unassigned", 3.0).await);
    assert!(is("projector_partition_state", "running", 0.0).await);

    let _owner = system.start_projectors("127.0.0.1:0", &["--only", "likes"]);
    let has_an_owner = async || {
        is("projector_lag_records", "", 0.0).await && is("projector_partition_state", "running", 3.0).await
    };
    until("the observer exports the owner's state", has_an_owner).await;
    assert!(is("projector_partition_state", "unassigned", 0.0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn group_has_an_offset_before_the_first_batch() {
    let system = TestSystem::new().await;
    desired_state::pause(&system.target.mysql, &projection("likes")).await.unwrap();
    let running = Running::of(&system, vec![projection("likes"), projection("likes-table")]);
    for name in ["likes", "likes-table"] {
        let group = format!("{}.{name}", system.stores.namespace);
        until("the starting position is committed", async || {
            system.committed_offsets(&group, Stream::Likes) == [Some(0); 3]
        })
        .await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn group_has_no_offset_of_a_deferred_partition() {
    let system = TestSystem::new().await;
    let likes = projection("likes-table");
    // Ahead of the log, as if that were of another cluster.
    let ahead = "INSERT INTO checkpoints_likes_table_2 (stream, partition_no, next_offset)
                 VALUES ('likes', 0, 0), ('likes', 1, 100), ('likes', 2, 100)";
    sqlx::query(ahead).execute(&system.target.mysql).await.unwrap();
    desired_state::pause(&system.target.mysql, &likes).await.unwrap();
    let running = Running::of(&system, vec![likes]);
    let group = format!("{}.likes-table", system.stores.namespace);
    let committed = || system.committed_offsets(&group, Stream::Likes);
    until("the starting position is committed", async || committed()[0] == Some(0)).await;
    assert_eq!(committed(), [Some(0), None, None]);
    running.stop().await;
}
