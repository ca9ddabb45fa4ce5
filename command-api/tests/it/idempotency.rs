//! Requests with the same `Idempotency-Key` have the same event and the same response.

use std::{collections::HashSet, iter::zip};

use futures::future::join_all;
use redis::cmd;
use vidlog_contract::Code;
use vidlog_events::Stream;
use vidlog_schemas::{projections, rows::VideoState};

use crate::support::{Answer, Api, Call, World};

const ANN: i64 = 101;
const BOB: i64 = 102;
const VIDEO: i64 = 201;

async fn setup() -> (World, Api) {
    let (world, api) = World::with_api().await;
    world.users(&[ANN, BOB]).await;
    world.video(VIDEO, ANN, VideoState::Published).await;
    (world, api)
}

fn comment(text: &str) -> Call {
    let call = Call::to("/douyin/comment/action/").with("video_id", VIDEO);
    call.with("action_type", 1).with("comment_text", text)
}

fn delete(comment: i64) -> Call {
    let call = Call::to("/douyin/comment/action/").with("video_id", VIDEO);
    call.with("action_type", 2).with("comment_id", comment)
}

fn assert_same(one: &Answer, other: &Answer) {
    assert_eq!(one.text, other.text);
    assert_eq!(one.position(), other.position());
}

#[tokio::test]
async fn retry_gets_the_first_reply_and_appends_nothing() {
    let (world, api) = setup().await;
    let like = || Call::to("/douyin/favorite/action/").with("video_id", VIDEO).with("action_type", 1);
    let follow = || Call::to("/douyin/relation/action/").with("to_user_id", ANN).with("action_type", 1);
    let write = || {
        let call = Call::to("/douyin/message/action/").with("to_user_id", ANN);
        call.with("action_type", 1).with("content", "hi")
    };
    let first = [
        api.call_as(BOB, like().key("1")).await,
        api.call_as(BOB, follow().key("2")).await,
        api.call_as(BOB, comment("nice").key("3")).await,
        api.call_as(BOB, write().key("4")).await,
    ];
    let again = [
        api.call_as(BOB, like().key("1")).await,
        api.call_as(BOB, follow().key("2")).await,
        api.call_as(BOB, comment("nice").key("3")).await,
        api.call_as(BOB, write().key("4")).await,
    ];
    for (first, again) in zip(&first, &again) {
        first.ok();
        assert_same(first, again);
    }
    assert_eq!(world.log.read_all().await.len(), 4);
}

/// The lifetime of a key of Bob's in minutes; negative if the key is not stored.
async fn minutes_left(world: &World, key: &str) -> i64 {
    let ttl = cmd("PTTL").arg(world.keys.idempotency(BOB, key)).take();
    world.redis.query::<i64>(&ttl).await.unwrap().div_euclid(60_000)
}

#[tokio::test]
async fn only_an_answered_key_is_stored_for_a_day() {
    let (world, api) = setup().await;
    api.call_as(BOB, comment("nice").key("answered")).await.ok();
    let day = 24 * 60;
    assert!((day - 5..=day).contains(&minutes_left(&world, "answered").await));
    let stored: Vec<String> =
        world.redis.query(cmd("HKEYS").arg(world.keys.idempotency(BOB, "answered"))).await.unwrap();
    assert_eq!(HashSet::from_iter(stored), HashSet::from(["reserved".to_owned(), "answer".to_owned()]));

    let cut_off = world.api_without_log().await;
    cut_off.call_as(BOB, comment("nice").key("unanswered")).await.fails(Code::Unavailable);
    assert!((1..=15).contains(&minutes_left(&world, "unanswered").await));
    // A retry that fails too does not prolong it.
    let key = world.keys.idempotency(BOB, "unanswered");
    world.redis.query::<i64>(cmd("PEXPIRE").arg(&key).arg(130_000)).await.unwrap();
    cut_off.call_as(BOB, comment("nice").key("unanswered")).await.fails(Code::Unavailable);
    assert!((0..=2).contains(&minutes_left(&world, "unanswered").await));
}

#[tokio::test]
async fn key_of_a_refused_call_is_not_stored() {
    let (world, api) = setup().await;
    let register = |name: &str| {
        let call = Call::to("/douyin/user/register/").with("username", name).with("password", "secret");
        api.call(call.key(name))
    };
    register("ada").await.ok();
    assert_eq!(register("Ada").await.code(), Code::NameTaken.number());
    let anonymous = comment("nice").key("anonymous");
    api.call(anonymous).await.fails(Code::Unauthenticated);
    let missing = Call::to("/douyin/favorite/action/").with("video_id", 999).with("action_type", 1);
    api.call_as(BOB, missing.key("missing")).await.fails(Code::NotFound);

    let mut scan = world.redis.scan(&world.keys.pattern(), 100);
    let mut stored = Vec::new();
    while let Some(names) = scan.next().await.unwrap() {
        stored.extend(names.into_iter().filter(|name| name.contains(":idempotency:")));
    }
    assert_eq!(stored, [""; 0]);
    assert_eq!(world.count("registration_keys").await, 1);
}

#[tokio::test]
async fn stored_key_has_a_bounded_size() {
    let (world, api) = setup().await;
    // Each of these characters is escaped twice: in the event, and in the text that holds it.
    let text = "\\".repeat(255);
    let key = "k".repeat(255);
    let cut_off = world.api_without_log().await;
    cut_off.call_as(BOB, comment(&text).key(&key)).await.fails(Code::Unavailable);
    let bytes = cmd("MEMORY").arg("USAGE").arg(world.keys.idempotency(BOB, &key)).take();
    assert!(world.redis.query::<u64>(&bytes).await.unwrap() < 8 * 1024);
    api.call_as(BOB, comment(&text).key(&key)).await.ok();
    assert!(world.redis.query::<u64>(&bytes).await.unwrap() < 4 * 1024);
}

#[tokio::test]
async fn key_is_bound_to_caller_and_request() {
    let (world, api) = setup().await;
    let first = api.call_as(BOB, comment("nice").key("k")).await;
    let other = api.call_as(ANN, comment("nice").key("k")).await;
    assert_ne!(first.ok()["comment"]["id"], other.ok()["comment"]["id"]);
    api.call_as(BOB, comment("Nice").key("k")).await.fails(Code::InvalidParameter);
    api.call_as(BOB, delete(1).key("k")).await.fails(Code::InvalidParameter);
    api.call_as(BOB, comment("nice").key("k k")).await.fails(Code::InvalidParameter);
    api.call_as(BOB, comment("nice").key(&"k".repeat(256))).await.fails(Code::InvalidParameter);
    assert_eq!(world.log.read(Stream::Comments).await.len(), 2);
}

#[tokio::test]
async fn concurrent_attempts_append_the_same_event() {
    let (world, api) = setup().await;
    let answers = join_all((0..8).map(|_| api.call_as(BOB, comment("nice").key("k")))).await;
    let bodies: HashSet<_> = answers.iter().map(|answer| answer.ok().to_string()).collect();
    assert_eq!(bodies.len(), 1);
    let events: HashSet<_> = world
        .log
        .read(Stream::Comments)
        .await
        .into_iter()
        .map(|logged| format!("{:?}", (logged.envelope.id, logged.envelope.time_ms, logged.envelope.event)))
        .collect();
    assert_eq!(events.len(), 1, "{events:?}");
}

/// Deletes the stored reply, as if the process had crashed between the append and the response.
async fn delete_reply(world: &World, event: &str) {
    let key = world.keys.idempotency(BOB, "k");
    let commands =
        [cmd("HDEL").arg(&key).arg("answer").take(), cmd("HSET").arg(&key).arg("event").arg(event).take()];
    world.redis.pipeline(&commands).await.unwrap();
}

#[tokio::test]
async fn retry_after_unknown_outcome_appends_the_same_event() {
    let (world, api) = setup().await;
    world.comment(301, VIDEO, BOB).await;
    let first = api.call_as(BOB, delete(301).key("k")).await;
    first.ok();
    let events = world.log.read(Stream::Comments).await;
    delete_reply(&world, &vidlog_command_api::envelope_json::to_json(&events[0].envelope).unwrap()).await;

    // The deletion is folded: a new decision would reject it as not found.
    let update = sqlx::query("UPDATE comments SET deleted = TRUE");
    update.execute(&world.mysql).await.unwrap();
    world.passed(projections::COMMENTS_TABLE, &first.position()).await;
    let again = api.call_as(BOB, delete(301).key("k")).await;
    again.ok();
    assert_eq!(again.text, first.text);

    let events = world.log.read(Stream::Comments).await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].envelope, events[1].envelope);
    api.call_as(BOB, delete(301)).await.fails(Code::NotFound);
}

#[tokio::test]
async fn rejection_is_not_stored() {
    let (world, api) = setup().await;
    let like = || Call::to("/douyin/favorite/action/").with("video_id", 202).with("action_type", 1).key("k");
    api.call_as(BOB, like()).await.fails(Code::NotFound);
    world.video(202, ANN, VideoState::Published).await;
    api.call_as(BOB, like()).await.ok();
}

#[tokio::test]
async fn retry_after_kafka_outage_appends_the_stored_event() {
    let (world, api) = setup().await;
    let cut_off = world.api_without_log().await;
    cut_off.call_as(BOB, comment("nice").key("k")).await.fails(Code::Unavailable);
    let key = world.keys.idempotency(BOB, "k");
    let decided: String = world.redis.query(cmd("HGET").arg(&key).arg("event")).await.unwrap();
    let decided = vidlog_command_api::envelope_json::from_json(&decided).unwrap();

    let answer = api.call_as(BOB, comment("nice").key("k")).await;
    answer.ok();
    let events = world.log.read(Stream::Comments).await;
    assert_eq!(events.iter().map(|logged| &logged.envelope).collect::<Vec<_>>(), [&decided]);
    assert_same(&answer, &api.call_as(BOB, comment("nice").key("k")).await);
}

#[tokio::test]
async fn retry_of_a_known_command_needs_no_id() {
    let (world, api) = setup().await;
    let first = api.call_as(BOB, comment("nice").key("k")).await;
    let register = || {
        let call = Call::to("/douyin/user/register/").with("username", "ada");
        call.with("password", "secret").key("r")
    };
    let registered = api.call(register()).await;
    registered.ok();
    api.state.ids.end_lease();
    assert_same(&first, &api.call_as(BOB, comment("nice").key("k")).await);
    let again = api.call(register()).await;
    assert_eq!(again.even_if_stale()["user_id"], registered.body["user_id"]);

    // Without a reply, the stored event and its reserved id suffice.
    let events = world.log.read(Stream::Comments).await;
    delete_reply(&world, &vidlog_command_api::envelope_json::to_json(&events[0].envelope).unwrap()).await;
    let repeated = api.call_as(BOB, comment("nice").key("k")).await;
    assert_eq!(repeated.ok()["comment"]["id"], first.body["comment"]["id"]);
    let events = world.log.read(Stream::Comments).await;
    assert_eq!((events.len(), &events[0].envelope), (2, &events[1].envelope));

    api.call_as(BOB, comment("Nice").key("k")).await.fails(Code::InvalidParameter);
    api.call_as(BOB, comment("nice").key("new")).await.fails(Code::Unavailable);
    api.call_as(BOB, comment("nice")).await.fails(Code::Unavailable);
    let key = world.keys.idempotency(BOB, "new");
    let exists: i64 = world.redis.query(cmd("EXISTS").arg(&key)).await.unwrap();
    assert_eq!(exists, 0, "a refused command reserves no key");
}
