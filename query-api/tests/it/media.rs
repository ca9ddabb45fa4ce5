//! GET /static.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{
        HeaderMap, Method, Request, StatusCode,
        header::{ETAG, IF_NONE_MATCH, IF_RANGE, RANGE},
    },
};
use object_store::{
    ObjectStoreExt,
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
    throttle::{ThrottleConfig, ThrottledStore},
};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;
use vidlog_query_api::{QueryState, router};
use vidlog_read_models::builtin;
use vidlog_redis_shards::Redis;
use vidlog_service_kit::mysql;

use crate::support::{UNREACHABLE_MYSQL, UNREACHABLE_REDIS, World};

const VIDEO: &str = "/static/videos/9-ab.mp4";
const SIZE: u64 = 300_000;

/// The API over a local folder with a video, without Redis and MySQL, which media do not need.
struct Media {
    state: QueryState,
    content: Vec<u8>,
    folder: TempDir,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Media {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let objects = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let content: Vec<u8> = (0..SIZE).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        for key in ["videos/9-ab.mp4", "covers/9-ab.jpg", "originals/9-secret", "elsewhere/9.mp4"] {
            objects.put(&Path::from(key), content.clone().into()).await.unwrap();
        }
        let dead = (Redis::open(UNREACHABLE_REDIS).unwrap(), mysql::open(UNREACHABLE_MYSQL, 1).unwrap());
        let state = QueryState { objects, ..World::new().await.state_over(dead.0, dead.1) };
        Self { state, content, folder }
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(Method::GET, path, headers).await
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response =
            router(self.state.clone()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Asserts a 404 with the status fields.
    fn is_missing(&self) {
        assert_eq!(self.status, StatusCode::NOT_FOUND, "{self:?}");
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(body["status_code"], 10011);
        assert!(body["status_msg"].is_string());
    }
}

#[tokio::test]
async fn file_is_served_whole() {
    let media = Media::new().await;
    let answer = media.get(VIDEO, &[]).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &media.content[..]));
    let expected = [
        ("content-type", "video/mp4"),
        ("content-length", "300000"),
        ("accept-ranges", "bytes"),
        ("cache-control", "public, max-age=31536000, immutable"),
        ("x-content-type-options", "nosniff"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert!(answer.header("etag").starts_with('"') && answer.header("etag").ends_with('"'));
    let cover = media.get("/static/covers/9-ab.jpg", &[]).await;
    assert_eq!((cover.status, cover.header("content-type")), (StatusCode::OK, "image/jpeg"));
}

#[tokio::test]
async fn head_has_the_headers_of_get() {
    let media = Media::new().await;
    for headers in [[].as_slice(), &[("range", "bytes=10-19")]] {
        let (get, head) = (media.get(VIDEO, headers).await, media.send(Method::HEAD, VIDEO, headers).await);
        assert_eq!((get.status, &get.headers), (head.status, &head.headers));
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn range_is_served() {
    let media = Media::new().await;
    for (range, first, last) in
        [("bytes=0-0", 0, 0), ("bytes=100000-199999", 100_000, 199_999), ("bytes=-1", 299_999, 299_999)]
    {
        let answer = media.get(VIDEO, &[(RANGE.as_str(), range)]).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.body, media.content[first..=last]);
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/300000"));
        assert_eq!(answer.header("content-length"), (last - first + 1).to_string());
    }
    let several = media.get(VIDEO, &[(RANGE.as_str(), "bytes=0-1,5-6")]).await;
    assert_eq!((several.status, several.body.len()), (StatusCode::OK, media.content.len()));
}

#[tokio::test]
async fn range_after_the_end_is_not_satisfiable() {
    let media = Media::new().await;
    let answer = media.get(VIDEO, &[(RANGE.as_str(), "bytes=300000-")]).await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.header("content-range"), "bytes */300000");
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(answer.header("cache-control").is_empty());
}

#[tokio::test]
async fn matching_entity_tag_is_not_sent_again() {
    let media = Media::new().await;
    let e_tag = media.get(VIDEO, &[]).await.headers[ETAG].to_str().unwrap().to_owned();
    let known = media.get(VIDEO, &[(IF_NONE_MATCH.as_str(), &e_tag)]).await;
    assert_eq!((known.status, known.body.len()), (StatusCode::NOT_MODIFIED, 0));
    assert_eq!(known.header("etag"), e_tag);
    let other = media.get(VIDEO, &[(IF_NONE_MATCH.as_str(), "\"other\"")]).await;
    assert_eq!(other.status, StatusCode::OK);

    let range = (RANGE.as_str(), "bytes=0-9");
    let part = media.get(VIDEO, &[range, (IF_RANGE.as_str(), &e_tag)]).await;
    assert_eq!((part.status, part.body.len()), (StatusCode::PARTIAL_CONTENT, 10));
    let whole = media.get(VIDEO, &[range, (IF_RANGE.as_str(), "\"other\"")]).await;
    assert_eq!((whole.status, whole.body.len()), (StatusCode::OK, media.content.len()));
}

#[tokio::test]
async fn originals_and_other_folders_are_not_served() {
    let media = Media::new().await;
    for path in [
        "/static/originals/9-secret",
        "/static/elsewhere/9.mp4",
        "/static/videos/../originals/9-secret",
        "/static/videos/..%2Foriginals%2F9-secret",
        "/static/videos/%2e%2e/originals/9-secret",
        "/static/videos/none.mp4",
        "/static/videos",
        "/static/videos/",
        "/static/builtin/none.png",
        "/static/%ff",
        "/static/",
    ] {
        media.get(path, &[]).await.is_missing();
    }
    assert_eq!(media.send(Method::POST, VIDEO, &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn placeholders_are_always_served() {
    let media = Media::new().await;
    for key in [
        builtin::AVATAR,
        builtin::BACKGROUND,
        builtin::PROCESSING_COVER,
        builtin::PROCESSING_CLIP,
        builtin::REJECTED_COVER,
        builtin::REJECTED_CLIP,
    ] {
        let path = media.state.models.media.url(key).replace("http://media", "");
        let answer = media.get(&path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK, "{key}");
        assert!(["image/png", "video/mp4"].contains(&answer.header("content-type")), "{key}");
        let part = media.get(&path, &[(RANGE.as_str(), "bytes=1-3")]).await;
        assert_eq!(part.body, answer.body[1..4]);
        let again = media.get(&path, &[(IF_NONE_MATCH.as_str(), answer.header("etag"))]).await;
        assert_eq!(again.status, StatusCode::NOT_MODIFIED);
    }
}

#[tokio::test]
async fn empty_file_is_an_empty_response() {
    let media = Media::new().await;
    media.state.objects.put(&Path::from("videos/empty.mp4"), Bytes::new().into()).await.unwrap();
    let answer = media.get("/static/videos/empty.mp4", &[]).await;
    assert_eq!((answer.status, answer.header("content-length")), (StatusCode::OK, "0"));
}

#[tokio::test]
async fn failing_store_is_unavailable() {
    let media = Media::new().await;
    // The store fails on a link to itself.
    let link = media.folder.path().join("videos/loop.mp4");
    std::os::unix::fs::symlink(&link, &link).unwrap();
    let answer = media.get("/static/videos/loop.mp4", &[]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!String::from_utf8_lossy(&answer.body).contains("loop"));
}

#[tokio::test]
async fn response_starts_before_the_file_is_read() {
    let mut media = Media::new().await;
    let config =
        ThrottleConfig { wait_get_per_byte: std::time::Duration::from_hours(1), ..ThrottleConfig::default() };
    let objects = ThrottledStore::new(InMemory::new(), config);
    objects.put(&Path::from("videos/9-ab.mp4"), media.content.clone().into()).await.unwrap();
    media.state.objects = Arc::new(objects);
    let request = Request::get(VIDEO).body(Body::empty()).unwrap();
    let response = router(media.state.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}
