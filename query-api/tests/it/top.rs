use serde_json::json;
use vidlog_schemas::keys::{WEEK_MS, feed_week_of};

use crate::support::{Api, NOW, World, all_pages};

/// Reads a list from the views or, stale, from the tables.
async fn ids(api: &Api, path: &str) -> Vec<i64> {
    vidlog_test_support::api::ids(&api.get(path).await.even_if_stale(), "video_list")
}

async fn pages(api: &Api, query: &str) -> Vec<i64> {
    let page = async |cursor: Option<String>| {
        api.get(&format!("/douyin/feed/top/?{query}&cursor={}", cursor.unwrap_or_default())).await
    };
    all_pages("video_list", page, async || {}).await
}

/// Inserts 40 videos of this week and one of the week before. Video `100 + n` has `n % 4` likes.
async fn two_weeks() -> World {
    let world = World::new().await;
    world.users([1, 2, 3, 4]).await;
    for number in 0..40 {
        world.published(100 + number, 1, NOW + number).await;
        for user in 2..2 + number % 4 {
            world.like(user, (100 + number, 1), NOW).await;
        }
    }
    world.published(50, 1, NOW - WEEK_MS).await;
    world.like(2, (50, 1), NOW).await;
    world
}

fn most_liked_first() -> Vec<i64> {
    let mut expected: Vec<i64> = (100..140).collect();
    expected.sort_by_key(|id| (-(id % 4), -id));
    expected
}

#[tokio::test]
async fn newest_week_is_most_liked_first() {
    let world = two_weeks().await;
    for api in [world.api(), world.api_without_redis()] {
        assert_eq!(api.get("/douyin/feed/top").await.even_if_stale(), {
            let body = api.get(&format!("/douyin/feed/top/?week={}", feed_week_of(NOW))).await;
            body.even_if_stale()
        });
        assert_eq!(ids(&api, "/douyin/feed/top/").await, most_liked_first());
    }
    let first = &world.api().get_as(4, "/douyin/feed/top/").await.ok()["video_list"][0];
    assert_eq!((&first["favorite_count"], &first["is_favorite"]), (&json!(3), &json!(true)));
}

#[tokio::test]
async fn pages_neither_repeat_nor_skip_ties() {
    let world = two_weeks().await;
    for limit in [1, 3, 10, 39, 40] {
        for api in [world.api(), world.api_without_redis()] {
            assert_eq!(pages(&api, &format!("limit={limit}")).await, most_liked_first(), "{limit}");
        }
    }
}

#[tokio::test]
async fn cursor_stays_in_its_week_when_a_new_one_begins() {
    let world = two_weeks().await;
    let week = feed_week_of(NOW);
    for (id, api) in [(200, world.api()), (201, world.api_without_redis())] {
        let page = api.get(&format!("/douyin/feed/top/?limit=39&week={week}")).await.even_if_stale();
        let cursor = page["next_cursor"].as_str().unwrap();
        world.published(id, 1, NOW + WEEK_MS).await;
        assert_eq!(ids(&api, &format!("/douyin/feed/top/?limit=39&cursor={cursor}")).await, [100]);
        assert_eq!(ids(&api, "/douyin/feed/top/").await[0], id);
    }
}

#[tokio::test]
async fn other_weeks_are_read_by_number() {
    let world = two_weeks().await;
    let last = feed_week_of(NOW - WEEK_MS);
    for api in [world.api(), world.api_without_redis()] {
        assert_eq!(ids(&api, &format!("/douyin/feed/top?week={last}")).await, [50]);
        for empty in [0, last - 1, last + 2, 2_097_150] {
            let body = api.get(&format!("/douyin/feed/top/?week={empty}")).await.even_if_stale();
            assert_eq!(body["video_list"], json!([]), "{empty}");
        }
        for wrong in ["-1", "x", "1.5", "2097151", "9007199254740991"] {
            let body = api.get(&format!("/douyin/feed/top/?week={wrong}")).await.body;
            assert_eq!(body["status_code"], 10001, "{wrong}");
        }
    }
}

#[tokio::test]
async fn ranking_without_videos_is_an_empty_list() {
    let world = World::new().await;
    let body = world.api().get("/douyin/feed/top/").await.ok();
    assert_eq!(body, json!({"status_code": 0, "status_msg": "ok", "video_list": []}));
}
