//! What is true of every path.

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
async fn paths_are_served_with_and_without_the_trailing_slash() {
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
async fn other_paths_and_methods_are_answered_with_the_two_fields() {
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
async fn a_body_has_its_limit() {
    let (_world, api) = World::with_api().await;
    for path in PATHS {
        let told = Request::post(path).header("content-length", 64 * 1024 + 1).body(Body::empty()).unwrap();
        api.send(told).await.fails(Code::PayloadTooLarge);
        let untold = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from("x".repeat(64 * 1024 + 1)))
            .unwrap();
        api.send(untold).await.fails(Code::PayloadTooLarge);
    }
}

#[test]
fn every_path_is_described() {
    let document = vidlog_command_api::openapi();
    for path in PATHS {
        let described = &document.paths.paths[&format!("{path}/")];
        assert!(described.post.is_some(), "{path}");
    }
}
