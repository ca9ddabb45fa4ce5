use serde_json::json;
use vidlog_schemas::rows::VideoState;

use crate::support::{NOW, World, all_pages};

async fn world_with_a_video() -> World {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    world
}

#[tokio::test]
async fn comments_are_newest_first_with_their_authors() {
    let world = world_with_a_video().await;
    for (id, user) in [(11, 1), (12, 2), (13, 2), (14, 1)] {
        world.comment(id, 100, user).await;
    }
    world.delete_comment(13, 100).await;
    world.comment(15, 999, 1).await;
    world.follow(1, 2, NOW).await;
    for api in [world.api(), world.api_without_redis()] {
        let body = api.get_as(1, "/douyin/comment/list/?video_id=100").await.even_if_stale();
        let comments = body["comment_list"].as_array().unwrap();
        let shown: Vec<_> = comments
            .iter()
            .map(|comment| {
                json!([comment["id"], comment["user"]["name"], comment["content"], comment["create_date"]])
            })
            .collect();
        assert_eq!(
            json!(shown),
            json!([
                [14, "user 1", "comment 14", "11-14"],
                [12, "user 2", "comment 12", "11-14"],
                [11, "user 1", "comment 11", "11-14"],
            ])
        );
        assert_eq!(comments[1]["user"]["is_follow"], json!(true));
        let feed = api.get("/douyin/feed/").await.even_if_stale();
        assert_eq!(feed["video_list"][0]["comment_count"], json!(3));
    }
}

#[tokio::test]
async fn pages_are_stable_under_inserts_and_deletes() {
    let world = world_with_a_video().await;
    for id in 1000..1020 {
        world.comment(id, 100, 1).await;
    }
    let api = world.api();
    let mut next = 2000;
    let page = async |cursor: Option<String>| {
        let cursor = cursor.unwrap_or_default();
        api.get(&format!("/douyin/comment/list/?video_id=100&limit=6&cursor={cursor}")).await
    };
    let seen = all_pages("comment_list", page, async || {
        world.comment(next, 100, 2).await;
        world.delete_comment(1014, 100).await;
        next += 1;
    })
    .await;
    assert_eq!(seen, (1000..1020).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn comments_of_an_invisible_video_are_not_found() {
    let world = world_with_a_video().await;
    world.unpublished(101, 1, VideoState::Processing).await;
    // Without Redis the tables may lag, so a missing video is "unavailable".
    for (api, code) in [(world.api(), 10004), (world.api_without_redis(), 10009)] {
        assert_eq!(api.get("/douyin/comment/list/?video_id=999").await.code(), code);
        assert_eq!(api.get_as(2, "/douyin/comment/list/?video_id=101").await.code(), code);
        let own = api.get_as(1, "/douyin/comment/list/?video_id=101").await.even_if_stale();
        assert_eq!(own["comment_list"], json!([]));
    }
    assert_eq!(world.api().get("/douyin/comment/list/").await.code(), 10001);
}

#[tokio::test]
async fn author_without_a_card_has_an_empty_name() {
    let world = world_with_a_video().await;
    world.comment(11, 100, 77).await;
    let body = world.api().get("/douyin/comment/list/?video_id=100").await.ok();
    assert_eq!(body["comment_list"][0]["user"]["id"], json!(77));
    assert_eq!(body["comment_list"][0]["user"]["name"], json!(""));
}
