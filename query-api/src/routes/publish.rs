//! GET publish/list.

use axum::extract::State;
use vidlog_contract::{ApiResponse, Call, limits};
use vidlog_read_models::Scope;

use super::{Answered, CARDS, VideoList, need, user_of};
use crate::{
    paging::Page,
    reads::{self, list::List},
    state::QueryState,
};

/// A user's videos, newest first. The user sees all of its uploads, with their state; others what is published.
#[utoipa::path(
    get,
    path = "/douyin/publish/list/",
    operation_id = "publishList",
    tag = "videos",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
        ("limit" = Option<i64>, Query, description = "1 to 500"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<VideoList>))
)]
pub(crate) async fn list(State(state): State<QueryState>, call: Call) -> Answered<VideoList> {
    let user = user_of(&call)?;
    let page = Page::of(&call.params, limits::WORKS_LIST)?;
    let need = need(&call, Some(Scope::User(user)), CARDS)?;
    let list = if call.viewer() == Some(user) { List::Uploads(user) } else { List::Works(user) };
    let models = &state.models;
    let read = models
        .freshness
        .read(need, |source| reads::list::videos(models, source, call.viewer(), list, page))
        .await?
        .require("user")?;
    Ok(read.map(|(video_list, next_cursor)| ApiResponse::new(VideoList { video_list, next_cursor })))
}
