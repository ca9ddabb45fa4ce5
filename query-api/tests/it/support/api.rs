//! The API, as a client calls it.

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::Value;
use tower::ServiceExt;
use vidlog_contract::Tokens;
use vidlog_query_api::{QueryState, router};

/// The API over some state.
pub(crate) struct Api {
    router: Router,
    tokens: Tokens,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Api {
    pub(crate) fn new(state: QueryState) -> Self {
        Self { tokens: state.tokens.clone(), router: router(state) }
    }

    /// Gets a path as an anonymous reader.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Gets a path as a user.
    pub(crate) async fn get_as(&self, user: i64, path: &str) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        self.get(&format!("{path}{separator}token={}", self.tokens.sign(user).unwrap())).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }
}

impl Answer {
    /// The answer's `status_code`.
    pub(crate) fn code(&self) -> i64 {
        self.body["status_code"].as_i64().unwrap()
    }

    /// The body of a good answer that lacks nothing.
    pub(crate) fn ok(self) -> Value {
        assert!(!self.is_stale(), "{self:?}");
        self.even_if_stale()
    }

    /// The body of a good answer.
    pub(crate) fn even_if_stale(self) -> Value {
        assert_eq!((self.status, self.code()), (StatusCode::OK, 0), "{self:?}");
        self.body
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.headers.get("vidlog-stale").is_some_and(|stale| stale == "true")
    }

    /// The ids of a good answer's list.
    pub(crate) fn ids(self, list: &str) -> Vec<i64> {
        ids(&self.ok(), list)
    }
}

fn ids(body: &Value, list: &str) -> Vec<i64> {
    body[list].as_array().unwrap().iter().map(|item| item["id"].as_i64().unwrap()).collect()
}

/// Every id of a list, page by page; `between` happens after each page.
pub(crate) async fn all_pages(
    list: &str,
    mut page: impl AsyncFnMut(Option<String>) -> Answer,
    mut between: impl AsyncFnMut(),
) -> Vec<i64> {
    let mut all = Vec::new();
    let mut cursor = None;
    loop {
        let body = page(cursor.take()).await.even_if_stale();
        all.extend(ids(&body, list));
        cursor = body["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            return all;
        }
        between().await;
    }
}
