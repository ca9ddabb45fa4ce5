//! A store that goes away and comes back: every answer is a right one or an error at once, and nothing is lost.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use serde_json::Value;
use vidlog_redis_shards::Redis;
use vidlog_service_kit::mysql;
use vidlog_test_support::{Proxy, namespace::delete_redis_keys};

use crate::{
    app::{App, Detours, until},
    client::{User, id, ok, text},
};

/// The client gives up after 5 s. As much again is for a machine that has other tests to run; without a bound of our own
/// an answer would take longer than both.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);

/// Calls and returns HTTP status and body; the answer has to come while the client still waits.
async fn promptly(user: &User<'_>, path: &str, params: &[(&str, &str)]) -> (u16, Value) {
    let begun = Instant::now();
    let all = [params, &[("token", &*user.token)]].concat();
    let url = user.app.url(path);
    let request = if path.contains("action") { user.app.http.post(url) } else { user.app.http.get(url) };
    let response = request.query(&all).send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert!(begun.elapsed() < CLIENT_PATIENCE, "{path} took {:?}", begun.elapsed());
    assert!(body["status_code"].is_number() && body["status_msg"].is_string(), "{body}");
    for internal in ["127.0.0.1", "sqlx", "Redis", "MySQL", "rdkafka", "refused"] {
        assert!(!body.to_string().contains(internal) || status == 200, "{path} leaks {internal}: {body}");
    }
    (status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_no_write_succeeds_and_reads_go_on() {
    let broker = std::env::var("VIDLOG_KAFKA_FAULT_ADDRESS").unwrap();
    let advertised = std::env::var("VIDLOG_KAFKA_FAULT_PROXY").unwrap();
    let proxy = Proxy::forward(&*advertised, &*broker).await.unwrap();
    let app = App::start_with(Detours { kafka: Some(advertised.clone()), ..Detours::default() }).await;
    let ada = app.register("ada").await;
    let video = ada.publish("durable").await.to_string();

    proxy.stop().await;
    let like = [("video_id", &*video), ("action_type", "1")];
    let (status, body) = promptly(&ada, "/douyin/favorite/action/", &like).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(promptly(&ada, "/douyin/feed/", &[]).await.0, 200);

    let _proxy = Proxy::forward(advertised, broker).await.unwrap();
    until("writes succeed again", async || promptly(&ada, "/douyin/favorite/action/", &like).await.0 == 200)
        .await;
    assert_eq!(ada.card(ada.id).await["total_favorited"], 1);
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_mysql_answers_and_writes_are_kept() {
    let redis = url::Url::parse(&std::env::var("VIDLOG_REDIS_URL").unwrap()).unwrap();
    let target = format!("127.0.0.1:{}", redis.port().unwrap());
    let proxy = Proxy::forward("127.0.0.1:0", &*target).await.unwrap();
    let listen = proxy.address.to_string();
    let detour = Some(format!("redis://{listen}/"));
    let app = App::start_with(Detours { redis: detour, ..Detours::default() }).await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("still there").await;
    ok(bob.like(video).await);
    ok(bob.follow(ada.id).await);

    proxy.stop().await;
    let (ada_id, bob_id) = (ada.id_text(), bob.id_text());
    // Nobody waited for the tables, which are folded by themselves.
    until("reads come from MySQL", async || {
        let (feed_status, feed) = promptly(&bob, "/douyin/feed/", &[]).await;
        let (status, card) = promptly(&bob, "/douyin/user/", &[("user_id", &ada_id)]).await;
        (feed_status, status) == (200, 200)
            && feed["video_list"][0]["favorite_count"] == 1
            && card["user"]["follower_count"] == 1
    })
    .await;
    let (_, feed) = promptly(&bob, "/douyin/feed/", &[]).await;
    assert_eq!(feed["video_list"][0]["favorite_count"], 1);
    assert_eq!(feed["video_list"][0]["is_favorite"], true);
    for (path, user, list) in [
        ("/douyin/publish/list/", &ada_id, "video_list"),
        ("/douyin/favorite/list/", &bob_id, "video_list"),
        ("/douyin/relation/follow/list/", &bob_id, "user_list"),
        ("/douyin/relation/follower/list/", &ada_id, "user_list"),
    ] {
        let (status, body) = promptly(&bob, path, &[("user_id", user)]).await;
        assert_eq!((status, body[list].as_array().map(Vec::len)), (200, Some(1)), "{path}: {body}");
    }
    let (status, body) = promptly(&bob, "/douyin/user/", &[("user_id", &ada_id)]).await;
    assert_eq!(
        (status, id(&body["user"]["total_favorited"]), id(&body["user"]["follower_count"])),
        (200, 1, 1)
    );
    // A write is taken or refused at once; what was taken is there later.
    let follow = [("to_user_id", &*bob_id), ("action_type", "1")];
    let taken = promptly(&ada, "/douyin/relation/action/", &follow).await.0 == 200;

    let _proxy = Proxy::forward(listen, target).await.unwrap();
    until("Redis serves again", async || {
        let (status, body) = promptly(&bob, "/douyin/user/", &[("user_id", &bob_id)]).await;
        status == 200 && body["user"]["follower_count"] == i64::from(taken)
    })
    .await;
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_redis_is_emptied_and_filled_again_every_answer_is_right() {
    const LIKES: i64 = 40;
    let app = App::start().await;
    let ada = app.register("ada").await;
    let video = ada.publish("always there").await;
    let other = ada.publish("liked meanwhile").await;
    let likes = stream::iter(1..=LIKES).map(|user| app.stranger(user));
    likes.for_each_concurrent(8, async |user| _ = ok(user.like(video).await)).await;
    let shown = async || {
        let response = app.http.get(app.url("/douyin/feed/")).send().await.unwrap();
        let is_stale = response.headers().contains_key("vidlog-stale");
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let videos = body["video_list"].as_array();
        let shown = videos.and_then(|videos| videos.iter().find(|shown| shown["id"] == video));
        (is_stale, shown.map(|shown| shown["favorite_count"].clone()), body)
    };
    // Readers without an account have no marks, for which they would wait.
    until("both stores have all", async || {
        let query = sqlx::query_scalar("SELECT COUNT(*) FROM likes WHERE video_id = ?").bind(video);
        let pool = mysql::open(app.stores.mysql_url.reveal(), 1).unwrap();
        let (is_stale, count, _) = shown().await;
        query.fetch_one(&pool).await.unwrap_or(0) == LIKES && !is_stale && count == Some(LIKES.into())
    })
    .await;

    let is_over = AtomicBool::new(false);
    let answers = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let read = async || {
        while !is_over.load(Ordering::Relaxed) {
            let (is_stale, count, body) = shown().await;
            assert_eq!(count, Some(LIKES.into()), "stale: {is_stale}, {body}");
            answers[usize::from(is_stale)].fetch_add(1, Ordering::Relaxed);
        }
    };
    let like = async || {
        for user in (1000..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
            ok(app.stranger(user).like(other).await);
        }
    };
    let redis = Redis::open(app.stores.redis_url.reveal()).unwrap();
    let lose = async || {
        for _ in 0..3 {
            let before = [0, 1].map(|kind| answers[kind].load(Ordering::Relaxed));
            let grew = |kind: usize| answers[kind].load(Ordering::Relaxed) > before[kind];
            delete_redis_keys(&redis, &app.stores.namespace).await;
            until("an answer came from MySQL", async || grew(1)).await;
            until("an answer came from Redis", async || !shown().await.0).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(lose(), like(), read(), read(), read(), read());
    assert!(answers[0].load(Ordering::Relaxed) > 0);
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mysql_redis_answers_what_it_can() {
    let app_port = std::env::var("VIDLOG_MYSQL_URL").unwrap();
    let mysql = url::Url::parse(&app_port).unwrap();
    let target = format!("127.0.0.1:{}", mysql.port().unwrap());
    let proxy = Proxy::forward("127.0.0.1:0", &*target).await.unwrap();
    let listen = proxy.address;
    let app = App::start_with(Detours { mysql_port: Some(listen.port()), ..Detours::default() }).await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("in memory").await;

    proxy.stop().await;
    let video_id = video.to_string();
    let like = [("video_id", &*video_id), ("action_type", "1")];
    assert_eq!(promptly(&bob, "/douyin/favorite/action/", &like).await.0, 200);
    let (status, feed) = promptly(&bob, "/douyin/feed/", &[]).await;
    assert_eq!((status, id(&feed["video_list"][0]["favorite_count"])), (200, 1));
    for path in ["/douyin/comment/list/", "/douyin/message/chat/"] {
        let params = [("video_id", &*video_id), ("to_user_id", &*ada.id_text())];
        assert_eq!(promptly(&bob, path, &params).await.0, 503, "{path}");
    }
    let begun = Instant::now();
    let login = app
        .http
        .post(app.url("/douyin/user/login/"))
        .query(&[("username", &*ada.name), ("password", "secret")]);
    let response = login.send().await.unwrap();
    assert!(begun.elapsed() < CLIENT_PATIENCE);
    assert_eq!(response.status(), 503);
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!((id(&body["user_id"]), text(&body["token"])), (0, ""));

    let _proxy = Proxy::forward(listen.to_string(), target).await.unwrap();
    until("comments are read again", async || {
        promptly(&bob, "/douyin/comment/list/", &[("video_id", &video_id)]).await.0 == 200
    })
    .await;
    app.assert_views_equal_the_log().await;
}

#[tokio::test]
async fn a_process_that_is_asked_to_stop_drains() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    ok(ada.get("/douyin/user/", &[]).await);
    for path in ["/livez", "/readyz"] {
        let answer = app.http.get(app.ops_url(path)).send().await.unwrap();
        let (status, body) = (answer.status(), answer.text().await.unwrap());
        assert_eq!(status, 200, "{path}: {body}");
    }
    let metrics = app.http.get(app.ops_url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("projector_records_total{projection=\"user-cards\"} 1"), "{metrics}");
    assert_eq!(app.terminate().await, Some(0));
}
