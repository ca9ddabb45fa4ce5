//! The command side, as a client calls it.

use std::fmt::Display;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode, request::Builder},
};
use serde_json::Value;
use tower::ServiceExt;
use vidlog_command_api::{CommandApi, state::CommandState};
use vidlog_contract::Code;

/// The command side, running in this process.
pub(crate) struct Api {
    pub(crate) state: CommandState,
    router: Router,
    running: CommandApi,
}

/// A call to be.
pub(crate) struct Call {
    request: Builder,
    path: String,
    parameters: Vec<(&'static str, String)>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
    pub(crate) body: Value,
}

impl Call {
    pub(crate) fn to(path: &str) -> Self {
        Self { request: Request::builder().method("POST"), path: path.to_owned(), parameters: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.parameters.push((name, value.to_string()));
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// With a key for retries.
    pub(crate) fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    fn into_request(self) -> Request<Body> {
        let query: Vec<_> =
            self.parameters.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        self.request.uri(format!("{}?{}", self.path, query.join("&"))).body(Body::empty()).unwrap()
    }
}

impl Api {
    pub(crate) fn new(running: CommandApi) -> Self {
        Self { state: running.state.clone(), router: running.router(), running }
    }

    pub(crate) async fn stop(self) {
        self.running.stop().await;
    }

    pub(crate) async fn call(&self, call: Call) -> Answer {
        self.send(call.into_request()).await
    }

    pub(crate) async fn call_as(&self, user: i64, call: Call) -> Answer {
        let token = self.state.tokens.sign(user).unwrap();
        self.call(call.with("token", token)).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8(body.to_vec()).unwrap();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, text, body }
    }

    pub(crate) async fn register(&self, username: &str) -> Answer {
        self.call(Call::to("/douyin/user/register/").with("username", username).with("password", "secret"))
            .await
    }

    pub(crate) async fn login(&self, username: &str, password: &str) -> Answer {
        self.call(Call::to("/douyin/user/login/").with("username", username).with("password", password)).await
    }

    pub(crate) async fn like(&self, user: i64, video: i64, action: i32) -> Answer {
        let call = Call::to("/douyin/favorite/action/").with("video_id", video);
        self.call_as(user, call.with("action_type", action)).await
    }

    pub(crate) async fn follow(&self, user: i64, to: i64, action: i32) -> Answer {
        let call = Call::to("/douyin/relation/action/").with("to_user_id", to);
        self.call_as(user, call.with("action_type", action)).await
    }

    pub(crate) async fn comment(&self, user: i64, video: i64, text: &str) -> Answer {
        let call = Call::to("/douyin/comment/action/").with("video_id", video).with("action_type", 1);
        self.call_as(user, call.with("comment_text", text)).await
    }

    pub(crate) async fn delete_comment(&self, user: i64, video: i64, comment: i64) -> Answer {
        let call = Call::to("/douyin/comment/action/").with("video_id", video).with("action_type", 2);
        self.call_as(user, call.with("comment_id", comment)).await
    }

    pub(crate) async fn write(&self, user: i64, to: i64, content: &str) -> Answer {
        let call = Call::to("/douyin/message/action/").with("to_user_id", to).with("action_type", 1);
        self.call_as(user, call.with("content", content)).await
    }
}

impl Answer {
    /// The body of a good answer that readers will wait for.
    pub(crate) fn ok(&self) -> &Value {
        assert!(!self.is_stale(), "{self:?}");
        self.even_if_stale()
    }

    /// The body of a good answer.
    pub(crate) fn even_if_stale(&self) -> &Value {
        assert_eq!((self.status, self.code()), (StatusCode::OK, 0), "{self:?}");
        &self.body
    }

    pub(crate) fn code(&self) -> i32 {
        let code = self.body["status_code"].as_i64().unwrap_or_else(|| panic!("{self:?}"));
        i32::try_from(code).unwrap()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.headers.get("vidlog-stale").is_some_and(|stale| stale == "true")
    }

    /// The position of the event.
    pub(crate) fn position(&self) -> String {
        self.headers["vidlog-position"].to_str().unwrap().to_owned()
    }

    /// Asserts a failure, and that nothing from inside is in it.
    pub(crate) fn fails(&self, code: Code) {
        assert_eq!((self.status, self.code()), (code.http_status(), code.number()), "{self:?}");
        let told = self.text.to_lowercase();
        for inside in ["sql", "redis", "kafka", "127.0.0.1", "broker", "argon"] {
            assert!(!told.contains(inside), "{self:?}");
        }
        assert!(!self.body["status_msg"].as_str().unwrap().is_empty());
    }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
