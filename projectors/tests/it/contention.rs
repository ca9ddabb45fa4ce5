//! Rows that another writer locks or adds while a batch is folded: the batch is retried, and parks no key.

use std::time::Duration;

use sqlx::{AssertSqlSafe, MySqlPool};
use tokio::time::timeout;
use vidlog_events::Stream;
use vidlog_projectors::{
    log::{Partition, Record},
    projections,
    store::{SharedStore, StoreError, Stores},
};

use crate::support::{Running, TestSystem, envelope, liked, partition_of, until};

const PARTITION: Partition = Partition { stream: Stream::Likes, number: 0 };
/// Longer than the wait of a batch for a lock, 1 s, and shorter than that of other sessions, 5 s.
const GIVES_UP: Duration = Duration::from_secs(3);
/// Authors of videos with an even and with an odd id.
const EVEN: i64 = 100;

/// The store of `likes-table` with the connections of a projector.
fn likes_table(system: &TestSystem) -> SharedStore {
    Stores::open(&system.stores, 4).unwrap().view(projections::find("likes-table").unwrap())
}

/// Folds a like as the record of its user's number.
async fn fold(store: &SharedStore, video: i64, user: i64) -> Result<(), StoreError> {
    let mut position = store.positions(&[PARTITION]).await.unwrap().remove(0);
    let record = Record { offset: user, envelope: envelope(liked(video, user), 0) };
    store.apply(PARTITION, &mut position, &[record], user + 1).await
}

fn reason(result: Result<(), StoreError>) -> String {
    match result.unwrap_err() {
        StoreError::Retry(unavailable) => unavailable.reason,
        other => panic!("{other:?}"),
    }
}

/// Waits until an INSERT of the namespace waits for a row lock: it has not ended for 100 ms. `innodb_trx` would say so, but is
/// not updated while it is polled.
async fn until_waiting(system: &TestSystem) {
    until("the batch waits for a lock", async || {
        let waiting = "SELECT COUNT(*) FROM information_schema.processlist
                       WHERE db = ? AND command <> 'Sleep' AND info LIKE 'INSERT%' AND time_ms > 100";
        let waiting = sqlx::query_scalar(waiting).bind(&system.stores.namespace);
        waiting.fetch_one(&system.target.mysql).await.unwrap_or(0_i64) == 1
    })
    .await;
}

async fn count(pool: &MySqlPool, select: &'static str) -> i64 {
    sqlx::query_scalar(select).fetch_one(pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_waits_for_a_lock_for_a_second() {
    let system = TestSystem::new().await;
    let store = likes_table(&system);
    fold(&store, 2, 1).await.unwrap();
    let mut lock = system.target.mysql.begin().await.unwrap();
    let select = format!("SELECT * FROM user_like_counts WHERE user_id = {EVEN} FOR UPDATE");
    sqlx::query(AssertSqlSafe(select)).fetch_all(&mut *lock).await.unwrap();
    let refused = timeout(GIVES_UP, fold(&store, 2, 2)).await.expect("the batch gives up");
    assert_eq!(reason(refused), "MySQL error 1205: lock wait timeout");
    lock.rollback().await.unwrap();
    fold(&store, 2, 2).await.unwrap();
    let counts = "SELECT total_favorited FROM user_like_counts WHERE user_id = 100";
    assert_eq!(count(&system.target.mysql, counts).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_count_blocks_its_partition_only() {
    let system = TestSystem::new().await;
    let running = Running::of(&system, vec![projections::find("likes-table").unwrap()]);
    let other =
        (3..100).find(|id| id % 2 == 1 && partition_of(&id.to_string()) != partition_of("2")).unwrap();
    let like = async |video, user| system.append(&[envelope(liked(video, user), user)]).await;
    let likes = "SELECT COUNT(*) FROM likes";
    like(2, 1).await;
    until("the record is folded", async || count(&system.target.mysql, likes).await == 1).await;

    let mut lock = system.target.mysql.begin().await.unwrap();
    let select = format!("SELECT * FROM user_like_counts WHERE user_id = {EVEN} FOR UPDATE");
    sqlx::query(AssertSqlSafe(select)).fetch_all(&mut *lock).await.unwrap();
    // The batches of both partitions lock the count of user 2; the first one then waits for the author's.
    like(2, 2).await;
    until("the partition is blocked", async || {
        let line = format!("likes-table/likes:{}: MySQL error 1205: lock wait timeout", partition_of("2"));
        running.readiness.unready().is_some_and(|unready| unready == line)
    })
    .await;
    like(other, 2).await;
    until("the other partition continues", async || count(&system.target.mysql, likes).await == 2).await;
    lock.rollback().await.unwrap();
    until("the record is folded", async || count(&system.target.mysql, likes).await == 3).await;
    until("the partition is ready", async || running.readiness.unready().is_none()).await;
    assert_eq!(count(&system.target.mysql, "SELECT COUNT(*) FROM parked_likes_table").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn row_of_another_writer_is_no_fault_of_the_record() {
    let system = TestSystem::new().await;
    let store = likes_table(&system);
    let mut other = system.target.mysql.begin().await.unwrap();
    let insert = "INSERT INTO likes (video_id, user_id, author_id, liked_ms) VALUES (2, 1, 100, 0)";
    sqlx::query(insert).execute(&mut *other).await.unwrap();
    let batch = {
        let store = store.clone();
        tokio::spawn(async move { fold(&store, 2, 1).await })
    };
    until_waiting(&system).await;
    other.commit().await.unwrap();
    assert_eq!(reason(batch.await.unwrap()), "MySQL error 1062: duplicate key");
    fold(&store, 2, 1).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlock_is_no_fault_of_the_record() {
    let system = TestSystem::new().await;
    let store = likes_table(&system);
    fold(&store, 2, 1).await.unwrap();
    let mut other = system.target.mysql.begin().await.unwrap();
    // The transaction with fewer changes is rolled back.
    for statement in [
        "INSERT INTO users
         WITH RECURSIVE ids (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < 900)
         SELECT id, 'name', 0 FROM ids",
        "UPDATE user_like_counts SET favorite_count = favorite_count WHERE user_id = 100",
    ] {
        sqlx::query(statement).execute(&mut *other).await.unwrap();
    }
    let batch = {
        let store = store.clone();
        tokio::spawn(async move { fold(&store, 2, 2).await })
    };
    until_waiting(&system).await;
    let add = "INSERT INTO user_like_counts VALUES (2, 0, 0)";
    sqlx::query(add).execute(&mut *other).await.unwrap();
    assert_eq!(reason(batch.await.unwrap()), "MySQL error 1213: deadlock");
    other.rollback().await.unwrap();
    fold(&store, 2, 2).await.unwrap();
}
