//! Rate limits of reads.

use std::time::Duration;

use tokio::time::Instant;
use vidlog_contract::Code;
use vidlog_query_api::QueryState;
use vidlog_rate_limits::{Quota, RateLimitConfig, RateLimiter};
use vidlog_redis_shards::Redis;
use vidlog_test_support::{Answer, Condition, Link, Proxy, until};

use crate::support::{Api, World, api_over};

const ANN: i64 = 101;
const BOB: i64 = 102;

fn limited(state: QueryState, config: RateLimitConfig) -> Api {
    api_over(QueryState { limits: RateLimiter::new(config, &state.models), ..state })
}

#[track_caller]
fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).unwrap_or_else(|| panic!("no {name}: {answer:?}")).to_str().unwrap()
}

#[tokio::test]
async fn reads_are_limited_per_user_and_per_address() {
    let world = World::new().await;
    let api = limited(
        world.state(),
        RateLimitConfig {
            limit_read_user: Quota::per(2, 3600),
            limit_read_address: Quota::per(4, 3600),
            ..RateLimitConfig::off()
        },
    );
    let first = api.get_as(BOB, "/douyin/feed/").await;
    first.ok();
    assert_eq!(header(&first, "ratelimit-policy"), r#""read-address";q=4;w=3600, "read-user";q=2;w=3600"#);
    assert_eq!(header(&first, "ratelimit"), r#""read-address";r=3;t=900, "read-user";r=1;t=1800"#);
    api.get_as(BOB, "/douyin/feed/").await.ok();
    let refused = api.get_as(BOB, "/douyin/feed/").await;
    refused.fails(Code::TooManyRequests);
    assert!((1..=1800).contains(&header(&refused, "retry-after").parse::<u64>().unwrap()));
    api.get_as(ANN, "/douyin/feed/").await.ok();
    api.get("/douyin/feed/").await.fails(Code::TooManyRequests);
}

#[tokio::test]
async fn default_quotas_do_not_limit_a_phone() {
    let world = World::new().await;
    world.user(BOB).await;
    let api = world.api();
    for _ in 0..100 {
        api.get_as(BOB, "/douyin/user/").await.ok();
    }
}

#[tokio::test]
async fn process_counts_alone_without_redis() {
    let world = World::new().await;
    let dead = Redis::open(crate::support::UNREACHABLE_REDIS).unwrap();
    let config = RateLimitConfig { limit_read_address: Quota::per(2, 3600), ..RateLimitConfig::off() };
    let api = limited(world.state_over(dead, world.mysql.clone()), config);
    for _ in 0..2 {
        api.get("/douyin/feed/").await.even_if_stale();
    }
    api.get("/douyin/feed/").await.fails(Code::TooManyRequests);
}

#[tokio::test]
async fn hanging_redis_delays_only_the_first_calls() {
    let world = World::new().await;
    world.user(BOB).await;
    let url = world.stores.redis_url.reveal();
    let link = Link::open();
    let target = url.trim_start_matches("redis://").trim_end_matches('/');
    let proxy = Proxy::over("127.0.0.1:0", target, link.clone()).await.unwrap();
    let redis = Redis::open(&format!("redis://{}/", proxy.address)).unwrap();
    let api = api_over(world.state_over(redis, world.mysql.clone()));
    api.get_as(BOB, "/douyin/user/").await.ok();
    link.set(Condition::Stalled);
    let start = Instant::now();
    for _ in 0..40 {
        // It is charged to the limits, and then fails without a read.
        assert_eq!(api.get("/douyin/user/?user_id=x").await.code(), 10001);
    }
    assert!(start.elapsed() < Duration::from_secs(6), "40 timeouts take 10 s: {:?}", start.elapsed());
    link.set(Condition::Open);
    until("Redis is used again", async || !api.get_as(BOB, "/douyin/user/").await.is_stale()).await;
}
