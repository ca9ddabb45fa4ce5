//! GET relation/follow/list, relation/follower/list, relation/friend/list.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, limits, objects::FriendUser};
use vidlog_read_models::Scope;
use vidlog_schemas::projections::{self, Projection};

use super::{Answered, UserList, need, user_of};
use crate::{
    paging::Page,
    reads::{self, list::List},
    state::QueryState,
};

const READ: &[Projection] =
    &[projections::FOLLOWS, projections::USER_CARDS, projections::WORKS, projections::LIKES];
const READ_WITH_MESSAGES: &[Projection] = &[
    projections::FOLLOWS,
    projections::USER_CARDS,
    projections::WORKS,
    projections::LIKES,
    projections::MESSAGES_TABLE,
];

/// A list of friends.
#[derive(Serialize, ToSchema)]
pub(crate) struct FriendList {
    user_list: Vec<FriendUser>,
    /// Where the next page begins; only if this one was asked for with a limit, and there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Whom a user follows, the latest first.
#[utoipa::path(
    get,
    path = "/douyin/relation/follow/list/",
    operation_id = "followList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<UserList>))
)]
pub(crate) async fn follows(State(state): State<QueryState>, call: Call) -> Answered<UserList> {
    let user = user_of(&call)?;
    users(&state, &call, user, List::Following(user)).await
}

/// Who follows a user, the latest first.
#[utoipa::path(
    get,
    path = "/douyin/relation/follower/list/",
    operation_id = "followerList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<UserList>))
)]
pub(crate) async fn followers(State(state): State<QueryState>, call: Call) -> Answered<UserList> {
    let user = user_of(&call)?;
    users(&state, &call, user, List::Followers(user)).await
}

/// Who follows a user and is followed back, the latest first, with the latest message between each and the caller.
#[utoipa::path(
    get,
    path = "/douyin/relation/friend/list/",
    operation_id = "friendList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, body = ApiResponse<FriendList>))
)]
pub(crate) async fn friends(State(state): State<QueryState>, call: Call) -> Answered<FriendList> {
    let caller = call.caller()?;
    let user = user_of(&call)?;
    let page = Page::of(&call.params, limits::RELATION_LIST)?;
    let need = need(&call, Some(Scope::User(user)), READ_WITH_MESSAGES)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(need, |source| reads::friends::of_user(models, source, caller, user, page))
        .await?
        .require("user")?;
    Ok(read.map(|(user_list, next_cursor)| ApiResponse::new(FriendList { user_list, next_cursor })))
}

async fn users(state: &QueryState, call: &Call, user: i64, list: List) -> Answered<UserList> {
    let page = Page::of(&call.params, limits::RELATION_LIST)?;
    let need = need(call, Some(Scope::User(user)), READ)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(need, |source| reads::list::users(models, source, call.viewer(), list, page))
        .await?
        .require("user")?;
    Ok(read.map(|(user_list, next_cursor)| ApiResponse::new(UserList { user_list, next_cursor })))
}
