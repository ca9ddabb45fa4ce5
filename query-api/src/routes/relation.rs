//! GET relation/follow/list, relation/follower/list, relation/friend/list.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, limits, objects::FriendUser};
use vidlog_read_models::Scope;
use vidlog_schemas::projections::{self, Projection};

use super::{FreshResult, USER_PROJECTIONS, UserList, freshness_requirement, requested_user};
use crate::{
    paging::Page,
    reads::{self, list::List},
    state::QueryState,
};

const FRIEND_PROJECTIONS: &[Projection] = &[
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
    /// The cursor of the next page. Present if the request has a limit and another page follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The users that a user follows, latest follow first.
#[utoipa::path(
    get,
    path = "/douyin/relation/follow/list/",
    operation_id = "followList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "default: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<UserList>))
)]
pub(crate) async fn follows(State(state): State<QueryState>, call: Call) -> FreshResult<UserList> {
    let user = requested_user(&call)?;
    users(&state, &call, user, List::Following(user)).await
}

/// The followers of a user, latest follow first.
#[utoipa::path(
    get,
    path = "/douyin/relation/follower/list/",
    operation_id = "followerList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "default: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<UserList>))
)]
pub(crate) async fn followers(State(state): State<QueryState>, call: Call) -> FreshResult<UserList> {
    let user = requested_user(&call)?;
    users(&state, &call, user, List::Followers(user)).await
}

/// The mutual follows of a user, latest first, with the latest message between each and the caller.
#[utoipa::path(
    get,
    path = "/douyin/relation/friend/list/",
    operation_id = "friendList",
    tag = "relations",
    params(
        ("user_id" = Option<i64>, Query, description = "default: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses((status = 200, body = ApiResponse<FriendList>))
)]
pub(crate) async fn friends(State(state): State<QueryState>, call: Call) -> FreshResult<FriendList> {
    let caller = call.caller()?;
    let user = requested_user(&call)?;
    let page = Page::from_params(&call.params, limits::RELATION_LIST)?;
    let requirement = freshness_requirement(&call, Some(Scope::User(user)), FRIEND_PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::friends::of_user(models, source, caller, user, page))
        .await?
        .require("user")?;
    Ok(read.map(|(user_list, next_cursor)| ApiResponse::new(FriendList { user_list, next_cursor })))
}

async fn users(state: &QueryState, call: &Call, user: i64, list: List) -> FreshResult<UserList> {
    let page = Page::from_params(&call.params, limits::RELATION_LIST)?;
    let requirement = freshness_requirement(call, Some(Scope::User(user)), USER_PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::list::users(models, source, call.viewer(), list, page))
        .await?
        .require("user")?;
    Ok(read.map(|(user_list, next_cursor)| ApiResponse::new(UserList { user_list, next_cursor })))
}
