use std::{sync::Arc, time::Duration};

use axum::{body::Body, http::Request};
use futures::future::join_all;
use tokio::{sync::Semaphore, time::Instant};
use vidlog_query_api::QueryState;
use vidlog_read_models::{Position, Scope};

use crate::support::{Answer, NOW, Waits, World, api_over};

const FOLLOWERS: &str = "/douyin/relation/follower/list/?user_id=1";

fn follows(next_offset: i64) -> Position {
    Position { stream: "follows", partition: 3, next_offset }
}

async fn world() -> World {
    let world = World::new().await;
    world.users([1, 2, 3]).await;
    world
}

async fn mark(world: &World, scope: Scope, position: Position) {
    world.state().models.freshness.record(&[scope], position).await.unwrap();
}

#[tokio::test]
async fn read_waits_for_a_write_to_its_entity() {
    let world = world().await;
    let waits = Waits::record();
    world.progress("follows", "follows", 3, 7).await;
    mark(&world, Scope::User(1), follows(8)).await;
    let api = world.api();
    let read = api.get(FOLLOWERS);
    let project = async {
        waits.begin().await;
        world.follow(2, 1, NOW).await;
        world.progress("follows", "follows", 3, 8).await;
    };
    let (answer, ()) = tokio::join!(read, project);
    assert_eq!(answer.ids("user_list"), [2]);
}

#[tokio::test]
async fn read_waits_for_the_callers_own_write() {
    let world = world().await;
    let waits = Waits::record();
    mark(&world, Scope::User(2), follows(8)).await;
    let api = world.api();
    let project = async {
        waits.begin().await;
        world.follow(2, 1, NOW).await;
        world.progress("follows", "follows", 3, 8).await;
    };
    let (answer, ()) = tokio::join!(api.get_as(2, "/douyin/user/?user_id=1"), project);
    assert_eq!(answer.ok()["user"]["is_follow"], true);
}

#[tokio::test]
async fn timed_out_wait_makes_the_response_stale() {
    let world = world().await;
    world.follow(3, 1, NOW).await;
    mark(&world, Scope::User(1), follows(8)).await;
    let start = Instant::now();
    let answer = world.api().get(FOLLOWERS).await;
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(answer.is_stale());
    assert_eq!(answer.even_if_stale()["user_list"][0]["id"], 3);
}

#[tokio::test]
async fn stale_read_of_a_missing_user_is_unavailable() {
    let world = world().await;
    let api = world.api();
    let unknown = "/douyin/user/?user_id=9";
    let answer = api.get(unknown).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (200, 10004));
    let never = Position { stream: "users", partition: 0, next_offset: 1 };
    mark(&world, Scope::User(9), never).await;
    let answer = api.get(unknown).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
    let message = answer.body["status_msg"].as_str().unwrap();
    assert!(message.contains("try again"), "{message}");
}

#[tokio::test]
async fn unrelated_marks_are_not_waited_for() {
    let world = world().await;
    let likes = Position { stream: "likes", partition: 0, next_offset: 5 };
    let messages = Position { stream: "messages", partition: 0, next_offset: 5 };
    mark(&world, Scope::User(2), follows(8)).await;
    mark(&world, Scope::Video(1), likes).await;
    mark(&world, Scope::User(1), messages).await;
    // A wait would time out and make the response stale.
    let answer = world.api().get(FOLLOWERS).await;
    assert!(!answer.is_stale());
    assert_eq!(answer.ids("user_list"), [0_i64; 0]);
}

#[tokio::test]
async fn reached_mark_is_not_waited_for() {
    let world = world().await;
    world.follow(2, 1, NOW).await;
    world.progress("follows", "follows", 3, 9).await;
    mark(&world, Scope::User(1), follows(8)).await;
    // A later position of a partition replaces an earlier one, in any order of the writes.
    mark(&world, Scope::User(1), follows(4)).await;
    let answer = world.api().get(FOLLOWERS).await;
    assert!(!answer.is_stale());
    assert_eq!(answer.ids("user_list"), [2]);
}

#[tokio::test]
async fn chat_waits_for_either_side_of_the_conversation() {
    let world = world().await;
    let waits = Waits::record();
    let position = Position { stream: "messages", partition: 1, next_offset: 1 };
    mark(&world, Scope::Conversation(2, 1), position).await;
    let api = world.api();
    let project = async {
        waits.begin().await;
        world.message(2, 1, NOW).await;
        world.progress("messages-table", "messages", 1, 1).await;
    };
    let (answer, ()) = tokio::join!(api.get_as(1, "/douyin/message/chat/?to_user_id=2"), project);
    assert_eq!(answer.ids("message_list"), [NOW]);
}

#[tokio::test]
async fn read_waits_for_the_positions_of_the_client() {
    let world = world().await;
    let waits = Waits::record();
    world.issue(follows(9)).await;
    let api = world.api();
    let request =
        |header: &str| Request::get(FOLLOWERS).header("Vidlog-Position", header).body(Body::empty()).unwrap();
    let project = async {
        waits.begin().await;
        world.follow(2, 1, NOW).await;
        world.progress("follows", "follows", 3, 8).await;
    };
    let (answer, ()) = tokio::join!(api.send(request("follows:3:8, messages:0:99")), project);
    assert_eq!(answer.ids("user_list"), [2]);
    assert_eq!(api.send(request("nonsense")).await.code(), 10001);
    assert_eq!(api.send(request(&["follows:3:1"; 17].join(","))).await.code(), 10001);
}

fn read_with(positions: &str) -> Request<Body> {
    Request::get(FOLLOWERS).header("Vidlog-Position", positions).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn position_that_was_not_issued_is_not_waited_for() {
    let world = world().await;
    let waits = Waits::record();
    world.progress("follows", "follows", 3, 7).await;
    let api = world.api();
    for positions in ["follows:3:8", "follows:3:9223372036854775807", "follows:7:1", "follows:2147483647:1"] {
        let answer = api.send(read_with(positions)).await;
        assert!(answer.is_stale(), "{positions}");
        answer.even_if_stale();
    }
    world.issue(follows(8)).await;
    assert!(api.send(read_with("follows:3:9")).await.is_stale());
    assert_eq!(waits.count(), 0);
    world.progress("follows", "follows", 3, 8).await;
    // An issued position that is reached, and one of a stream that the read does not use.
    assert!(!api.send(read_with("follows:3:8,messages:0:99")).await.is_stale());
}

#[tokio::test]
async fn positions_of_clients_leave_the_waits_for_marks_free() {
    let world = world().await;
    let waits = Waits::record();
    world.issue(follows(8)).await;
    let api = api_over(QueryState { request_permits: Arc::new(Semaphore::new(1024)), ..world.state() });
    let clients = join_all((0..300).map(|_| api.send(read_with("follows:3:8"))));
    let mark_is_waited_for = async {
        waits.begin().await;
        mark(&world, Scope::User(2), Position { stream: "likes", partition: 0, next_offset: 1 }).await;
        let read = api.get_as(2, "/douyin/user/?user_id=1");
        let project = async {
            waits.reach(301).await;
            for projection in ["likes", "top-videos"] {
                world.progress(projection, "likes", 0, 1).await;
            }
        };
        let (answer, ()) = tokio::join!(read, project);
        answer.ok();
    };
    let (clients, ()) = tokio::join!(clients, mark_is_waited_for);
    assert!(clients.iter().all(Answer::is_stale));
}

#[tokio::test]
async fn marks_expire() {
    let world = world().await;
    mark(&world, Scope::User(1), follows(8)).await;
    let key = world.keys.recent_writes("user:1");
    let lifetime: i64 = world.redis.query(redis::cmd("PTTL").arg(key)).await.unwrap();
    assert!((1..=600_000).contains(&lifetime), "{lifetime}");
}
