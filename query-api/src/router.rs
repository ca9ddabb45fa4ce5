//! Every route of the query API.

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get},
};
use tower_http::catch_panic::CatchPanicLayer;
use vidlog_contract::{ApiError, error::method_not_allowed, http::merge_slashes};
use vidlog_rate_limits::{Class, RouteLimits, limit};

use crate::{
    guard,
    routes::{comment, favorite, feed, media, message, publish, relation, user},
    state::QueryState,
};

/// Returns the routes, and a 404 for every other path.
pub fn router(state: QueryState) -> Router {
    merge_slashes(routes(state).fallback(async || ApiError::no_such_path()))
}

/// Returns the routes alone, to be merged with others.
pub fn routes(state: QueryState) -> Router {
    let read = |path, methods: MethodRouter<QueryState>| {
        with_optional_slash(
            path,
            methods.layer(from_fn_with_state(RouteLimits::new(&state.limits, Class::Read), limit)),
        )
    };
    Router::new()
        .merge(read("/douyin/feed", get(feed::feed)))
        .merge(read("/douyin/feed/top", get(feed::top)))
        .merge(read("/douyin/user", get(user::user)))
        .merge(read("/douyin/publish/list", get(publish::list)))
        .merge(read("/douyin/favorite/list", get(favorite::list)))
        .merge(read("/douyin/comment/list", get(comment::list)))
        .merge(read("/douyin/relation/follow/list", get(relation::follows)))
        .merge(read("/douyin/relation/follower/list", get(relation::followers)))
        .merge(read("/douyin/relation/friend/list", get(relation::friends)))
        .merge(read("/douyin/message/chat", get(message::chat)))
        .route("/static/{*key}", get(media::serve))
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(CatchPanicLayer::custom(guard::handle_panic))
        .layer(from_fn_with_state(state.request_permits.clone(), guard::limit))
        .layer(from_fn(guard::record_duration))
        .with_state(state)
}

/// Routes a path with and without the trailing slash: clients send either, and not all follow a redirect.
fn with_optional_slash(path: &str, methods: MethodRouter<QueryState>) -> Router<QueryState> {
    Router::new().route(path, methods.clone()).route(&format!("{path}/"), methods)
}
