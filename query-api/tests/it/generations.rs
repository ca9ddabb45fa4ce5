//! Which views readers trust, and which generation of them they read.

use std::time::Duration;

use axum::{body::Body, http::Request};
use redis::cmd;
use serde_json::Value;
use tokio::time::timeout;
use vidlog_read_models::FreshnessRequirement;
use vidlog_schemas::projections::{FEED, FOLLOWS, LIKES, USER_CARDS};

use crate::support::{Api, NOW, World};

const FEED_PATH: &str = "/douyin/feed/";
const FOLLOWERS: &str = "/douyin/relation/follower/list/?user_id=1";

/// Video 100 of user 1, which user 2 likes.
async fn world() -> World {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    world.like(2, (100, 1), NOW).await;
    world
}

/// Removes every key of a view of the generation that the world makes keys of.
async fn drop_likes(world: &World) {
    let keys = [world.keys.likers(100), world.keys.favorites(2), world.keys.favorited(1)];
    world.do_all(&[cmd("DEL").arg(&keys).take()]).await;
}

/// A read that waits for a position.
fn from_position(path: &str, position: &str) -> Request<Body> {
    Request::get(path).header("Vidlog-Position", position).body(Body::empty()).unwrap()
}

fn likes(feed: &Value) -> i64 {
    feed["video_list"][0]["favorite_count"].as_i64().unwrap()
}

#[tokio::test]
async fn a_view_that_is_not_complete_is_not_read() {
    let world = world().await;
    let api = world.api();
    drop_likes(&world).await;
    assert_eq!(likes(&api.get(FEED_PATH).await.ok()), 0, "the view is what is read");

    world.incomplete(&LIKES).await;
    let answer = api.get(FEED_PATH).await;
    assert!(answer.is_stale());
    assert_eq!(likes(&answer.even_if_stale()), 1, "and now the tables");
    world.complete(&LIKES, 1).await;
    assert_eq!(likes(&api.get(FEED_PATH).await.ok()), 0);
}

#[tokio::test]
async fn a_view_that_is_not_read_need_not_be_complete() {
    let world = world().await;
    world.follow(2, 1, NOW).await;
    world.incomplete(&FEED).await;
    assert_eq!(world.api().get(FOLLOWERS).await.ids("user_list"), [2]);
}

#[tokio::test]
async fn what_a_view_that_is_not_complete_lacks_is_not_said_to_be_missing() {
    let world = world().await;
    world.incomplete(&USER_CARDS).await;
    let answer = world.api().get("/douyin/user/?user_id=9").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
}

#[tokio::test]
async fn a_reader_does_not_wait_for_a_view_that_is_not_complete() {
    let world = world().await;
    world.follow(2, 1, NOW).await;
    let api = world.api();
    world.incomplete(&FOLLOWS).await;
    let read = api.send(from_position(FOLLOWERS, "follows:0:7"));
    // It would wait for two seconds.
    let answer = timeout(Duration::from_millis(1900), read).await.expect("no wait");
    assert!(answer.is_stale());
    assert_eq!(answer.even_if_stale()["user_list"][0]["id"], 2);
}

#[tokio::test]
async fn without_the_tables_a_view_that_is_not_complete_is_no_answer() {
    let world = world().await;
    world.incomplete(&LIKES).await;
    let answer = world.api_without_mysql().get(FEED_PATH).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
}

#[tokio::test]
async fn a_changed_generation_is_followed_at_once() {
    let world = world().await;
    // All of a card is one round trip: nothing before it tells the reader of the next generation.
    let total = async |api: &Api| {
        api.get("/douyin/user/?user_id=1").await.ok()["user"]["total_favorited"].as_i64().unwrap()
    };
    let api = world.api();
    assert_eq!(total(&api).await, 1);
    // The next generation has another number; the old one is dropped.
    drop_likes(&world).await;
    world.keys.set_generation(&LIKES, 2);
    world.do_all(&[cmd("HSET").arg(world.keys.favorited(1)).arg("total").arg(2).take()]).await;
    world.complete(&LIKES, 2).await;
    assert_eq!(total(&api).await, 2, "the first answer already");
    assert_eq!(total(&api).await, 2);
    // A process that starts now begins with the first generation.
    world.keys.set_generation(&LIKES, 1);
    assert_eq!(total(&world.api()).await, 2);
}

#[tokio::test]
async fn a_wait_follows_a_changed_generation() {
    let world = world().await;
    world.progress("follows", "follows", 3, 7).await;
    let api = world.api();
    let read = api.send(from_position(FOLLOWERS, "follows:3:8"));
    let switch = async {
        world.keys.set_generation(&FOLLOWS, 2);
        world.follow(2, 1, NOW).await;
        world.progress("follows", "follows", 3, 8).await;
        world.complete(&FOLLOWS, 2).await;
    };
    let (answer, ()) = tokio::join!(read, switch);
    assert_eq!(answer.ids("user_list"), [2]);
}

#[tokio::test]
async fn redis_may_lose_everything_in_the_middle_of_a_read() {
    let world = world().await;
    let models = world.state().models;
    let need = FreshnessRequirement {
        scopes: Vec::new(),
        projections: &[LIKES, USER_CARDS],
        client_positions: Vec::new(),
    };
    let world = &world;
    let read = async |source| {
        let before = models.users(source, None, &[1]).await?;
        // The marks and the first commands were answered by a complete view.
        world.incomplete(&USER_CARDS).await;
        drop_likes(world).await;
        let after = models.users(source, None, &[1]).await?;
        Ok([before, after].map(|users| users[0].as_ref().unwrap().total_favorited))
    };
    let answer = models.freshness.read(need, read).await.unwrap();
    assert_eq!((answer.value, answer.stale), ([1, 1], true));
}
