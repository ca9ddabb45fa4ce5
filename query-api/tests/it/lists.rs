use serde_json::{Value, json};
use vidlog_schemas::rows::VideoState;

use crate::support::{Api, NOW, World, all_pages};

const LISTS: [&str; 4] = ["publish/list", "favorite/list", "relation/follow/list", "relation/follower/list"];

async fn pages(api: &Api, path: &str, list: &str, limit: usize) -> Vec<i64> {
    let page = async |cursor: Option<String>| {
        let cursor = cursor.unwrap_or_default();
        api.get(&format!("/douyin/{path}/?user_id=1&limit={limit}&cursor={cursor}")).await
    };
    all_pages(list, page, async || {}).await
}

#[tokio::test]
async fn empty_list_is_not_null() {
    let world = World::new().await;
    world.user(1).await;
    for path in LISTS {
        let body = world.api().get_as(1, &format!("/douyin/{path}/")).await.ok();
        let list = if path.starts_with("relation") { "user_list" } else { "video_list" };
        assert_eq!(body, json!({"status_code": 0, "status_msg": "ok", list: []}), "{path}");
    }
}

#[tokio::test]
async fn works_are_newest_first_and_paged() {
    let world = World::new().await;
    world.user(1).await;
    for id in 100..125 {
        world.published(id, 1, NOW + id).await;
    }
    let expected: Vec<_> = (100..125).rev().collect();
    assert_eq!(world.api().get("/douyin/publish/list/?user_id=1").await.ids("video_list"), expected);
    for limit in [1, 7, 25, 500] {
        for api in [world.api(), world.api_without_redis()] {
            assert_eq!(pages(&api, "publish/list", "video_list", limit).await, expected, "{limit}");
        }
    }
}

#[tokio::test]
async fn favorites_page_within_a_millisecond() {
    let world = World::new().await;
    world.users([1, 2]).await;
    for id in 100..125 {
        world.published(id, 2, NOW + id).await;
        // Most likes share one millisecond.
        world.like(1, (id, 2), if id % 5 == 0 { NOW + id } else { NOW }).await;
    }
    let all = world.api().get("/douyin/favorite/list/?user_id=1").await.ids("video_list");
    assert_eq!(all[..5], [120, 115, 110, 105, 100]);
    assert_eq!(all.len(), 25);
    for limit in [1, 3, 8, 24] {
        for api in [world.api(), world.api_without_redis()] {
            assert_eq!(pages(&api, "favorite/list", "video_list", limit).await, all, "{limit}");
        }
    }
}

#[tokio::test]
async fn cursor_of_one_store_works_in_the_other() {
    let world = World::new().await;
    world.users((1..2).chain(10..38)).await;
    // Of one length, as the ids of one time: the stores order others differently.
    for id in 10..38 {
        world.follow(id, 1, NOW).await;
    }
    let apis = [world.api(), world.api_without_redis()];
    let mut calls = 0;
    let page = async |cursor: Option<String>| {
        calls += 1;
        let cursor = cursor.unwrap_or_default();
        apis[calls % 2]
            .get(&format!("/douyin/relation/follower/list/?user_id=1&limit=3&cursor={cursor}"))
            .await
    };
    let mixed = all_pages("user_list", page, async || {}).await;
    assert_eq!(mixed, world.api().get("/douyin/relation/follower/list/?user_id=1").await.ids("user_list"));
}

#[tokio::test]
async fn pages_are_stable_under_follows_and_unfollows() {
    let world = World::new().await;
    world.users(1..60).await;
    for id in 2..32 {
        world.follow(id, 1, NOW).await;
    }
    let api = world.api();
    let before = api.get("/douyin/relation/follower/list/?user_id=1").await.ids("user_list");
    let page = async |cursor: Option<String>| {
        let cursor = cursor.unwrap_or_default();
        api.get(&format!("/douyin/relation/follower/list/?user_id=1&limit=4&cursor={cursor}")).await
    };
    let mut round = 0;
    let seen = all_pages("user_list", page, async || {
        // Inserts a follower and deletes the item that the cursor names.
        world.follow(32 + round, 1, NOW + 1).await;
        let last_seen = before[4 * usize::try_from(round).unwrap() + 3];
        world.unfollow(last_seen, 1).await;
        round += 1;
    })
    .await;
    assert_eq!(seen, before);
}

#[tokio::test]
async fn next_cursor_needs_a_limit_and_more_items() {
    let world = World::new().await;
    world.users(1..6).await;
    for id in 2..6 {
        world.follow(1, id, NOW + id).await;
    }
    let next = async |query: &str| {
        world.api().get(&format!("/douyin/relation/follow/list/?user_id=1{query}")).await.ok()["next_cursor"]
            .clone()
    };
    assert_eq!(next("").await, Value::Null);
    assert_eq!(next("&limit=4").await, Value::Null);
    assert!(next("&limit=3").await.is_string());
}

#[tokio::test]
async fn invalid_limits_and_cursors_are_errors() {
    let world = World::new().await;
    world.user(1).await;
    for path in LISTS {
        let bound = if path.starts_with("relation") { 1000 } else { 500 };
        for query in
            ["limit=0".to_owned(), format!("limit={}", bound + 1), "limit=x".into(), "cursor=x".into()]
        {
            let answer = world.api().get(&format!("/douyin/{path}/?user_id=1&{query}")).await;
            assert_eq!(answer.code(), 10001, "{path} {query}");
        }
        world.api().get(&format!("/douyin/{path}/?user_id=1&limit={bound}&cursor=")).await.ok();
    }
}

#[tokio::test]
async fn list_without_a_limit_is_bounded() {
    let world = World::new().await;
    world.user(1).await;
    for id in 2..1010 {
        world.do_all(&[redis::cmd("ZADD").arg(world.keys.followers(1)).arg(NOW + id).arg(id).take()]).await;
    }
    let users = world.api().get("/douyin/relation/follower/list/?user_id=1").await.ids("user_list");
    assert_eq!((users.len(), users[0]), (1000, 1009));
}

#[tokio::test]
async fn only_the_owner_sees_unpublished_uploads() {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW).await;
    world.unpublished(101, 1, VideoState::Processing).await;
    world.unpublished(102, 1, VideoState::Rejected).await;
    for api in [world.api(), world.api_without_redis()] {
        let own = api.get_as(1, "/douyin/publish/list/").await.even_if_stale();
        let states: Vec<_> = own["video_list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|video| {
                ["id", "state", "state_reason", "play_url", "cover_url"].map(|field| video[field].clone())
            })
            .collect();
        assert_eq!(
            json!(states),
            json!([
                [
                    102,
                    "rejected",
                    "it is no video",
                    "http://media/static/builtin/rejected.mp4",
                    "http://media/static/builtin/rejected.png"
                ],
                [
                    101,
                    "processing",
                    "",
                    "http://media/static/builtin/processing.mp4",
                    "http://media/static/builtin/processing.png"
                ],
                [100, "published", "", "http://media/static/play/100", "http://media/static/cover/100"],
            ])
        );
        for others in [
            api.get_as(2, "/douyin/publish/list/?user_id=1").await,
            api.get("/douyin/publish/list/?user_id=1").await,
        ] {
            let others = others.even_if_stale();
            assert_eq!(others["video_list"].as_array().unwrap().len(), 1);
            assert_eq!(others["video_list"][0]["id"], json!(100));
        }
    }
}

#[tokio::test]
async fn user_id_defaults_to_the_caller() {
    let world = World::new().await;
    world.user(1).await;
    for path in LISTS {
        assert_eq!(world.api().get(&format!("/douyin/{path}/")).await.code(), 10001, "{path}");
        world.api().get_as(1, &format!("/douyin/{path}/")).await.ok();
    }
}
