//! Slow calls, refused calls and unreachable servers: which other reads they affect.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;
use vidlog_read_models::Store;
use vidlog_service_kit::mysql;

use crate::support::{NOW, World, api_over};

const COMMENTS: &str = "/douyin/comment/list/?video_id=100";
/// Below the time of one slow query, and far above that of a fast one.
const FAST: Duration = Duration::from_millis(1500);

async fn setup() -> World {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    world.comment(7, 100, 2).await;
    world
}

#[tokio::test]
async fn slow_page_of_one_entity_fails_no_other_request() {
    let world = setup().await;
    let pool = mysql::open_for_reads(world.stores.mysql_url.reveal(), 8).unwrap();
    let state = world.state_over(world.redis.clone(), pool);
    let tables = state.models.tables.clone();
    let api = api_over(state);
    let slow = || tables.run_for(1, sqlx::query("SELECT SLEEP(60)").execute(tables.pool()));
    let all_slow = async { join_all((0..100).map(|_| slow())).await };
    let others = async {
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            let start = Instant::now();
            assert_eq!(api.get(COMMENTS).await.ids("comment_list"), [7]);
            assert!(start.elapsed() < FAST, "{:?}", start.elapsed());
        }
    };
    let (slow, ()) = tokio::join!(all_slow, others);
    assert!(slow.iter().filter(|result| result.is_err()).count() > 50);
}

#[tokio::test]
async fn server_aborts_a_slow_query() {
    let world = setup().await;
    let pool = mysql::open_for_reads(world.stores.mysql_url.reveal(), 1).unwrap();
    let tables = world.state_over(world.redis.clone(), pool.clone()).models.tables;
    let connection: u64 =
        sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS UNSIGNED)").fetch_one(&pool).await.unwrap();
    // Minutes, of which the server can abort each moment.
    let slow = "SELECT COUNT(*) FROM seq_1_to_100000000000 WHERE seq % 7 = 8";
    let error = tables.run(sqlx::query(slow).execute(&pool)).await.unwrap_err();
    assert!(error.is_unavailable(Store::MySql), "{error}");
    let after: u64 =
        sqlx::query_scalar("SELECT CAST(CONNECTION_ID() AS UNSIGNED)").fetch_one(&pool).await.unwrap();
    assert_eq!(after, connection, "the connection is still usable");
}

#[tokio::test]
async fn exhausted_pool_does_not_open_the_circuit() {
    let world = setup().await;
    let pool = mysql::open_for_reads(world.stores.mysql_url.reveal(), 2).unwrap();
    let state = world.state_over(world.redis.clone(), pool.clone());
    let tables = state.models.tables.clone();
    let api = api_over(state);
    let held = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    // A trial on the pool would fail during the second round, and open the circuit before the third.
    for _ in 0..3 {
        let errors = join_all((0..20).map(|_| tables.run(sqlx::query("SELECT 1").execute(&pool)))).await;
        for error in errors.into_iter().map(Result::unwrap_err) {
            assert!(error.is_unavailable(Store::MySql) && !error.to_string().contains("circuit"), "{error}");
        }
    }
    drop(held);
    // The connections return to the pool in the background.
    drop(pool.acquire().await.unwrap());
    api.get(COMMENTS).await.ok();
}
