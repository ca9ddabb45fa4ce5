//! POST favorite/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    Answer, ApiError, Call, Empty,
    openapi::{IdempotencyKey, Seen},
};

use super::number;
use crate::{
    commands::like::{Like, decide},
    error::checked,
    execute::{begin, execute, nothing, watched},
    facts::Facts,
    idempotency::Request,
    origin::Origin,
    reply::Reply,
    state::CommandState,
};

/// Likes a video, or takes that back. What is so already stays so.
#[utoipa::path(
    post,
    path = "/douyin/favorite/action/",
    operation_id = "favoriteAction",
    tag = "favorites",
    params(
        ("video_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 like, 2 unlike"),
        IdempotencyKey,
        Seen,
    ),
    responses((status = 200, body = Answer<Empty>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(origin): Extension<Origin>,
    call: Call,
) -> Result<Reply, ApiError> {
    watched("like", async {
        let caller = call.caller()?;
        let (video_id, action) = (call.params.id("video_id")?, call.params.action_type()?);
        let like = Like { user_id: checked(caller)?, video_id: checked(video_id)?, action };
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            command: "like",
            caller,
            wish: format!("{video_id}\n{}", number(action)),
            headers: &call.headers,
        };
        let begun = begin(&state, &request).await?;
        let decide = async |_| Ok(decide(like, facts.video(video_id).await?)?);
        execute(&state, &origin, begun, decide, nothing).await
    })
    .await
}
