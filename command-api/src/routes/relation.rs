//! POST relation/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    ApiError, ApiResponse, Call, Empty,
    openapi::{IdempotencyKey, PositionHeader},
};

use super::action_number;
use crate::{
    commands::follow::{Follow, decide},
    error::typed_id,
    execute::{begin, empty_content, execute, run_command},
    facts::Facts,
    idempotency::{Fingerprint, Request},
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
};

/// Follows or unfollows a user. Idempotent.
#[utoipa::path(
    post,
    path = "/douyin/relation/action/",
    operation_id = "relationAction",
    tag = "relations",
    params(
        ("to_user_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 follow, 2 unfollow"),
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
    run_command("follow", async {
        let caller = call.caller()?;
        let (followee, action) = (call.params.id("to_user_id")?, call.params.action_type()?);
        let follow = Follow { follower_id: typed_id(caller)?, followee_id: typed_id(followee)?, action };
        follow.validate()?;
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            caller,
            fingerprint: Fingerprint::new("follow", &format!("{followee}\n{}", action_number(action))),
            headers: &call.headers,
        };
        let outcome = begin(&state, &request).await?;
        let decide = async |_| Ok(decide(follow, facts.user(followee).await?)?);
        execute(&state, &context, outcome, decide, empty_content()).await
    })
    .await
}
