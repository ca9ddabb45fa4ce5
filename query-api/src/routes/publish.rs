//! GET publish/list.

use axum::extract::State;
use vidlog_contract::{ApiResponse, Call, limits};
use vidlog_read_models::Scope;

use super::{FreshResult, VIDEO_PROJECTIONS, VideoList, freshness_requirement, requested_user};
use crate::{
    paging::Page,
    reads::{self, list::List},
    state::QueryState,
};

/// A user's videos, newest first. The user itself gets all uploads with their state, other callers the published ones.
#[utoipa::path(
    get,
    path = "/douyin/publish/list/",
    operation_id = "publishList",
    tag = "videos",
    params(
        ("user_id" = Option<i64>, Query, description = "default: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 500"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<VideoList>))
)]
pub(crate) async fn list(State(state): State<QueryState>, call: Call) -> FreshResult<VideoList> {
    let user = requested_user(&call)?;
    let page = Page::from_params(&call.params, limits::WORKS_LIST)?;
    let requirement = freshness_requirement(&call, Some(Scope::User(user)), VIDEO_PROJECTIONS)?;
    let list = if call.viewer() == Some(user) { List::Uploads(user) } else { List::Works(user) };
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::list::videos(models, source, call.viewer(), list, page))
        .await?
        .require("user")?;
    Ok(read.map(|(video_list, next_cursor)| ApiResponse::new(VideoList { video_list, next_cursor })))
}
