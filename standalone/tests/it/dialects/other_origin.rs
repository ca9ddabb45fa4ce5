//! A browser client that calls from another origin.

use reqwest::{
    Method, RequestBuilder, Response,
    header::{CONTENT_TYPE, ORIGIN},
};

use crate::app::{ALLOWED_ORIGIN, App};

#[tokio::test]
async fn allowed_origin_gets_cors_headers_on_every_response() {
    let app = App::start().await;
    let ada = app.register("ada").await;
    let message = app.url("/douyin/message/action/");
    let preflight = app
        .http
        .request(Method::OPTIONS, &message)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type");
    let response = from(ALLOWED_ORIGIN, preflight).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "access-control-allow-origin"), ALLOWED_ORIGIN);
    assert_eq!(header(&response, "access-control-allow-headers"), "authorization,content-type");

    let like = app.http.post(app.url("/douyin/relation/action/")).bearer_auth(&ada.token);
    let like = like.header(CONTENT_TYPE, "application/json");
    for request in [
        like.body("{}"),
        app.http.post(&message).body("not a form"),
        app.http.get(app.url("/douyin/feed/?token=forged")),
        app.http.get(app.url("/nowhere")),
        app.http.get(app.url("/static/builtin/avatar.png")),
    ] {
        let response = from(ALLOWED_ORIGIN, request).await;
        assert_eq!(header(&response, "access-control-allow-origin"), ALLOWED_ORIGIN, "{response:?}");
        assert!(header(&response, "access-control-expose-headers").contains("vidlog-position"));
        assert_eq!(header(&response, "access-control-allow-credentials"), "");
    }
}

#[tokio::test]
async fn other_origins_get_no_cors_headers() {
    let app = App::start().await;
    let response = from("https://evil.example", app.http.get(app.url("/douyin/feed/"))).await;
    assert_eq!((response.status().as_u16(), header(&response, "access-control-allow-origin")), (200, ""));
}

async fn from(origin: &str, request: RequestBuilder) -> Response {
    request.header(ORIGIN, origin).send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}
