//! Properties of all paths.

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use vidlog_contract::Code;

use crate::support::{Call, World};

const PATHS: [&str; 6] = [
    "/douyin/user/register",
    "/douyin/user/login",
    "/douyin/favorite/action",
    "/douyin/relation/action",
    "/douyin/comment/action",
    "/douyin/message/action",
];

#[tokio::test]
async fn trailing_slash_is_optional() {
    let (_world, api) = World::with_api().await;
    for path in PATHS {
        for path in [path.to_owned(), format!("{path}/")] {
            let answer = api.call(Call::to(&path)).await;
            assert_eq!(answer.status, StatusCode::OK, "{path}");
            assert_ne!(answer.code(), 0, "{path}");
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_have_status_fields() {
    let (_world, api) = World::with_api().await;
    let answer = api.call(Call::to("/douyin/nothing/")).await;
    answer.fails(Code::UnsupportedRequest);
    assert!(answer.headers.contains_key("content-type"));
    for path in PATHS {
        for method in [Method::GET, Method::PUT, Method::DELETE] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            let answer = api.send(request).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert_eq!(answer.code(), Code::UnsupportedRequest.number());
        }
    }
}

#[tokio::test]
async fn large_body_is_refused() {
    let (_world, api) = World::with_api().await;
    for path in PATHS {
        let declared =
            Request::post(path).header("content-length", 64 * 1024 + 1).body(Body::empty()).unwrap();
        api.send(declared).await.fails(Code::PayloadTooLarge);
        let undeclared = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from("x".repeat(64 * 1024 + 1)))
            .unwrap();
        api.send(undeclared).await.fails(Code::PayloadTooLarge);
    }
}

#[test]
fn every_path_is_documented() {
    let document = vidlog_command_api::openapi();
    for path in PATHS {
        let documented = &document.paths.paths[&format!("{path}/")];
        assert!(documented.post.is_some(), "{path}");
    }
}
