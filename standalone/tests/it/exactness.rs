//! Counts stay exact under concurrent requests and crashes.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use serde_json::json;
use vidlog_command_api::{
    media::outcomes::{OutcomeStore, Upload, Verdict},
    publisher::{EventLog, KafkaLog},
};
use vidlog_events::{Envelope, Event, Personal, Topics, UserId, VideoEvent, VideoId, VideoUploaded};
use vidlog_service_kit::{clock::Clock, mysql};
use vidlog_test_support_kafka::envelope;

use crate::{
    app::{App, until},
    client::{User, id, ids, list, ok},
};

/// Concurrent calls: more than one phone sends, below the concurrency limit of the server.
const CONCURRENCY: usize = 64;

#[tokio::test]
async fn parallel_likes_of_one_user_count_once() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let video = ada.publish("liked").await;
    let bob = app.register("bob").await;
    let likes = stream::iter(0..64).map(|_| bob.like(video)).buffer_unordered(CONCURRENCY);
    likes.for_each(async |body| _ = ok(body)).await;
    assert_eq!(favorite_count(&bob, video).await, 1);
    assert_eq!(bob.card(ada.id).await["total_favorited"], 1);

    // Likes and unlikes in parallel, then a final unlike.
    let caller = &bob;
    let changes = stream::iter(0..64).map(|turn| async move {
        if turn % 2 == 0 { caller.like(video).await } else { caller.unlike(video).await }
    });
    changes.buffer_unordered(CONCURRENCY).for_each(async |body| _ = ok(body)).await;
    ok(bob.unlike(video).await);
    ok(bob.unlike(video).await);
    assert_eq!(bob.card(ada.id).await["total_favorited"], 0);
    assert_eq!(favorite_count(&bob, video).await, 0);
    app.assert_views_equal_the_log().await;
}

#[tokio::test]
async fn parallel_likes_of_many_users_all_count() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let video = ada.publish("popular").await;
    let likes = stream::iter(1..=1000).map(|user| {
        let user = app.unregistered_user(user);
        async move { ok(user.like(video).await) }
    });
    likes.buffer_unordered(CONCURRENCY).for_each(async |_| ()).await;
    assert_eq!(ada.card(ada.id).await["total_favorited"], 1000);
    assert_eq!(favorite_count(&ada, video).await, 1000);

    let follows = stream::iter(1..=300).map(|user| {
        let user = app.unregistered_user(user);
        async move {
            ok(user.follow(ada.id).await);
            ok(user.follow(ada.id).await);
            if user.id % 3 == 0 {
                ok(user.unfollow(ada.id).await);
            }
        }
    });
    follows.buffer_unordered(CONCURRENCY).for_each(async |()| ()).await;
    assert_eq!(ada.card(ada.id).await["follower_count"], 200);
    app.assert_views_equal_the_log().await;
}

#[tokio::test]
async fn acknowledged_writes_survive_kills_exactly_once() {
    let mut app = App::start().await;
    let video = app.register("ada").await.publish("survivor").await;
    let mut liked = BTreeSet::new();
    for round in 0..3 {
        // The kill interrupts some of these calls; only acknowledged ones must survive.
        let first = round * 1000 + 1;
        let running = &app;
        let calls = stream::iter(first..first + 1000).map(|user| {
            let user = running.unregistered_user(user);
            async move {
                let params =
                    [("video_id", &*video.to_string()), ("action_type", "1"), ("token", &user.token)];
                let sent =
                    running.http.post(running.url("/douyin/favorite/action/")).query(&params).send().await;
                sent.is_ok_and(|response| response.status() == 200).then_some(user.id)
            }
        });
        let acknowledged: Vec<i64> =
            calls.buffer_unordered(CONCURRENCY).filter_map(async |user| user).take(100).collect().await;
        liked.extend(acknowledged);
        app.kill_and_restart().await;
    }
    let report = app.assert_views_equal_the_log().await;
    assert!(report.records >= liked.len());
    for user in liked {
        let reader = app.unregistered_user(user);
        let feed = ok(reader.get("/douyin/feed/", &[]).await);
        assert_eq!(list(&feed, "video_list")[0]["is_favorite"], true, "user {user}");
    }
}

#[tokio::test]
async fn feed_paging_is_exact_while_videos_are_published() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    publish_in_one_millisecond(&ada, 36).await;

    let first = ok(app.get("/douyin/feed/", &[]).await);
    let mut seen = ids(&list(&first, "video_list"));
    assert_eq!(seen.len(), 30);
    let late = ada.publish("newer than the first page").await;
    let second = ok(app.get("/douyin/feed/", &[("latest_time", &id(&first["next_time"]).to_string())]).await);
    seen.extend(ids(&list(&second, "video_list")));
    assert!(!seen.contains(&late));
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (36, 36));

    // After the end the client starts again at the newest video.
    let end = ok(app.get("/douyin/feed/", &[("latest_time", &id(&second["next_time"]).to_string())]).await);
    assert_eq!(end["video_list"], json!([]));
    let again = ok(app.get("/douyin/feed/", &[("latest_time", &id(&end["next_time"]).to_string())]).await);
    assert_eq!(list(&again, "video_list")[0]["id"], late);
}

#[tokio::test]
async fn feed_paging_is_exact_when_timestamps_collide() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    publish_in_one_millisecond(&ada, 100).await;

    let pages = pages(&app).await;
    let seen: BTreeSet<_> = pages.iter().flatten().collect();
    let sizes: Vec<_> = pages.iter().map(Vec::len).collect();
    assert_eq!((seen.len(), sizes), (100, vec![30, 30, 30, 10]));
}

/// Returns all pages of the feed.
async fn pages(app: &App) -> Vec<Vec<i64>> {
    let (mut pages, mut latest_time) = (Vec::new(), String::new());
    loop {
        let page = ok(app.get("/douyin/feed/", &[("latest_time", &latest_time)]).await);
        let videos = ids(&list(&page, "video_list"));
        if videos.is_empty() {
            return pages;
        }
        pages.push(videos);
        latest_time = id(&page["next_time"]).to_string();
    }
}

/// Publishes videos 1 to `count` with the same publication time.
async fn publish_in_one_millisecond(author: &User<'_>, count: i64) {
    let stores = &author.app.stores;
    let log = KafkaLog::open(&author.app.log.kafka_brokers, Topics::new(&stores.namespace)).unwrap();
    let outcomes = OutcomeStore::new(mysql::open(stores.mysql_url.reveal(), 4).unwrap());
    let now_ms = Clock::system().now_ms() - 60_000;
    let published = stream::iter(1..=count).map(async |number| {
        let uploaded = upload(number, author.id, now_ms);
        let keys =
            Verdict::Publish { play_key: format!("videos/{number}"), cover_key: format!("covers/{number}") };
        let outcome = outcomes.decide(&Upload::from_envelope(uploaded.clone()).unwrap(), keys).await.unwrap();
        // Makes the media worker of the system under test skip the upload.
        outcomes.mark_appended(VideoId::new(number).unwrap()).await.unwrap();
        log.append(&uploaded).await.unwrap();
        log.append(&outcome.envelope).await.unwrap();
    });
    published.buffer_unordered(4).for_each(async |()| ()).await;
    let count = usize::try_from(count).unwrap();
    until("all videos are in the feed", async || pages(author.app).await.iter().flatten().count() == count)
        .await;
}

fn upload(video: i64, author: i64, time_ms: i64) -> Envelope {
    let uploaded = VideoUploaded {
        video_id: VideoId::new(video).unwrap(),
        author_id: UserId::new(author).unwrap(),
        title: Personal::new("one of many".to_owned()),
        original_key: format!("originals/{video}"),
    };
    envelope(Event::Video(VideoEvent::VideoUploaded(uploaded)), time_ms)
}

async fn favorite_count(reader: &User<'_>, video: i64) -> i64 {
    let feed = ok(reader.get("/douyin/feed/", &[]).await);
    let videos = list(&feed, "video_list");
    id(&videos.iter().find(|shown| shown["id"] == video).unwrap()["favorite_count"])
}
