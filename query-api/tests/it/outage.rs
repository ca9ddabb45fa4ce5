use std::time::Duration;

use tokio::{
    net::TcpListener,
    time::{Instant, timeout},
};
use vidlog_query_api::QueryState;
use vidlog_redis_shards::Redis;
use vidlog_schemas::rows::VideoState;
use vidlog_service_kit::mysql;
use vidlog_test_support::Proxy;

use crate::support::{Answer, Api, NOW, UNREACHABLE_MYSQL, UNREACHABLE_REDIS, World, api_over};

const ALL: [&str; 9] = [
    "feed/",
    "user/?user_id=1",
    "publish/list/?user_id=1",
    "favorite/list/?user_id=1",
    "comment/list/?video_id=100",
    "relation/follow/list/?user_id=1",
    "relation/follower/list/?user_id=1",
    "relation/friend/list/?user_id=1",
    "message/chat/?to_user_id=1",
];
/// Far above the time until the first request finds a store unavailable, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(10);
/// Above the time of all requests if only the first one waits for the store. Each wait takes 2 s.
const ONE_WAIT: Duration = Duration::from_secs(6);

async fn world() -> World {
    let world = World::new().await;
    world.users(1..6).await;
    for id in 100..105 {
        world.published(id, 1 + id % 2, NOW + id).await;
        world.like(1, (id, 1 + id % 2), NOW).await;
        world.like(3, (id, 1 + id % 2), NOW + id).await;
        world.comment(10 * id, 100, 2).await;
    }
    world.unpublished(106, 1, VideoState::Processing).await;
    world.delete_comment(1010, 100).await;
    for id in 2..6 {
        world.follow(1, id, NOW).await;
        world.follow(id, 1, NOW + id).await;
        world.message(id, 1, NOW).await;
    }
    world.follow(2, 3, NOW).await;
    world
}

/// Sends a request while stores may be unavailable.
async fn get(api: &Api, path: &str) -> Answer {
    timeout(DEADLINE, api.get_as(2, &format!("/douyin/{path}")))
        .await
        .expect("a response before the deadline")
}

#[tokio::test]
async fn reads_without_redis_are_equal_but_stale() {
    let world = world().await;
    let (whole, without_redis) = (world.api(), world.api_without_redis());
    for path in ALL {
        let expected = get(&whole, path).await.ok();
        let answer = get(&without_redis, path).await;
        assert!(answer.is_stale(), "{path}");
        assert_eq!(answer.even_if_stale(), expected, "{path}");
    }
}

#[tokio::test]
async fn reads_without_mysql_use_redis() {
    let world = world().await;
    let (whole, without_mysql) = (world.api(), world.api_without_mysql());
    let needs_mysql =
        |path: &str| ["comment", "relation/friend", "message"].iter().any(|start| path.starts_with(start));
    for path in ALL {
        let expected = get(&whole, path).await.ok();
        let answer = get(&without_mysql, path).await;
        if needs_mysql(path) {
            assert_unavailable(&answer);
        } else {
            assert_eq!(answer.ok(), expected, "{path}");
        }
    }
}

#[tokio::test]
async fn reads_without_stores_fail_fast() {
    let world = World::new().await;
    let state =
        world.state_over(Redis::open(UNREACHABLE_REDIS).unwrap(), mysql::open(UNREACHABLE_MYSQL, 4).unwrap());
    let api = api_over(state);
    assert_unavailable(&get(&api, ALL[0]).await);
    let began = Instant::now();
    for path in ALL {
        assert_unavailable(&get(&api, path).await);
    }
    assert!(began.elapsed() < ONE_WAIT, "only the first request waits: {:?}", began.elapsed());
}

#[tokio::test]
async fn silent_redis_is_unavailable() {
    let world = world().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let redis = Redis::open(&format!("redis://{}/", silent.local_addr().unwrap())).unwrap();
    let api = api_over(world.state_over(redis, world.mysql.clone()));
    assert!(get(&api, ALL[0]).await.is_stale());
    let began = Instant::now();
    for path in ALL {
        assert!(get(&api, path).await.is_stale());
    }
    assert!(began.elapsed() < ONE_WAIT, "only the first request waits: {:?}", began.elapsed());
}

#[tokio::test]
async fn redis_is_used_again_after_an_outage() {
    let world = world().await;
    let listen = format!("127.0.0.1:{}", free_port());
    let redis = Redis::open(&format!("redis://{listen}/")).unwrap();
    let state: QueryState = world.state_over(redis, world.mysql.clone());
    let api = api_over(state);
    assert!(get(&api, ALL[0]).await.is_stale());
    let redis_url = world.stores.redis_url.reveal();
    let target = redis_url.trim_start_matches("redis://").trim_end_matches('/');
    let _proxy = Proxy::forward(listen, target).await.unwrap();
    timeout(Duration::from_mins(1), async { while get(&api, ALL[0]).await.is_stale() {} })
        .await
        .expect("back");
}

#[tokio::test]
async fn corrupt_data_is_an_internal_error_without_details() {
    let world = world().await;
    world
        .do_all(&[
            redis::cmd("DEL").arg(world.keys.followers(1)).take(),
            redis::cmd("SET").arg(world.keys.followers(1)).arg("secret").take(),
        ])
        .await;
    let answer = get(&world.api(), "relation/follower/list/?user_id=1").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (500, 10010));
    assert_eq!(answer.body["status_msg"], "something went wrong on the server");
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009), "{answer:?}");
    let message = answer.body["status_msg"].as_str().unwrap();
    assert!(message.contains("try again"), "{message}");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
