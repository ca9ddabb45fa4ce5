//! An in-process client of the HTTP APIs.

use std::fmt::Display;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::Value;
use tower::ServiceExt;
use vidlog_contract::{Code, Tokens};

/// An API, called without a socket.
pub struct Api {
    router: Router,
    tokens: Tokens,
}

/// A POST before it is sent, with its parameters in the query.
#[derive(Clone)]
pub struct Call {
    path: String,
    parameters: Vec<(&'static str, String)>,
    headers: Vec<(String, String)>,
}

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body as text.
    pub text: String,
    /// The body as JSON; null if it is none.
    pub body: Value,
}

impl Api {
    /// Calls a router; `tokens` signs the tokens of its users.
    pub fn new(router: Router, tokens: Tokens) -> Self {
        Self { router, tokens }
    }

    /// The routes.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Sends a request.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, text, body }
    }

    /// Sends a call.
    pub async fn call(&self, call: Call) -> Answer {
        self.send(call.into_request()).await
    }

    /// Sends a call with a user's token.
    pub async fn call_as(&self, user: i64, call: Call) -> Answer {
        self.call(call.with("token", self.tokens.sign(user).unwrap())).await
    }

    /// Gets a path, which may have a query.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Gets a path with a user's token.
    pub async fn get_as(&self, user: i64, path: &str) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        self.get(&format!("{path}{separator}token={}", self.tokens.sign(user).unwrap())).await
    }
}

/// The commands of the client contract. An action of 1 does something, one of 2 undoes it.
impl Call {
    /// Registers a user.
    pub fn register(username: &str, password: &str) -> Self {
        Self::to("/douyin/user/register/").with("username", username).with("password", password)
    }

    /// Logs a user in.
    pub fn login(username: &str, password: &str) -> Self {
        Self::to("/douyin/user/login/").with("username", username).with("password", password)
    }

    /// Likes or unlikes a video.
    pub fn favorite(video: i64, action: i32) -> Self {
        Self::to("/douyin/favorite/action/").with("video_id", video).with("action_type", action)
    }

    /// Follows or unfollows a user.
    pub fn relation(user: i64, action: i32) -> Self {
        Self::to("/douyin/relation/action/").with("to_user_id", user).with("action_type", action)
    }

    /// Comments on a video.
    pub fn comment(video: i64, text: &str) -> Self {
        Self::to("/douyin/comment/action/")
            .with("video_id", video)
            .with("action_type", 1)
            .with("comment_text", text)
    }

    /// Deletes a comment.
    pub fn delete_comment(video: i64, comment: i64) -> Self {
        Self::to("/douyin/comment/action/")
            .with("video_id", video)
            .with("action_type", 2)
            .with("comment_id", comment)
    }

    /// Sends a message to a user.
    pub fn message(user: i64, content: &str) -> Self {
        Self::to("/douyin/message/action/")
            .with("to_user_id", user)
            .with("action_type", 1)
            .with("content", content)
    }
}

impl Call {
    /// A POST to a path, without parameters.
    pub fn to(path: &str) -> Self {
        Self { path: path.to_owned(), parameters: Vec::new(), headers: Vec::new() }
    }

    /// Adds a parameter to the query.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.parameters.push((name, value.to_string()));
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an idempotency key.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// The path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The parameters, unescaped.
    pub fn parameters(&self) -> &[(&'static str, String)] {
        &self.parameters
    }

    fn into_request(self) -> Request<Body> {
        let query: Vec<_> =
            self.parameters.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        let request = Request::post(format!("{}?{}", self.path, query.join("&")));
        let headers = self.headers.iter();
        headers
            .fold(request, |request, (name, value)| request.header(name, value))
            .body(Body::empty())
            .unwrap()
    }
}

impl Answer {
    /// The body of a success that is not stale.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert!(!self.is_stale(), "{self:?}");
        self.even_if_stale()
    }

    /// The body of a success.
    #[track_caller]
    pub fn even_if_stale(&self) -> Value {
        assert_eq!((self.status, self.code()), (StatusCode::OK, 0), "{self:?}");
        self.body.clone()
    }

    /// The `status_code`.
    #[track_caller]
    pub fn code(&self) -> i32 {
        let code = self.body["status_code"].as_i64().unwrap_or_else(|| panic!("{self:?}"));
        i32::try_from(code).unwrap()
    }

    /// Whether the answer has `Vidlog-Stale: true`.
    pub fn is_stale(&self) -> bool {
        self.headers.get("vidlog-stale").is_some_and(|stale| stale == "true")
    }

    /// The `Vidlog-Position` of a command's event.
    pub fn position(&self) -> String {
        self.headers["vidlog-position"].to_str().unwrap().to_owned()
    }

    /// The ids of a list in the body of a success that is not stale.
    #[track_caller]
    pub fn ids(&self, list: &str) -> Vec<i64> {
        ids(&self.ok(), list)
    }

    /// Asserts a failure whose message reveals nothing internal.
    #[track_caller]
    pub fn fails(&self, code: Code) {
        assert_eq!((self.status, self.code()), (code.http_status(), code.number()), "{self:?}");
        let text = self.text.to_lowercase();
        for internal in ["sql", "redis", "kafka", "127.0.0.1", "broker", "argon"] {
            assert!(!text.contains(internal), "{self:?}");
        }
        assert!(!self.body["status_msg"].as_str().unwrap().is_empty());
    }
}

/// The ids of a list in a body.
#[track_caller]
pub fn ids(body: &Value, list: &str) -> Vec<i64> {
    body[list].as_array().unwrap().iter().map(|item| item["id"].as_i64().unwrap()).collect()
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
