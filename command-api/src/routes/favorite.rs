//! POST favorite/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    ApiError, ApiResponse, Call, Empty,
    openapi::{IdempotencyKey, PositionHeader},
};

use super::action_number;
use crate::{
    commands::like::{Like, decide},
    error::typed_id,
    execute::{begin, empty_content, execute, run_command},
    facts::Facts,
    idempotency::{Fingerprint, Request},
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
};

/// Likes or unlikes a video. Idempotent.
#[utoipa::path(
    post,
    path = "/douyin/favorite/action/",
    operation_id = "favoriteAction",
    tag = "favorites",
    params(
        ("video_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 like, 2 unlike"),
        IdempotencyKey,
        PositionHeader,
    ),
    responses((status = 200, body = ApiResponse<Empty>))
)]
pub(crate) async fn action(
    State(state): State<CommandState>,
    Extension(context): Extension<RequestContext>,
    call: Call,
) -> Result<Reply, ApiError> {
    run_command("like", async {
        let caller = call.caller()?;
        let (video_id, action) = (call.params.id("video_id")?, call.params.action_type()?);
        let like = Like { user_id: typed_id(caller)?, video_id: typed_id(video_id)?, action };
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            caller,
            fingerprint: Fingerprint::new("like", &format!("{video_id}\n{}", action_number(action))),
            headers: &call.headers,
        };
        let outcome = begin(&state, &request).await?;
        let decide = async |_| Ok(decide(like, facts.video(video_id).await?)?);
        execute(&state, &context, outcome, decide, empty_content()).await
    })
    .await
}
