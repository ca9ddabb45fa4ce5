use redis::cmd;
use serde_json::json;
use vidlog_schemas::keys::WEEK_MS;

use crate::support::{Api, NOW, World};

/// Reads the feed page by page, by `next_time`, until a page is empty.
async fn all_videos(api: &Api) -> Vec<i64> {
    let mut all = Vec::new();
    let mut path = "/douyin/feed/".to_owned();
    loop {
        let body = api.get(&path).await.even_if_stale();
        let page: Vec<_> = body["video_list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|video| video["id"].as_i64().unwrap())
            .collect();
        if page.is_empty() {
            assert_eq!(body["next_time"], json!(NOW), "the client wraps around");
            return all;
        }
        assert!(page.len() <= 30);
        all.extend(page);
        path = format!("/douyin/feed/?latest_time={}", body["next_time"]);
    }
}

#[tokio::test]
async fn empty_feed_has_the_current_time() {
    let world = World::new().await;
    let body = world.api().get("/douyin/feed/").await.ok();
    assert_eq!(body, json!({"status_code": 0, "status_msg": "ok", "video_list": [], "next_time": NOW}));
}

#[tokio::test]
async fn paging_returns_each_video_once_across_weeks() {
    let world = World::new().await;
    world.user(1).await;
    let week_begins = NOW.div_euclid(WEEK_MS) * WEEK_MS;
    let mut expected = Vec::new();
    // One video per millisecond around two week boundaries; long gaps before them.
    for (first, base) in
        [(1000, NOW - 20 * WEEK_MS), (2000, week_begins - WEEK_MS - 50), (3000, week_begins - 75)]
    {
        for number in 0..125 {
            let published_ms = if first == 1000 { base + number * WEEK_MS / 40 } else { base + number };
            world.published(first + number, 1, published_ms).await;
            expected.push(first + number);
        }
    }
    expected.reverse();
    assert_eq!(all_videos(&world.api()).await, expected);
    assert_eq!(all_videos(&world.api_without_redis()).await, expected);
}

#[tokio::test]
async fn page_is_full_with_one_video_per_week() {
    let world = World::new().await;
    world.user(1).await;
    for week in 0..40 {
        world.published(100 + week, 1, NOW - (40 - week) * WEEK_MS).await;
    }
    let newest_first: Vec<_> = (100..140).rev().collect();
    assert_eq!(world.api().get("/douyin/feed/").await.ids("video_list"), newest_first[..30]);
    let second_week_from_above = format!("/douyin/feed/?latest_time={}", NOW - WEEK_MS);
    assert_eq!(world.api().get(&second_week_from_above).await.ids("video_list"), newest_first[1..31]);
    assert_eq!(all_videos(&world.api()).await, newest_first);
}

#[tokio::test]
async fn next_time_is_the_oldest_publish_time_of_the_page() {
    let world = World::new().await;
    world.user(1).await;
    for number in 0..40 {
        world.published(100 + number, 1, NOW - 1000 + number * 7).await;
    }
    let body = world.api().get("/douyin/feed/").await.ok();
    assert_eq!(body["next_time"], json!(NOW - 1000 + 10 * 7));
    let body = world.api().get(&format!("/douyin/feed/?latest_time={}", body["next_time"])).await.ok();
    assert_eq!(body["video_list"].as_array().unwrap().len(), 10);
    assert_eq!(body["next_time"], json!(NOW - 1000));
}

#[tokio::test]
async fn missing_and_future_times_mean_now() {
    let world = World::new().await;
    world.user(1).await;
    world.published(100, 1, NOW - 10_000).await;
    world.published(101, 1, NOW - 1).await;
    let future = (NOW + 1_000_000_000).to_string();
    for time in ["", "0", "abc", "NaN", "99999999999999999999", &future, &future[..10]] {
        let ids = world.api().get(&format!("/douyin/feed?latest_time={time}")).await.ids("video_list");
        assert_eq!(ids, [101, 100], "{time}");
    }
}

#[tokio::test]
async fn latest_time_is_exclusive_in_either_unit() {
    let world = World::new().await;
    world.user(1).await;
    world.published(100, 1, NOW - 10_000).await;
    world.published(101, 1, NOW - 1000).await;
    for (time, expected) in [
        ((NOW - 1000).to_string(), vec![100]),
        ((NOW - 999).to_string(), vec![101, 100]),
        ((NOW / 1000 - 1).to_string(), vec![100]),
        ("1.699999999e12".to_owned(), vec![100]),
        ("1".to_owned(), vec![]),
    ] {
        let ids = world.api().get(&format!("/douyin/feed?latest_time={time}")).await.ids("video_list");
        assert_eq!(ids, expected, "{time}");
    }
}

#[tokio::test]
async fn page_of_videos_without_cards_is_skipped() {
    let world = World::new().await;
    world.user(1).await;
    for number in 0..70 {
        world.published(100 + number, 1, NOW - 1000 + number).await;
        if number >= 5 {
            world.do_all(&[cmd("DEL").arg(world.keys.video_card(100 + number)).take()]).await;
        }
    }
    let body = world.api().get("/douyin/feed/").await.ok();
    assert_eq!(body["video_list"].as_array().unwrap().len(), 5);
    assert_eq!(body["next_time"], json!(NOW - 1000));
}

#[tokio::test]
async fn a_video_is_shown_as_the_caller_sees_it() {
    let world = World::new().await;
    world.users([1, 2]).await;
    world.published(100, 1, NOW - 1000).await;
    world.like(2, (100, 1), NOW).await;
    world.follow(2, 1, NOW).await;
    world.comment(7, 100, 2).await;
    let body = world.api().get_as(2, "/douyin/feed/").await.ok();
    insta::assert_json_snapshot!(body["video_list"][0], @r#"
    {
      "author": {
        "avatar": "http://media/static/builtin/avatar.png",
        "background_image": "http://media/static/builtin/background.png",
        "favorite_count": 0,
        "follow_count": 0,
        "follower_count": 1,
        "id": 1,
        "is_follow": true,
        "name": "user 1",
        "signature": "",
        "total_favorited": 1,
        "work_count": 1
      },
      "comment_count": 1,
      "cover_url": "http://media/static/cover/100",
      "favorite_count": 1,
      "id": 100,
      "is_favorite": true,
      "play_url": "http://media/static/play/100",
      "state": "published",
      "state_reason": "",
      "title": "video 100"
    }
    "#);
    let anonymous = world.api().get("/douyin/feed/").await.ok();
    let video = &anonymous["video_list"][0];
    assert_eq!((&video["is_favorite"], &video["author"]["is_follow"]), (&json!(false), &json!(false)));
}
