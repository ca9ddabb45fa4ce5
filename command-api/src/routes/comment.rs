//! POST comment/action.

use axum::{Extension, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{
    Action, Answer, ApiError, Call, limits,
    objects::Comment,
    openapi::{IdempotencyKey, Seen},
    times::month_and_day,
};
use vidlog_events::{CommentId, Personal};

use crate::{
    commands::comment::{self, Delete, Post},
    error::checked,
    execute::{begin, begin_with_id, execute, nothing, watched},
    facts::Facts,
    idempotency::{Request, Reserved},
    origin::Origin,
    reply::Reply,
    state::CommandState,
};

/// A comment that was posted.
#[derive(Serialize, ToSchema)]
pub(crate) struct Posted {
    /// The comment; only of `action_type` 1.
    #[schema(required = false)]
    comment: Comment,
}

/// Posts a comment, or deletes one. Its writer can delete it, and the video's author.
#[utoipa::path(
    post,
    path = "/douyin/comment/action/",
    operation_id = "commentAction",
    tag = "comments",
    params(
        ("video_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 post, 2 delete"),
        ("comment_text" = Option<String>, Query, description = "of 1: 1 to 255 characters"),
        ("comment_id" = Option<i64>, Query, description = "of 2"),
        IdempotencyKey,
        Seen,
    ),
    responses((status = 200, body = Answer<Posted>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(origin): Extension<Origin>,
    call: Call,
) -> Result<Reply, ApiError> {
    match call.params.action_type() {
        Ok(Action::Do) => watched("post-comment", post(&state, &origin, &call)).await,
        Ok(Action::Undo) => watched("delete-comment", delete(&state, &origin, &call)).await,
        Err(error) => Err(error),
    }
}

async fn post(state: &CommandState, origin: &Origin, call: &Call) -> Result<Reply, ApiError> {
    let caller = call.caller()?;
    let video_id = call.params.id("video_id")?;
    let text = call.params.limited_text("comment_text", limits::COMMENT_TEXT)?;
    let post = Post {
        user_id: checked(caller)?,
        video_id: checked(video_id)?,
        text: Personal::new(text.to_owned()),
    };
    let facts = Facts::new(&state.read_models, caller, &call.headers)?;
    let request = Request {
        command: "post-comment",
        caller,
        wish: format!("{video_id}\n{text}"),
        headers: &call.headers,
    };
    let begun = begin_with_id(state, &request).await?;
    let decide =
        async |reserved: Reserved| Ok(comment::post(post, facts.video(video_id).await?, reserved.entity()?)?);
    let posted = async |reserved: Reserved| {
        let comment = Comment {
            id: reserved.entity::<CommentId>()?.get(),
            user: facts.caller().await?,
            content: text.to_owned(),
            create_date: month_and_day(reserved.stamp().time_ms),
        };
        Ok(Posted { comment })
    };
    execute(state, origin, begun, decide, posted).await
}

async fn delete(state: &CommandState, origin: &Origin, call: &Call) -> Result<Reply, ApiError> {
    let caller = call.caller()?;
    let (video_id, comment_id) = (call.params.id("video_id")?, call.params.id("comment_id")?);
    let delete =
        Delete { user_id: checked(caller)?, video_id: checked(video_id)?, comment_id: checked(comment_id)? };
    let facts = Facts::new(&state.read_models, caller, &call.headers)?;
    let request = Request {
        command: "delete-comment",
        caller,
        wish: format!("{video_id}\n{comment_id}"),
        headers: &call.headers,
    };
    let begun = begin(state, &request).await?;
    let decide = async |_| Ok(comment::delete(delete, facts.comment(video_id, comment_id).await?)?);
    execute(state, origin, begun, decide, nothing).await
}
