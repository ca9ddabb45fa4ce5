//! Rate limits of commands.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use redis::cmd;
use tower::ServiceExt;
use vidlog_command_api::{router, state::CommandState, username::account_key};
use vidlog_contract::Code;
use vidlog_rate_limits::{ForwardedHeader, Quota, RateLimitConfig, RateLimiter};
use vidlog_schemas::rows::VideoState;
use vidlog_service_kit::{config::Stores, ops::Readiness};

use crate::support::{Answer, Api, Call, UNREACHABLE_REDIS, World, until};

const ANN: i64 = 101;
const BOB: i64 = 102;
const VIDEO: i64 = 201;

const HOUR: u32 = 60 * 60;

/// The state of another instance, with its own limiter.
fn instance(api: &Api, config: &RateLimitConfig) -> CommandState {
    let limits = RateLimiter::with_account_key(config.clone(), &api.state.read_models, account_key);
    CommandState { limits, ..api.state.clone() }
}

fn limited(api: &Api, config: &RateLimitConfig) -> vidlog_test_support::Api {
    let state = instance(api, config);
    let tokens = state.tokens.clone();
    vidlog_test_support::Api::new(router(state), tokens)
}

/// A registration that is refused as invalid, unless a limit refuses it before.
fn invalid_registration() -> Call {
    Call::to("/douyin/user/register/").with("username", "ada")
}

#[track_caller]
fn assert_limited(answer: &Answer) {
    assert_eq!((answer.status, answer.code()), (StatusCode::TOO_MANY_REQUESTS, 10008), "{answer:?}");
    let retry_after: u64 = header(answer, "retry-after").parse().unwrap();
    assert!((1..=u64::from(HOUR)).contains(&retry_after));
}

#[track_caller]
fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).unwrap_or_else(|| panic!("no {name}: {answer:?}")).to_str().unwrap()
}

async fn keys(world: &World) -> Vec<String> {
    let mut scan = world.redis.scan(&world.keys.pattern(), 100);
    let mut keys = Vec::new();
    while let Some(names) = scan.next().await.unwrap() {
        keys.extend(names.into_iter().filter(|name| name.contains("}:limit:")));
    }
    keys.sort();
    keys.dedup();
    keys
}

#[tokio::test]
async fn instances_share_the_quota_of_an_address() {
    let (world, api) = World::with_api().await;
    let config = RateLimitConfig { limit_register_address: Quota::per(3, HOUR), ..RateLimitConfig::off() };
    let instances = [limited(&api, &config), limited(&api, &config)];
    let first = instances[0].call(Call::register("ada", "secret")).await;
    first.ok();
    assert_eq!(header(&first, "ratelimit-policy"), r#""register-address";q=3;w=3600"#);
    assert!(header(&first, "ratelimit").starts_with(r#""register-address";r=2;t="#), "{first:?}");
    assert!(!first.headers.contains_key("retry-after"));
    instances[1].call(Call::register("bob", "secret")).await.ok();
    instances[1].call(invalid_registration()).await;
    for instance in &instances {
        let answer = instance.call(Call::register("eve", "secret")).await;
        assert_limited(&answer);
        assert!(header(&answer, "ratelimit").starts_with(r#""register-address";r=0;t="#), "{answer:?}");
        // The fields of a failed registration are there, too.
        assert_eq!((answer.body["user_id"].as_i64(), answer.body["token"].as_str()), (Some(0), Some("")));
    }
    assert_eq!(world.count("accounts").await, 2);
}

#[tokio::test]
async fn default_quotas_admit_a_burst_of_registrations() {
    let (_world, api) = World::with_api().await;
    for _ in 0..250 {
        let answer = api.call(invalid_registration()).await;
        assert_eq!(answer.code(), Code::InvalidParameter.number(), "{answer:?}");
    }
}

#[tokio::test]
async fn quota_of_an_account_counts_every_spelling_and_address() {
    let (_world, api) = World::with_api().await;
    let config = RateLimitConfig {
        limit_login_account: Quota::per(2, HOUR),
        trusted_hops: 1,
        forwarded_header: ForwardedHeader::Forwarded,
        ..RateLimitConfig::off()
    };
    let api = limited(&api, &config);
    let login = |name: &str, address: &str| {
        api.call(Call::login(name, "secret").header("forwarded", &format!("for={address}")))
    };
    assert_eq!(login("Ada", "192.0.2.1").await.code(), Code::LoginFailed.number());
    assert_eq!(login(" ａ\u{200b}dA", "192.0.2.2").await.code(), Code::LoginFailed.number());
    assert_limited(&login("ada", "192.0.2.3").await);
    assert_eq!(login("bob", "192.0.2.3").await.code(), Code::LoginFailed.number());
}

#[tokio::test]
async fn name_that_no_account_can_have_has_no_quota() {
    let (_world, api) = World::with_api().await;
    let config = RateLimitConfig { limit_login_account: Quota::per(1, HOUR), ..RateLimitConfig::off() };
    let api = limited(&api, &config);
    // It is refused before it is normalized, so it has no bucket.
    let name = "\u{fdfa}".repeat(1000);
    for _ in 0..2 {
        assert_eq!(api.call(Call::login(&name, "secret")).await.code(), Code::InvalidParameter.number());
    }
}

#[tokio::test]
async fn address_is_that_which_the_trusted_proxy_saw() {
    let (_world, api) = World::with_api().await;
    let config = RateLimitConfig {
        limit_register_address: Quota::per(1, HOUR),
        trusted_hops: 1,
        ..RateLimitConfig::off()
    };
    let api = limited(&api, &config);
    let call = async |forwarded: &str| {
        api.call(invalid_registration().header("x-forwarded-for", forwarded)).await.status
    };
    assert_eq!(call("192.0.2.1").await, StatusCode::OK);
    assert_eq!(call("203.0.113.7, 192.0.2.1").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(call("192.0.2.1, 192.0.2.2").await, StatusCode::OK);
    assert_eq!(call("2001:db8:0:1::1").await, StatusCode::OK);
    assert_eq!(call("2001:db8:0:1::2").await, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(call("2001:db8:0:2::1").await, StatusCode::OK);
}

#[tokio::test]
async fn user_is_limited_from_any_address() {
    let (world, api) = World::with_api().await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    let config =
        RateLimitConfig { limit_write_user: Quota::per(2, HOUR), trusted_hops: 1, ..RateLimitConfig::off() };
    let api = limited(&api, &config);
    let like = |address: &str| Call::favorite(VIDEO, 1).header("x-forwarded-for", address);
    api.call_as(BOB, like("192.0.2.1")).await.ok();
    api.call_as(BOB, like("192.0.2.2")).await.ok();
    assert_limited(&api.call_as(BOB, like("192.0.2.3")).await);
    api.call_as(ANN, like("192.0.2.3")).await.ok();
    assert_eq!(world.log.read_all().await.len(), 3);
}

#[tokio::test]
async fn refused_upload_is_not_read() {
    let (_world, api) = World::with_api().await;
    let config = RateLimitConfig { limit_upload_user: Quota::per(1, HOUR), ..RateLimitConfig::off() };
    let app = router(instance(&api, &config));
    let upload = |body: Body| {
        let path = format!("/douyin/publish/action/?token={}", api.state.tokens.sign(BOB).unwrap());
        Request::post(path).header("content-type", "multipart/form-data; boundary=b").body(body).unwrap()
    };
    let empty = app.clone().oneshot(upload(Body::from("--b--\r\n"))).await.unwrap();
    assert_eq!(empty.status(), StatusCode::OK);
    // A body that never comes.
    let pending = Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let refused = app.oneshot(upload(pending)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn process_counts_alone_without_redis() {
    let world = World::new().await;
    let stores = Stores { redis_url: UNREACHABLE_REDIS.to_owned().into(), ..world.stores.clone() };
    let api = world.start(world.kafka(), stores, &Readiness::new()).await;
    until("there are ids", async || api.state.ids.next().is_ok()).await;
    let config = RateLimitConfig { limit_register_address: Quota::per(2, HOUR), ..RateLimitConfig::off() };
    let api = limited(&api, &config);
    api.call(Call::register("ada", "secret")).await.even_if_stale();
    api.call(invalid_registration()).await;
    assert_limited(&api.call(Call::register("bob", "secret")).await);
}

#[tokio::test]
async fn user_stores_a_limited_number_of_idempotency_keys() {
    let (world, api) = World::with_api().await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    let config = RateLimitConfig { limit_idempotency_keys: Quota::per(3, HOUR), ..RateLimitConfig::off() };
    let limited = limited(&api, &config);
    let like = |key: &str| Call::favorite(VIDEO, 1).key(key);
    let first = limited.call_as(BOB, like("1")).await;
    first.ok();
    limited.call_as(BOB, like("2")).await.ok();
    // A retry counts, too, and is answered even above the limit.
    for _ in 0..3 {
        assert_eq!(limited.call_as(BOB, like("1")).await.text, first.text);
    }
    limited.call_as(BOB, like("3")).await.fails(Code::TooManyRequests);
    let exists = cmd("EXISTS").arg(world.keys.idempotency(BOB, "3")).take();
    assert_eq!(world.redis.query::<i64>(&exists).await.unwrap(), 0);
    limited.call_as(BOB, Call::favorite(VIDEO, 1)).await.ok();
    limited.call_as(ANN, like("3")).await.ok();
}

#[tokio::test]
async fn refused_calls_leave_nothing_in_redis() {
    let (world, api) = World::with_api().await;
    let config = RateLimitConfig {
        limit_login_account: Quota::per(5, HOUR),
        limit_login_address: Quota::per(2, HOUR),
        ..RateLimitConfig::off()
    };
    let api = limited(&api, &config);
    for number in 0..40 {
        api.call(Call::login(&format!("user {number}"), "secret")).await;
    }
    // One of the address and of each account whose login was admitted, and of the one that was refused in Redis.
    let keys = keys(&world).await;
    assert_eq!(keys.len(), 4, "{keys:?}");
    for key in &keys {
        let ttl: i64 = world.redis.query(cmd("PTTL").arg(key)).await.unwrap();
        assert!((1..=i64::from(HOUR) * 1000).contains(&ttl), "{key}: {ttl}");
    }
}
