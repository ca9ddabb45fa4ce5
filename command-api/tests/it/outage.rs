//! Responses while a dependency is unavailable: in time, correct, and without internal details.

use std::time::{Duration, Instant};

use futures::future::join_all;
use vidlog_contract::Code;
use vidlog_events::Stream;
use vidlog_schemas::rows::VideoState;
use vidlog_service_kit::{config::Stores, ops::Readiness};

use crate::support::{
    Answer, Api, Call, UNREACHABLE_MYSQL, UNREACHABLE_REDIS, World, unreachable_kafka, until,
};

const ANN: i64 = 101;
const BOB: i64 = 102;
const VIDEO: i64 = 201;
/// The client's 5 s, doubled for a loaded machine. Without timeouts of our own an answer would take longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

async fn setup() -> (World, Api) {
    let (world, api) = World::with_api().await;
    world.users(&[ANN, BOB]).await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    world.comment(301, VIDEO, BOB).await;
    (world, api)
}

/// Runs all commands except registration concurrently; returns the answers and the slowest one's duration.
async fn all_commands(api: &Api) -> (Vec<Answer>, Duration) {
    let began = Instant::now();
    let likes = join_all([1, 2].map(|action| api.like(BOB, VIDEO, action)));
    let follows = join_all([1, 2].map(|action| api.follow(BOB, ANN, action)));
    let (mut answers, follows, comment, delete, message) = tokio::join!(
        likes,
        follows,
        api.comment(BOB, VIDEO, "nice"),
        api.delete_comment(BOB, VIDEO, 301),
        api.write(BOB, ANN, "hi"),
    );
    answers.extend(follows);
    answers.extend([comment, delete, message]);
    (answers, began.elapsed())
}

#[tokio::test]
async fn commands_fail_in_time_without_kafka() {
    let (world, _api) = setup().await;
    let readiness = Readiness::new();
    let api = world.start(unreachable_kafka(), world.stores.clone(), &readiness).await;
    until("ids are available", async || api.state.ids.next().is_ok()).await;
    let (answers, took) = all_commands(&api).await;
    for answer in answers {
        answer.fails(Code::Unavailable);
        assert!(!answer.headers.contains_key("vidlog-position"));
    }
    assert!(took < RESPONSE_TIMEOUT, "{took:?}");
    assert!(readiness.unready().unwrap().contains("topics"));
    assert_eq!(world.log.read_all().await, []);
    for scope in [format!("user:{BOB}"), format!("user:{ANN}"), format!("video:{VIDEO}")] {
        assert_eq!(world.marks(&scope).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn likes_and_follows_work_without_mysql() {
    let (world, _api) = setup().await;
    let stores = Stores { mysql_url: UNREACHABLE_MYSQL.to_owned().into(), ..world.stores.clone() };
    let readiness = Readiness::new();
    let api = world.start(world.kafka(), stores, &readiness).await;
    let began = Instant::now();
    let (register, login, (answers, _)) =
        tokio::join!(api.register("ada"), api.login("ada", "secret"), all_commands(&api));
    assert!(began.elapsed() < RESPONSE_TIMEOUT, "{:?}", began.elapsed());
    for answer in [&register, &login] {
        answer.fails(Code::Unavailable);
        assert_eq!((answer.body["user_id"].as_i64(), answer.body["token"].as_str()), (Some(0), Some("")));
    }
    let (likes_and_follows, others) = answers.split_at(4);
    for answer in likes_and_follows {
        answer.ok();
    }
    for answer in others {
        answer.fails(Code::Unavailable);
    }
    assert!(readiness.unready().unwrap().contains("tables"));
    assert_eq!(world.log.read_all().await.len(), 4);
}

#[tokio::test]
async fn commands_without_redis_succeed_as_stale() {
    let (world, _api) = setup().await;
    let stores = Stores { redis_url: UNREACHABLE_REDIS.to_owned().into(), ..world.stores.clone() };
    let api = world.start(world.kafka(), stores, &Readiness::new()).await;
    until("ids are available", async || api.state.ids.next().is_ok()).await;
    let registered = api.register("ada").await;
    assert!(registered.is_stale());
    registered.even_if_stale();
    let (answers, took) = all_commands(&api).await;
    assert!(took < RESPONSE_TIMEOUT, "{took:?}");
    for answer in answers {
        answer.even_if_stale();
        assert!(answer.is_stale());
        assert!(answer.headers.contains_key("vidlog-position"));
    }
    assert_eq!(world.log.read_all().await.len(), 8);

    // An entity missing from stale tables may exist.
    api.like(BOB, 999, 1).await.fails(Code::Unavailable);
    api.follow(BOB, 999, 1).await.fails(Code::Unavailable);
    // An Idempotency-Key that can't be stored is refused.
    let like = Call::to("/douyin/favorite/action/").with("video_id", VIDEO).with("action_type", 1);
    api.call_as(BOB, like.key("k")).await.fails(Code::Unavailable);
    assert_eq!(world.log.read(Stream::Likes).await.len(), 2);
}

#[tokio::test]
async fn commands_without_ids_work_without_a_lease() {
    let (world, api) = setup().await;
    api.state.ids.end_lease();
    api.like(BOB, VIDEO, 1).await.ok();
    api.follow(BOB, ANN, 1).await.ok();
    api.comment(BOB, VIDEO, "nice").await.fails(Code::Unavailable);
    api.write(BOB, ANN, "hi").await.fails(Code::Unavailable);
    api.register("ada").await.fails(Code::Unavailable);
    assert_eq!(world.count("accounts").await, 0);
}

#[tokio::test]
async fn entity_that_a_paused_view_lacks_may_exist() {
    let (world, api) = setup().await;
    api.like(BOB, 999, 1).await.fails(Code::NotFound);
    let pause = "INSERT INTO projections (name, paused) VALUES ('video-cards', TRUE)";
    sqlx::query(pause).execute(&world.mysql).await.unwrap();
    let is_uncertain = async || api.like(BOB, 999, 1).await.code() == Code::Unavailable.number();
    until("the pause is observed", is_uncertain).await;
    // What the view has is still a fact, and other views are not concerned.
    api.like(BOB, VIDEO, 1).await.ok();
    api.follow(BOB, 999, 1).await.fails(Code::NotFound);
}
