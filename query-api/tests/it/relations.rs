use serde_json::{Value, json};

use crate::support::{NOW, World, all_pages};

#[tokio::test]
async fn relation_lists_are_latest_first_and_caller_relative() {
    let world = World::new().await;
    world.users([1, 2, 3, 4]).await;
    world.follow(1, 2, NOW).await;
    world.follow(1, 3, NOW + 1).await;
    world.follow(4, 1, NOW + 2).await;
    world.follow(2, 1, NOW + 3).await;
    for api in [world.api(), world.api_without_redis()] {
        let follows = api.get_as(2, "/douyin/relation/follow/list/?user_id=1").await.even_if_stale();
        assert_eq!(column(&follows, "id"), [3, 2]);
        let followers = api.get_as(1, "/douyin/relation/follower/list/").await.even_if_stale();
        assert_eq!(column(&followers, "id"), [2, 4]);
        assert_eq!(column(&followers, "is_follow"), [true, false]);
    }
}

#[tokio::test]
async fn friends_are_mutual_with_the_latest_message() {
    let world = World::new().await;
    world.users(1..8).await;
    for (friend, followed_ms) in [(2, NOW), (3, NOW + 5), (4, NOW + 3)] {
        world.follow(1, friend, NOW + 1).await;
        world.follow(friend, 1, followed_ms).await;
    }
    world.follow(1, 5, NOW).await;
    world.follow(6, 1, NOW).await;
    world.message(1, 2, NOW).await;
    world.message(2, 1, NOW + 1).await;
    world.message(3, 1, NOW).await;
    world.message(1, 3, NOW + 1).await;
    world.message(5, 1, NOW).await;
    for api in [world.api(), world.api_without_redis()] {
        let body = api.get_as(1, "/douyin/relation/friend/list/?user_id=1").await.even_if_stale();
        assert_eq!(column(&body, "id"), [3, 4, 2]);
        let latest = [format!("message {}", NOW + 1), String::new(), format!("message {}", NOW + 1)];
        assert_eq!(json!(column(&body, "message")), json!(latest));
        assert_eq!(column(&body, "msgType"), [1, 0, 0]);
        assert_eq!(column(&body, "name"), ["user 3", "user 4", "user 2"]);
    }
}

#[tokio::test]
async fn messages_of_other_users_are_not_shown() {
    let world = World::new().await;
    world.users([1, 2, 3]).await;
    world.follow(1, 2, NOW).await;
    world.follow(2, 1, NOW).await;
    world.message(1, 2, NOW).await;
    let body = world.api().get_as(3, "/douyin/relation/friend/list/?user_id=1").await.ok();
    assert_eq!(column(&body, "id"), [2]);
    assert_eq!(column(&body, "message"), [""]);
    let body = world.api().get_as(2, "/douyin/relation/friend/list/?user_id=1").await.ok();
    assert_eq!(column(&body, "message"), [""], "no message to oneself");
}

#[tokio::test]
async fn friends_need_a_caller() {
    let world = World::new().await;
    world.user(1).await;
    assert_eq!(world.api().get("/douyin/relation/friend/list/?user_id=1").await.code(), 10002);
    let body = world.api().get_as(1, "/douyin/relation/friend/list/").await.ok();
    assert_eq!(body["user_list"], json!([]));
}

#[tokio::test]
async fn friends_page_within_a_millisecond() {
    let world = World::new().await;
    world.users((1..2).chain(10..28)).await;
    for friend in 10..28 {
        world.follow(1, friend, NOW).await;
        world.follow(friend, 1, NOW).await;
    }
    let all = world.api().get_as(1, "/douyin/relation/friend/list/").await.ids("user_list");
    assert_eq!(all.len(), 18);
    for api in [world.api(), world.api_without_redis()] {
        let page = async |cursor: Option<String>| {
            let cursor = cursor.unwrap_or_default();
            api.get_as(1, &format!("/douyin/relation/friend/list/?limit=5&cursor={cursor}")).await
        };
        assert_eq!(all_pages("user_list", page, async || {}).await, all);
    }
}

fn column(body: &Value, field: &str) -> Vec<Value> {
    body["user_list"].as_array().unwrap().iter().map(|user| user[field].clone()).collect()
}
