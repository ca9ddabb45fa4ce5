//! What stands between a request and its handler: a bound on requests at once, on the time of one, on a panic.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use metrics::{counter, histogram};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tracing::error;
use vidlog_contract::ApiError;

use crate::metrics::{PANICS, REQUEST_SECONDS, REQUESTS_TURNED_AWAY};

/// Longer than any read with its waits and the timeouts of both stores; the client gave up before.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Turns a request away when there are too many, and gives up on one that takes too long. Either is answered at
/// once, so that a slow store does not fill the process with requests that wait.
pub(crate) async fn bound(State(slots): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_slot) = slots.try_acquire() else {
        counter!(REQUESTS_TURNED_AWAY).increment(1);
        return ApiError::unavailable("too busy; try again in a moment").into_response();
    };
    timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::unavailable("this took too long; try again in a moment").into_response()
    })
}

/// Measures how long a request takes.
pub(crate) async fn measure(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let response = next.run(request).await;
    let route = path.map_or_else(String::new, |path| path.as_str().trim_end_matches('/').to_owned());
    let status = response.status().as_str().to_owned();
    histogram!(REQUEST_SECONDS, "route" => route, "status" => status).record(began.elapsed());
    response
}

/// Answers in place of a handler that panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands over the panic")]
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    error!(reason, "a handler panicked");
    counter!(PANICS).increment(1);
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests {
    use axum::{
        Router,
        body::{Body, to_bytes},
        middleware::from_fn_with_state,
        routing::get,
    };
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    async fn answer(slots: usize, path: &str) -> (u16, String) {
        let router = Router::new()
            .route("/slow", get(async || tokio::time::sleep(REQUEST_TIMEOUT * 2).await))
            .route("/panic", get(async || -> &'static str { panic!("secret {}", 1) }))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(Arc::new(Semaphore::new(slots)), bound));
        let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_that_leaks_nothing() {
        let (status, body) = answer(1, "/panic").await;
        assert_eq!(status, 500);
        assert_eq!(body, r#"{"status_code":10010,"status_msg":"something went wrong on the server"}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_given_up() {
        let (status, body) = answer(1, "/slow").await;
        assert_eq!(status, 503);
        assert!(body.contains("10009"), "{body}");
    }

    #[tokio::test]
    async fn one_request_too_many_is_turned_away() {
        assert_eq!(answer(0, "/slow").await.0, 503);
    }
}
