//! Reads of incomplete views and of changed generations.

use axum::{body::Body, http::Request};
use redis::cmd;
use serde_json::Value;
use vidlog_read_models::{FreshnessRequirement, Position};
use vidlog_schemas::projections::{FEED, FOLLOWS, LIKES, USER_CARDS};

use crate::support::{Api, NOW, Waits, World};

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

/// Deletes every key of the view `likes` in the world's generation.
async fn drop_likes(world: &World) {
    let keys = [world.keys.likers(100), world.keys.favorites(2), world.keys.favorited(1)];
    world.do_all(&[cmd("DEL").arg(&keys).take()]).await;
}

/// Returns a read that waits for a position.
fn read_at(path: &str, position: &str) -> Request<Body> {
    Request::get(path).header("Vidlog-Position", position).body(Body::empty()).unwrap()
}

fn likes(feed: &Value) -> i64 {
    feed["video_list"][0]["favorite_count"].as_i64().unwrap()
}

#[tokio::test]
async fn incomplete_view_is_read_from_the_tables() {
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
async fn incomplete_view_does_not_affect_other_reads() {
    let world = world().await;
    world.follow(2, 1, NOW).await;
    world.incomplete(&FEED).await;
    assert_eq!(world.api().get(FOLLOWERS).await.ids("user_list"), [2]);
}

#[tokio::test]
async fn user_missing_in_an_incomplete_view_is_unavailable() {
    let world = world().await;
    world.incomplete(&USER_CARDS).await;
    let answer = world.api().get("/douyin/user/?user_id=9").await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
}

#[tokio::test]
async fn read_does_not_wait_for_an_incomplete_view() {
    let world = world().await;
    world.follow(2, 1, NOW).await;
    let api = world.api();
    world.incomplete(&FOLLOWS).await;
    let waits = Waits::record();
    world.issue(Position { stream: "follows", partition: 0, next_offset: 7 }).await;
    let read = api.send(read_at(FOLLOWERS, "follows:0:7"));
    let answer = read.await;
    assert_eq!(waits.count(), 0);
    assert!(answer.is_stale());
    assert_eq!(answer.even_if_stale()["user_list"][0]["id"], 2);
}

#[tokio::test]
async fn incomplete_view_without_mysql_is_unavailable() {
    let world = world().await;
    world.incomplete(&LIKES).await;
    let answer = world.api_without_mysql().get(FEED_PATH).await;
    assert_eq!((answer.status.as_u16(), answer.code()), (503, 10009));
}

#[tokio::test]
async fn changed_generation_is_read_by_the_next_request() {
    let world = world().await;
    // A card is one round trip, so the reader learns of the next generation only from its reply.
    let total = async |api: &Api| {
        api.get("/douyin/user/?user_id=1").await.ok()["user"]["total_favorited"].as_i64().unwrap()
    };
    let api = world.api();
    assert_eq!(total(&api).await, 1);
    // The next generation has another total; the keys of the old one are deleted.
    drop_likes(&world).await;
    world.keys.set_generation(&LIKES, 2);
    world.do_all(&[cmd("HSET").arg(world.keys.favorited(1)).arg("total").arg(2).take()]).await;
    world.complete(&LIKES, 2).await;
    assert_eq!(total(&api).await, 2, "the first response");
    assert_eq!(total(&api).await, 2);
    // A new process starts with generation 1.
    world.keys.set_generation(&LIKES, 1);
    assert_eq!(total(&world.api()).await, 2);
}

#[tokio::test]
async fn wait_follows_a_changed_generation() {
    let world = world().await;
    world.progress("follows", "follows", 3, 7).await;
    world.issue(Position { stream: "follows", partition: 3, next_offset: 8 }).await;
    let api = world.api();
    let read = api.send(read_at(FOLLOWERS, "follows:3:8"));
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
async fn redis_data_loss_during_a_read_falls_back_to_the_tables() {
    let world = world().await;
    let models = world.state().models;
    let requirement = FreshnessRequirement {
        scopes: Vec::new(),
        projections: &[LIKES, USER_CARDS],
        client_positions: Vec::new(),
    };
    let world = &world;
    let read = async |source| {
        let before = models.users(source, None, &[1]).await?;
        // The replies so far are of a complete view.
        world.incomplete(&USER_CARDS).await;
        drop_likes(world).await;
        let after = models.users(source, None, &[1]).await?;
        Ok([before, after].map(|users| users[0].as_ref().unwrap().total_favorited))
    };
    let answer = models.freshness.read(requirement, read).await.unwrap();
    assert_eq!((answer.value, answer.stale), ([1, 1], true));
}
