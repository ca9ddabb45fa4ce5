//! GET comment/list.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, limits, objects::Comment};
use vidlog_read_models::Scope;
use vidlog_schemas::projections::{self, Projection};

use super::{FreshResult, freshness_requirement};
use crate::{paging::Page, reads, state::QueryState};

const PROJECTIONS: &[Projection] = &[
    projections::COMMENTS_TABLE,
    projections::VIDEO_CARDS,
    projections::USER_CARDS,
    projections::WORKS,
    projections::LIKES,
    projections::FOLLOWS,
];

/// A list of comments.
#[derive(Serialize, ToSchema)]
pub(crate) struct CommentList {
    comment_list: Vec<Comment>,
    /// The cursor of the next page. Present if the request has a limit and another page follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The comments on a video, newest first.
#[utoipa::path(
    get,
    path = "/douyin/comment/list/",
    operation_id = "commentList",
    tag = "comments",
    params(
        ("video_id" = i64, Query),
        ("limit" = Option<i64>, Query, description = "1 to 500"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<CommentList>))
)]
pub(crate) async fn list(State(state): State<QueryState>, call: Call) -> FreshResult<CommentList> {
    let video = call.params.id("video_id")?;
    let page = Page::from_params(&call.params, limits::COMMENT_LIST)?;
    let requirement = freshness_requirement(&call, Some(Scope::Video(video)), PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::comments::of_video(models, source, call.viewer(), video, page))
        .await?
        .require("video")?;
    Ok(read.map(|(comment_list, next_cursor)| ApiResponse::new(CommentList { comment_list, next_cursor })))
}
