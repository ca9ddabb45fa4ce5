//! All routes of the command side.

use std::any::Any;

use axum::{
    Router,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{MethodRouter, post},
};
use metrics::counter;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::error;
use vidlog_contract::{ApiError, error::method_not_allowed, http::merge_slashes};
use vidlog_rate_limits::{Class, RouteLimits, limit};

use crate::{
    metrics::PANICS,
    request_context,
    routes::{comment, favorite, login, message, publish, register, relation},
    state::CommandState,
};

/// Routes of the command side, with an error response for every other path.
pub fn router(state: CommandState) -> Router {
    merge_slashes(routes(state).fallback(async || ApiError::no_such_path()))
}

/// Routes of the command side without a fallback, for merging with other routes.
pub fn routes(state: CommandState) -> Router {
    let route = |path, class, methods: MethodRouter<CommandState>| {
        with_optional_slash(
            path,
            methods.layer(from_fn_with_state(RouteLimits::new(&state.limits, class), limit)),
        )
    };
    Router::new()
        .merge(route("/douyin/user/register", Class::Register, post(register::register)))
        .merge(route("/douyin/user/login", Class::Login, post(login::login)))
        .merge(route("/douyin/publish/action", Class::Upload, post(publish::action)))
        .merge(route("/douyin/favorite/action", Class::Write, post(favorite::action)))
        .merge(route("/douyin/comment/action", Class::Write, post(comment::action)))
        .merge(route("/douyin/relation/action", Class::Write, post(relation::action)))
        .merge(route("/douyin/message/action", Class::Write, post(message::action)))
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(from_fn_with_state(state.clone(), request_context::attach))
        .with_state(state)
}

/// Serves a path with and without the trailing slash: clients send either, and not all follow a redirect.
fn with_optional_slash(path: &str, methods: MethodRouter<CommandState>) -> Router<CommandState> {
    Router::new().route(path, methods.clone()).route(&format!("{path}/"), methods)
}

/// Responds in place of a handler that panicked.
#[expect(clippy::needless_pass_by_value, reason = "the layer passes the panic by value")]
fn panic_response(panic: Box<dyn Any + Send>) -> Response {
    let reason = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    error!(reason, "handler panicked");
    counter!(PANICS).increment(1);
    ApiError::internal().into_response()
}
