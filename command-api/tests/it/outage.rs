//! What is answered while something is away: soon, honestly, and without telling what is inside.

use std::time::{Duration, Instant};

use futures::future::join_all;
use vidlog_contract::Code;
use vidlog_events::Stream;
use vidlog_schemas::rows::VideoState;
use vidlog_service_kit::{config::Stores, ops::Readiness};

use crate::support::{Answer, Api, Call, DEAD_MYSQL, DEAD_REDIS, World, dead_kafka, until};

const ANN: i64 = 101;
const BOB: i64 = 102;
const VIDEO: i64 = 201;
/// The client gives up after 5 s. As much again is for a machine that has other tests to run; without a bound of our own
/// an answer would take longer than both.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

async fn given() -> (World, Api) {
    let (world, api) = World::with_api().await;
    world.users(&[ANN, BOB]).await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    world.comment(301, VIDEO, BOB).await;
    (world, api)
}

/// Every command but registration, at once; with the time that the slowest took.
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
async fn without_the_log_nothing_is_written_and_that_is_said_soon() {
    let (world, _api) = given().await;
    let readiness = Readiness::new();
    let api = world.start(dead_kafka(), world.stores.clone(), &readiness).await;
    until("there are ids", async || api.state.ids.next().is_ok()).await;
    let (answers, took) = all_commands(&api).await;
    for answer in answers {
        answer.fails(Code::Unavailable);
        assert!(!answer.headers.contains_key("vidlog-position"));
    }
    assert!(took < CLIENT_PATIENCE, "{took:?}");
    assert!(readiness.missing().unwrap().contains("topics"));
    assert_eq!(world.log.read_all().await, []);
    for scope in [format!("user:{BOB}"), format!("user:{ANN}"), format!("video:{VIDEO}")] {
        assert_eq!(world.marks(&scope).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn without_mysql_there_are_no_new_entities_but_likes_and_follows() {
    let (world, _api) = given().await;
    let stores = Stores { mysql_url: DEAD_MYSQL.to_owned().into(), ..world.stores.clone() };
    let readiness = Readiness::new();
    let api = world.start(world.kafka(), stores, &readiness).await;
    let began = Instant::now();
    let (register, login, (answers, _)) =
        tokio::join!(api.register("ada"), api.login("ada", "secret"), all_commands(&api));
    assert!(began.elapsed() < CLIENT_PATIENCE, "{:?}", began.elapsed());
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
    assert!(readiness.missing().unwrap().contains("tables"));
    assert_eq!(world.log.read_all().await.len(), 4);
}

#[tokio::test]
async fn without_redis_commands_go_on_and_say_that_readers_may_be_behind() {
    let (world, _api) = given().await;
    let stores = Stores { redis_url: DEAD_REDIS.to_owned().into(), ..world.stores.clone() };
    let api = world.start(world.kafka(), stores, &Readiness::new()).await;
    until("there are ids", async || api.state.ids.next().is_ok()).await;
    let registered = api.register("ada").await;
    assert!(registered.is_stale());
    registered.even_if_stale();
    let (answers, took) = all_commands(&api).await;
    assert!(took < CLIENT_PATIENCE, "{took:?}");
    for answer in answers {
        answer.even_if_stale();
        assert!(answer.is_stale());
        assert!(answer.headers.contains_key("vidlog-position"));
    }
    assert_eq!(world.log.read_all().await.len(), 8);

    // What can't be found in tables that may be behind is not said to be missing.
    api.like(BOB, 999, 1).await.fails(Code::Unavailable);
    api.follow(BOB, 999, 1).await.fails(Code::Unavailable);
    // And a promise that can't be kept is not given.
    let like = Call::to("/douyin/favorite/action/").with("video_id", VIDEO).with("action_type", 1);
    api.call_as(BOB, like.key("k")).await.fails(Code::Unavailable);
    assert_eq!(world.log.read(Stream::Likes).await.len(), 2);
}

#[tokio::test]
async fn without_a_node_number_only_what_needs_an_id_has_to_wait() {
    let (world, api) = given().await;
    api.state.ids.end();
    api.like(BOB, VIDEO, 1).await.ok();
    api.follow(BOB, ANN, 1).await.ok();
    api.comment(BOB, VIDEO, "nice").await.fails(Code::Unavailable);
    api.write(BOB, ANN, "hi").await.fails(Code::Unavailable);
    api.register("ada").await.fails(Code::Unavailable);
    assert_eq!(world.count("accounts").await, 0);
}
