use serde_json::json;
use vidlog_schemas::rows::VideoState;

use crate::support::{NOW, World};

#[tokio::test]
async fn card_has_exact_counts() {
    let world = World::new().await;
    world.users([1, 2, 3]).await;
    world.published(100, 1, NOW).await;
    world.published(101, 1, NOW + 1).await;
    world.unpublished(102, 1, VideoState::Processing).await;
    world.follow(1, 2, NOW).await;
    world.follow(2, 1, NOW).await;
    world.follow(3, 1, NOW).await;
    world.like(2, (100, 1), NOW).await;
    world.like(3, (100, 1), NOW).await;
    world.like(3, (101, 1), NOW).await;
    world.like(1, (101, 1), NOW).await;
    let expected = json!({
        "id": 1, "name": "user 1", "follow_count": 1, "follower_count": 2, "is_follow": true,
        "avatar": "http://media/static/builtin/avatar.png",
        "background_image": "http://media/static/builtin/background.png", "signature": "",
        "total_favorited": 4, "work_count": 2, "favorite_count": 1,
    });
    for api in [world.api(), world.api_without_redis()] {
        let body = api.get_as(2, "/douyin/user/?user_id=1").await.even_if_stale();
        assert_eq!(body["user"], expected);
        let anonymous = api.get("/douyin/user/?user_id=1").await.even_if_stale();
        assert_eq!(anonymous["user"]["is_follow"], json!(false));
    }
}

#[tokio::test]
async fn work_count_is_the_length_of_publish_list() {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    world.unpublished(101, 1, VideoState::Processing).await;
    world.unpublished(102, 1, VideoState::Rejected).await;
    for api in [world.api(), world.api_without_redis()] {
        for (caller, count) in [(1, 3), (2, 1)] {
            let user = api.get_as(caller, "/douyin/user/?user_id=1").await.even_if_stale();
            assert_eq!(user["user"]["work_count"], json!(count));
            let list = api.get_as(caller, "/douyin/publish/list/?user_id=1").await.even_if_stale();
            let videos = list["video_list"].as_array().unwrap();
            assert_eq!(videos.len(), count);
            assert!(videos.iter().all(|video| video["author"]["work_count"] == json!(count)));
        }
    }
}

#[tokio::test]
async fn user_id_defaults_to_the_caller() {
    let world = World::new().await;
    world.user(1).await;
    let api = world.api();
    assert_eq!(api.get_as(1, "/douyin/user/").await.ok()["user"]["name"], json!("user 1"));
    assert_eq!(api.get_as(1, "/douyin/user/?user_id=").await.ok()["user"]["id"], json!(1));
    assert_eq!(api.get("/douyin/user/").await.code(), 10001);
}

#[tokio::test]
async fn unknown_user_is_an_error() {
    let world = World::new().await;
    // Without Redis the tables may lag, so a missing user is "unavailable".
    for (api, code) in [(world.api(), 10004), (world.api_without_redis(), 10009)] {
        for path in
            ["user", "publish/list", "favorite/list", "relation/follow/list", "relation/follower/list"]
        {
            assert_eq!(api.get(&format!("/douyin/{path}/?user_id=9")).await.code(), code, "{path}");
            assert_eq!(api.get_as(9, &format!("/douyin/{path}/")).await.code(), code, "{path}");
        }
        assert_eq!(api.get_as(1, "/douyin/relation/friend/list/?user_id=9").await.code(), code);
        assert_eq!(api.get_as(1, "/douyin/message/chat/?to_user_id=9").await.code(), code);
    }
}
