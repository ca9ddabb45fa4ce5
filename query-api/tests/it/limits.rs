//! Rate limits of reads.

use vidlog_contract::Code;
use vidlog_query_api::QueryState;
use vidlog_rate_limits::{Quota, RateLimitConfig, RateLimiter};
use vidlog_test_support::Answer;

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
    let dead = vidlog_redis_shards::Redis::open(crate::support::UNREACHABLE_REDIS).unwrap();
    let config = RateLimitConfig { limit_read_address: Quota::per(2, 3600), ..RateLimitConfig::off() };
    let api = limited(world.state_over(dead, world.mysql.clone()), config);
    for _ in 0..2 {
        api.get("/douyin/feed/").await.even_if_stale();
    }
    api.get("/douyin/feed/").await.fails(Code::TooManyRequests);
}
