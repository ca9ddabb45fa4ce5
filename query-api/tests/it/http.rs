use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::{World, api_over};

const PATHS: [&str; 10] = [
    "feed",
    "feed/top",
    "user",
    "publish/list",
    "favorite/list",
    "comment/list",
    "relation/follow/list",
    "relation/follower/list",
    "relation/friend/list",
    "message/chat",
];

#[tokio::test]
async fn every_path_takes_an_optional_slash() {
    let world = World::new().await;
    world.user(1).await;
    world.published(100, 1, 1).await;
    let api = world.api();
    for path in PATHS {
        for slash in ["", "/", "//"] {
            let answer = api.get_as(1, &format!("//douyin/{path}{slash}?video_id=100&to_user_id=1")).await;
            assert_eq!(answer.headers["content-type"], "application/json");
            answer.ok();
        }
    }
}

#[test]
fn every_path_is_documented() {
    let documented: BTreeSet<_> = vidlog_query_api::openapi().paths.paths.into_keys().collect();
    let served = PATHS.iter().map(|path| format!("/douyin/{path}/")).chain(["/static/{key}".to_owned()]);
    assert_eq!(documented, served.collect());
}

#[tokio::test]
async fn other_paths_and_methods_have_the_status_fields() {
    let api = World::new().await.api();
    for path in ["/", "/douyin", "/douyin/feeds/", "/douyin/fe//ed/"] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.body, json!({"status_code": 10011, "status_msg": "there is no such path"}));
    }
    for method in [Method::POST, Method::DELETE] {
        let request = Request::builder().method(method).uri("/douyin/feed/").body(Body::empty()).unwrap();
        let answer = api.send(request).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.code(), 10011);
    }
}

#[tokio::test]
async fn invalid_token_is_an_error_on_every_path() {
    let world = World::new().await;
    let api = world.api();
    for path in PATHS {
        let answer =
            api.get(&format!("/douyin/{path}/?user_id=1&video_id=1&to_user_id=1&token=forged")).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::OK, 10002), "{path}");
    }
    let request =
        Request::get("/douyin/feed/").header("Authorization", "Bearer forged").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.code(), 10002);
}

#[tokio::test]
async fn expired_token_is_an_error() {
    let world = World::new().await;
    let token = world.state().tokens.sign(1).unwrap();
    world.clock.set(world.clock.now_ms() + 31 * 24 * 3600 * 1000);
    assert_eq!(world.api().get(&format!("/douyin/feed/?token={token}")).await.code(), 10002);
}

#[tokio::test]
async fn invalid_ids_are_errors() {
    let api = World::new().await.api();
    for id in ["0", "-1", "abc", "1.5", "9007199254740992", "%00", "%ff"] {
        for path in ["user/?user_id", "publish/list/?user_id", "comment/list/?video_id"] {
            let answer = api.get(&format!("/douyin/{path}={id}")).await;
            assert_eq!((answer.status, answer.code()), (StatusCode::OK, 10001), "{path}={id}");
        }
    }
}

#[tokio::test]
async fn id_may_have_an_exponent_and_be_repeated() {
    let world = World::new().await;
    world.user(4_500_000_000_000_000).await;
    let body = world.api().get("/douyin/user/?user_id=4.5e+15&user_id=1&nonsense=%ff").await.ok();
    assert_eq!(body["user"]["id"], json!(4_500_000_000_000_000_i64));
}

#[tokio::test]
async fn body_of_a_get_is_ignored_but_bounded() {
    let world = World::new().await;
    let request = |body: Vec<u8>| {
        Request::get("/douyin/feed/")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Content-Length", body.len())
            .body(Body::from(body))
            .unwrap()
    };
    world.api().send(request(b"token=forged".to_vec())).await.ok();
    let answer = world.api().send(request(vec![b'a'; 64 * 1024 + 1])).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::PAYLOAD_TOO_LARGE, 10007));
}

#[tokio::test]
async fn request_above_the_limit_is_rejected() {
    let world = World::new().await;
    let mut state = world.state();
    state.request_permits = Arc::new(Semaphore::new(0));
    let answer = api_over(state).get("/douyin/feed/").await;
    assert_eq!((answer.status, answer.code()), (StatusCode::SERVICE_UNAVAILABLE, 10009));
}
