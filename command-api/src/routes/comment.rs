//! POST comment/action.

use axum::{Extension, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{
    Action, ApiError, ApiResponse, Call, limits,
    objects::Comment,
    openapi::{IdempotencyKey, PositionHeader},
    times::month_and_day,
};
use vidlog_events::{CommentId, Personal};

use crate::{
    commands::comment::{self, Delete, Post},
    error::typed_id,
    execute::{begin, begin_with_id, empty_content, execute, run_command},
    facts::Facts,
    idempotency::{Fingerprint, Request, Reservation},
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
};

/// Response to a posted comment.
#[derive(Serialize, ToSchema)]
pub(crate) struct Posted {
    /// The comment; only for `action_type` 1.
    #[schema(required = false)]
    comment: Comment,
}

/// Posts or deletes a comment. The comment's author and the video's author can delete it.
#[utoipa::path(
    post,
    path = "/douyin/comment/action/",
    operation_id = "commentAction",
    tag = "comments",
    params(
        ("video_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 post, 2 delete"),
        ("comment_text" = Option<String>, Query, description = "for 1: 1 to 255 characters, no control characters but line breaks and tabs"),
        ("comment_id" = Option<i64>, Query, description = "for 2"),
        IdempotencyKey,
        PositionHeader,
    ),
    responses((status = 200, body = ApiResponse<Posted>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(context): Extension<RequestContext>,
    call: Call,
) -> Result<Reply, ApiError> {
    match call.params.action_type() {
        Ok(Action::Do) => run_command("post-comment", post(&state, &context, &call)).await,
        Ok(Action::Undo) => run_command("delete-comment", delete(&state, &context, &call)).await,
        Err(error) => Err(error),
    }
}

async fn post(state: &CommandState, context: &RequestContext, call: &Call) -> Result<Reply, ApiError> {
    let caller = call.caller()?;
    let video_id = call.params.id("video_id")?;
    let text = call.params.limited_lines("comment_text", limits::COMMENT_TEXT)?;
    let post = Post {
        user_id: typed_id(caller)?,
        video_id: typed_id(video_id)?,
        text: Personal::new(text.to_owned()),
    };
    let facts = Facts::new(&state.read_models, caller, &call.headers)?;
    let request = Request {
        caller,
        fingerprint: Fingerprint::new("post-comment", &format!("{video_id}\n{text}")),
        headers: &call.headers,
    };
    let outcome = begin_with_id(state, &request).await?;
    let decide = async |reservation: Reservation| {
        Ok(comment::post(post, facts.video(video_id).await?, reservation.entity()?)?)
    };
    let posted = async {
        let user = facts.caller().await?;
        Ok(|reservation: Reservation| {
            let comment = Comment {
                id: reservation.entity::<CommentId>()?.get(),
                user,
                content: text.to_owned(),
                create_date: month_and_day(reservation.identity().time_ms),
            };
            Ok(Posted { comment })
        })
    };
    execute(state, context, outcome, decide, posted).await
}

async fn delete(state: &CommandState, context: &RequestContext, call: &Call) -> Result<Reply, ApiError> {
    let caller = call.caller()?;
    let (video_id, comment_id) = (call.params.id("video_id")?, call.params.id("comment_id")?);
    let delete = Delete {
        user_id: typed_id(caller)?,
        video_id: typed_id(video_id)?,
        comment_id: typed_id(comment_id)?,
    };
    let facts = Facts::new(&state.read_models, caller, &call.headers)?;
    let request = Request {
        caller,
        fingerprint: Fingerprint::new("delete-comment", &format!("{video_id}\n{comment_id}")),
        headers: &call.headers,
    };
    let outcome = begin(state, &request).await?;
    let decide = async |_| Ok(comment::delete(delete, facts.comment(video_id, comment_id).await?)?);
    execute(state, context, outcome, decide, empty_content()).await
}
