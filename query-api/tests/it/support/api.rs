//! A client of the API.

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{HeaderMap, Request, StatusCode},
};
use serde_json::Value;
use tower::ServiceExt;
use vidlog_contract::Tokens;
use vidlog_query_api::{QueryState, router};

/// The API, called in process.
pub(crate) struct Api {
    router: Router,
    tokens: Tokens,
}

/// A response with its body.
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

    /// Sends an anonymous GET.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// Sends a GET of a user.
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
    /// Returns the `status_code`.
    pub(crate) fn code(&self) -> i64 {
        self.body["status_code"].as_i64().unwrap()
    }

    /// Returns the body of a successful response that is not stale.
    pub(crate) fn ok(self) -> Value {
        assert!(!self.is_stale(), "{self:?}");
        self.even_if_stale()
    }

    /// Returns the body of a successful response.
    pub(crate) fn even_if_stale(self) -> Value {
        assert_eq!((self.status, self.code()), (StatusCode::OK, 0), "{self:?}");
        self.body
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.headers.get("vidlog-stale").is_some_and(|stale| stale == "true")
    }

    /// Returns the ids of a list of a successful response.
    pub(crate) fn ids(self, list: &str) -> Vec<i64> {
        ids(&self.ok(), list)
    }
}

fn ids(body: &Value, list: &str) -> Vec<i64> {
    body[list].as_array().unwrap().iter().map(|item| item["id"].as_i64().unwrap()).collect()
}

/// Reads every id of a list, page by page, and runs `between` after each page.
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
