//! Outages of the log and the stores: responses are correct or prompt errors, and no acknowledged write is lost.

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
    app::{AddressOverrides, App, until},
    client::{User, id, ok, text},
};

/// Limit of a call: the timeout of the client, 5 s, doubled for a busy machine. Without deadlines in the server a call
/// would take longer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Calls and returns HTTP status and body; panics if the call exceeds its timeout or leaks internals.
async fn call_in_time(user: &User<'_>, path: &str, params: &[(&str, &str)]) -> (u16, Value) {
    let begun = Instant::now();
    let all = [params, &[("token", &*user.token)]].concat();
    let url = user.app.url(path);
    let request = if path.contains("action") { user.app.http.post(url) } else { user.app.http.get(url) };
    let response = request.query(&all).send().await.unwrap();
    let status = response.status().as_u16();
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert!(begun.elapsed() < CALL_TIMEOUT, "{path} took {:?}", begun.elapsed());
    assert!(body["status_code"].is_number() && body["status_msg"].is_string(), "{body}");
    for internal in ["127.0.0.1", "sqlx", "Redis", "MySQL", "rdkafka", "refused"] {
        assert!(!body.to_string().contains(internal) || status == 200, "{path} leaks {internal}: {body}");
    }
    (status, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_outage_fails_writes_but_not_reads() {
    let broker = std::env::var("VIDLOG_KAFKA_FAULT_ADDRESS").unwrap();
    let advertised = std::env::var("VIDLOG_KAFKA_FAULT_PROXY").unwrap();
    let proxy = Proxy::forward(&*advertised, &*broker).await.unwrap();
    let app =
        App::start_with(AddressOverrides { kafka: Some(advertised.clone()), ..AddressOverrides::default() })
            .await;
    let ada = app.register("ada").await;
    let video = ada.publish("durable").await.to_string();

    proxy.stop().await;
    let like = [("video_id", &*video), ("action_type", "1")];
    let (status, body) = call_in_time(&ada, "/douyin/favorite/action/", &like).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(call_in_time(&ada, "/douyin/feed/", &[]).await.0, 200);

    let _proxy = Proxy::forward(advertised, broker).await.unwrap();
    until("writes succeed again", async || {
        call_in_time(&ada, "/douyin/favorite/action/", &like).await.0 == 200
    })
    .await;
    assert_eq!(ada.card(ada.id).await["total_favorited"], 1);
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_outage_falls_back_to_mysql() {
    let redis = url::Url::parse(&std::env::var("VIDLOG_REDIS_URL").unwrap()).unwrap();
    let target = format!("127.0.0.1:{}", redis.port().unwrap());
    let proxy = Proxy::forward("127.0.0.1:0", &*target).await.unwrap();
    let listen = proxy.address.to_string();
    let proxied = Some(format!("redis://{listen}/"));
    let app = App::start_with(AddressOverrides { redis: proxied, ..AddressOverrides::default() }).await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("still there").await;
    ok(bob.like(video).await);
    ok(bob.follow(ada.id).await);

    proxy.stop().await;
    let (ada_id, bob_id) = (ada.id_text(), bob.id_text());
    // No read has waited for the MySQL views, which may lag behind those in Redis.
    until("reads come from MySQL", async || {
        let (feed_status, feed) = call_in_time(&bob, "/douyin/feed/", &[]).await;
        let (status, card) = call_in_time(&bob, "/douyin/user/", &[("user_id", &ada_id)]).await;
        (feed_status, status) == (200, 200)
            && feed["video_list"][0]["favorite_count"] == 1
            && card["user"]["follower_count"] == 1
    })
    .await;
    let (_, feed) = call_in_time(&bob, "/douyin/feed/", &[]).await;
    assert_eq!(feed["video_list"][0]["favorite_count"], 1);
    assert_eq!(feed["video_list"][0]["is_favorite"], true);
    for (path, user, list) in [
        ("/douyin/publish/list/", &ada_id, "video_list"),
        ("/douyin/favorite/list/", &bob_id, "video_list"),
        ("/douyin/relation/follow/list/", &bob_id, "user_list"),
        ("/douyin/relation/follower/list/", &ada_id, "user_list"),
    ] {
        let (status, body) = call_in_time(&bob, path, &[("user_id", user)]).await;
        assert_eq!((status, body[list].as_array().map(Vec::len)), (200, Some(1)), "{path}: {body}");
    }
    let (status, body) = call_in_time(&bob, "/douyin/user/", &[("user_id", &ada_id)]).await;
    assert_eq!(
        (status, id(&body["user"]["total_favorited"]), id(&body["user"]["follower_count"])),
        (200, 1, 1)
    );
    // A write is accepted or rejected promptly; an accepted one is visible after recovery.
    let follow = [("to_user_id", &*bob_id), ("action_type", "1")];
    let accepted = call_in_time(&ada, "/douyin/relation/action/", &follow).await.0 == 200;

    let _proxy = Proxy::forward(listen, target).await.unwrap();
    until("Redis serves again", async || {
        let (status, body) = call_in_time(&bob, "/douyin/user/", &[("user_id", &bob_id)]).await;
        status == 200 && body["user"]["follower_count"] == i64::from(accepted)
    })
    .await;
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stay_exact_while_redis_is_refilled() {
    const LIKES: i64 = 40;
    let app = App::start().await;
    let ada = app.register("ada").await;
    let video = ada.publish("always there").await;
    let other = ada.publish("liked meanwhile").await;
    let likes = stream::iter(1..=LIKES).map(|user| app.unregistered_user(user));
    likes.for_each_concurrent(8, async |user| _ = ok(user.like(video).await)).await;
    let shown = async || {
        let response = app.http.get(app.url("/douyin/feed/")).send().await.unwrap();
        let is_stale = response.headers().contains_key("vidlog-stale");
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        let videos = body["video_list"].as_array();
        let shown = videos.and_then(|videos| videos.iter().find(|shown| shown["id"] == video));
        (is_stale, shown.map(|shown| shown["favorite_count"].clone()), body)
    };
    // Anonymous readers have no session token, so they do not wait for these writes.
    until("both stores have all likes", async || {
        let query = sqlx::query_scalar("SELECT COUNT(*) FROM likes WHERE video_id = ?").bind(video);
        let pool = mysql::open(app.stores.mysql_url.reveal(), 1).unwrap();
        let (is_stale, count, _) = shown().await;
        query.fetch_one(&pool).await.unwrap_or(0) == LIKES && !is_stale && count == Some(LIKES.into())
    })
    .await;

    let is_over = AtomicBool::new(false);
    let responses = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let read = async || {
        while !is_over.load(Ordering::Relaxed) {
            let (is_stale, count, body) = shown().await;
            assert_eq!(count, Some(LIKES.into()), "stale: {is_stale}, {body}");
            responses[usize::from(is_stale)].fetch_add(1, Ordering::Relaxed);
        }
    };
    let like = async || {
        for user in (1000..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
            ok(app.unregistered_user(user).like(other).await);
        }
    };
    let redis = Redis::open(app.stores.redis_url.reveal()).unwrap();
    let delete_keys = async || {
        for _ in 0..3 {
            let before = [0, 1].map(|kind| responses[kind].load(Ordering::Relaxed));
            let grew = |kind: usize| responses[kind].load(Ordering::Relaxed) > before[kind];
            delete_redis_keys(&redis, &app.stores.namespace).await;
            until("a response came from MySQL", async || grew(1)).await;
            until("a response came from Redis", async || !shown().await.0).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(delete_keys(), like(), read(), read(), read(), read());
    assert!(responses[0].load(Ordering::Relaxed) > 0);
    app.assert_views_equal_the_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_outage_fails_only_reads_that_need_it() {
    let app_port = std::env::var("VIDLOG_MYSQL_URL").unwrap();
    let mysql = url::Url::parse(&app_port).unwrap();
    let target = format!("127.0.0.1:{}", mysql.port().unwrap());
    let proxy = Proxy::forward("127.0.0.1:0", &*target).await.unwrap();
    let listen = proxy.address;
    let app =
        App::start_with(AddressOverrides { mysql_port: Some(listen.port()), ..AddressOverrides::default() })
            .await;
    let (ada, bob) = (app.register("ada").await, app.register("bob").await);
    let video = ada.publish("in memory").await;

    proxy.stop().await;
    let video_id = video.to_string();
    let like = [("video_id", &*video_id), ("action_type", "1")];
    assert_eq!(call_in_time(&bob, "/douyin/favorite/action/", &like).await.0, 200);
    let (status, feed) = call_in_time(&bob, "/douyin/feed/", &[]).await;
    assert_eq!((status, id(&feed["video_list"][0]["favorite_count"])), (200, 1));
    for path in ["/douyin/comment/list/", "/douyin/message/chat/"] {
        let params = [("video_id", &*video_id), ("to_user_id", &*ada.id_text())];
        assert_eq!(call_in_time(&bob, path, &params).await.0, 503, "{path}");
    }
    let begun = Instant::now();
    let login = app
        .http
        .post(app.url("/douyin/user/login/"))
        .query(&[("username", &*ada.name), ("password", "secret")]);
    let response = login.send().await.unwrap();
    assert!(begun.elapsed() < CALL_TIMEOUT);
    assert_eq!(response.status(), 503);
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!((id(&body["user_id"]), text(&body["token"])), (0, ""));

    let _proxy = Proxy::forward(listen.to_string(), target).await.unwrap();
    until("comments are read again", async || {
        call_in_time(&bob, "/douyin/comment/list/", &[("video_id", &video_id)]).await.0 == 200
    })
    .await;
    app.assert_views_equal_the_log().await;
}

#[tokio::test]
async fn sigterm_drains_and_exits_with_zero() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    ok(ada.get("/douyin/user/", &[]).await);
    for path in ["/livez", "/readyz"] {
        let response = app.http.get(app.ops_url(path)).send().await.unwrap();
        let (status, body) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{path}: {body}");
    }
    let metrics = app.http.get(app.ops_url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("projector_records_total{projection=\"user-cards\"} 1"), "{metrics}");
    assert_eq!(app.terminate().await, Some(0));
}
