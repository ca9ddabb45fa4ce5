//! Every route of the command side.

use std::any::Any;

use axum::{
    Router,
    http::{HeaderValue, header::CONNECTION},
    middleware::{from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::{MethodRouter, post},
};
use metrics::counter;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;
use vidlog_contract::{ApiError, error::wrong_method};

use crate::{
    metrics::PANICS,
    origin,
    routes::{comment, favorite, login, message, publish, register, relation},
    state::CommandState,
};

/// The command side by itself: its routes, and an answer to every other path.
pub fn router(state: CommandState) -> Router {
    routes(state).fallback(async || ApiError::no_such_path())
}

/// Its routes alone, to be merged with others.
pub fn routes(state: CommandState) -> Router {
    Router::new()
        .merge(both("/douyin/user/register", post(register::register)))
        .merge(both("/douyin/user/login", post(login::login)))
        .merge(both("/douyin/publish/action", post(publish::action).layer(map_response(close))))
        .merge(both("/douyin/favorite/action", post(favorite::action)))
        .merge(both("/douyin/comment/action", post(comment::action)))
        .merge(both("/douyin/relation/action", post(relation::action)))
        .merge(both("/douyin/message/action", post(message::action)))
        .method_not_allowed_fallback(async || wrong_method())
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(state.clone(), origin::identify))
        .with_state(state)
}

/// A path with and without the trailing slash: clients send either, and not all follow a redirect.
fn both(path: &str, methods: MethodRouter<CommandState>) -> Router<CommandState> {
    Router::new().route(path, methods.clone()).route(&format!("{path}/"), methods)
}

/// An upload may be refused before its body is read to the end; then its connection can't carry another request.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers in place of a handler that panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer hands over the panic")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    error!(reason, "a handler panicked");
    counter!(PANICS).increment(1);
    ApiError::internal().into_response()
}
