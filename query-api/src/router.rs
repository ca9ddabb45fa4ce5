//! Every route of the query side.

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::{MethodRouter, get},
};
use tower_http::catch_panic::CatchPanicLayer;
use vidlog_contract::{ApiError, error::method_not_allowed};

use crate::{
    guard,
    routes::{comment, favorite, feed, media, message, publish, relation, user},
    state::QueryState,
};

/// The query side by itself: its routes, and an answer to every other path.
pub fn router(state: QueryState) -> Router {
    routes(state).fallback(async || ApiError::no_such_path())
}

/// Its routes alone, to be merged with others.
pub fn routes(state: QueryState) -> Router {
    Router::new()
        .merge(both("/douyin/feed", get(feed::feed)))
        .merge(both("/douyin/user", get(user::user)))
        .merge(both("/douyin/publish/list", get(publish::list)))
        .merge(both("/douyin/favorite/list", get(favorite::list)))
        .merge(both("/douyin/comment/list", get(comment::list)))
        .merge(both("/douyin/relation/follow/list", get(relation::follows)))
        .merge(both("/douyin/relation/follower/list", get(relation::followers)))
        .merge(both("/douyin/relation/friend/list", get(relation::friends)))
        .merge(both("/douyin/message/chat", get(message::chat)))
        .route("/static/{*key}", get(media::serve))
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(CatchPanicLayer::custom(guard::panicked))
        .layer(from_fn_with_state(state.slots.clone(), guard::bound))
        .layer(from_fn(guard::measure))
        .with_state(state)
}

/// A path with and without the trailing slash: clients send either, and not all follow a redirect.
fn both(path: &str, methods: MethodRouter<QueryState>) -> Router<QueryState> {
    Router::new().route(path, methods.clone()).route(&format!("{path}/"), methods)
}
