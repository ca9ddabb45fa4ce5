//! POST relation/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    Answer, ApiError, Call, Empty,
    openapi::{IdempotencyKey, Seen},
};

use super::number;
use crate::{
    commands::follow::{Follow, decide},
    error::checked,
    execute::{begin, execute, nothing, watched},
    facts::Facts,
    idempotency::Request,
    origin::Origin,
    reply::Reply,
    state::CommandState,
};

/// Follows a user, or takes that back. What is so already stays so.
#[utoipa::path(
    post,
    path = "/douyin/relation/action/",
    operation_id = "relationAction",
    tag = "relations",
    params(
        ("to_user_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 follow, 2 unfollow"),
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
    watched("follow", async {
        let caller = call.caller()?;
        let (followee, action) = (call.params.id("to_user_id")?, call.params.action_type()?);
        let follow = Follow { follower_id: checked(caller)?, followee_id: checked(followee)?, action };
        follow.check()?;
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            command: "follow",
            caller,
            wish: format!("{followee}\n{}", number(action)),
            headers: &call.headers,
        };
        let begun = begin(&state, &request).await?;
        let decide = async |_| Ok(decide(follow, facts.user(followee).await?)?);
        execute(&state, &origin, begun, decide, nothing).await
    })
    .await
}
