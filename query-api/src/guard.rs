//! Middleware: limits on concurrent requests and on the time of a request, metrics, and panic handling.

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

use crate::metrics::{PANICS, REQUEST_SECONDS, REQUESTS_REJECTED};

/// The timeout of a request: longer than a read with its waits and the timeouts of both stores. The client gives up
/// earlier.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits concurrent requests and the time of a request. Rejects immediately above the limit, so a slow store does not
/// fill the process with waiting requests.
pub(crate) async fn limit(State(permits): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_permit) = permits.try_acquire() else {
        counter!(REQUESTS_REJECTED).increment(1);
        return ApiError::unavailable("too busy; try again in a moment").into_response();
    };
    timeout(REQUEST_TIMEOUT, next.run(request)).await.unwrap_or_else(|_| {
        ApiError::unavailable("the request took too long; try again in a moment").into_response()
    })
}

/// Records the duration of a request.
pub(crate) async fn record_duration(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let response = next.run(request).await;
    let route = path.map_or_else(String::new, |path| path.as_str().trim_end_matches('/').to_owned());
    let status = response.status().as_str().to_owned();
    histogram!(REQUEST_SECONDS, "route" => route, "status" => status).record(start.elapsed());
    response
}

/// Turns a panic of a handler into an internal error.
#[expect(clippy::needless_pass_by_value, reason = "the layer passes the panic by value")]
pub(crate) fn handle_panic(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    error!(reason, "handler panicked");
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

    async fn respond(permits: usize, path: &str) -> (u16, String) {
        let router = Router::new()
            .route("/slow", get(async || tokio::time::sleep(REQUEST_TIMEOUT * 2).await))
            .route("/panic", get(async || -> &'static str { panic!("secret {}", 1) }))
            .layer(CatchPanicLayer::custom(handle_panic))
            .layer(from_fn_with_state(Arc::new(Semaphore::new(permits)), limit));
        let response = router.oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn panic_is_an_internal_error_without_details() {
        let (status, body) = respond(1, "/panic").await;
        assert_eq!(status, 500);
        assert_eq!(body, r#"{"status_code":10010,"status_msg":"something went wrong on the server"}"#);
    }

    #[tokio::test(start_paused = true)]
    async fn slow_request_times_out() {
        let (status, body) = respond(1, "/slow").await;
        assert_eq!(status, 503);
        assert!(body.contains("10009"), "{body}");
    }

    #[tokio::test]
    async fn request_above_the_limit_is_rejected() {
        assert_eq!(respond(0, "/slow").await.0, 503);
    }
}
