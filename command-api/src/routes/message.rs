//! POST message/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    Action, Answer, ApiError, Call, Empty, limits,
    openapi::{IdempotencyKey, Seen},
};
use vidlog_events::Personal;

use crate::{
    commands::message::{Send, decide},
    error::checked,
    execute::{begin_with_id, execute, nothing, watched},
    facts::Facts,
    idempotency::{Request, Reserved},
    origin::Origin,
    reply::Reply,
    state::CommandState,
};

/// Sends a chat message.
#[utoipa::path(
    post,
    path = "/douyin/message/action/",
    operation_id = "messageAction",
    tag = "messages",
    params(
        ("to_user_id" = i64, Query),
        ("action_type" = i32, Query, description = "1 send"),
        ("content" = String, Query, description = "1 to 255 characters"),
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
    watched("message", async {
        let caller = call.caller()?;
        let to_user_id = call.params.id("to_user_id")?;
        if call.params.action_type()? != Action::Do {
            return Err(ApiError::invalid("action_type must be 1"));
        }
        let content = call.params.limited_text("content", limits::MESSAGE_CONTENT)?;
        let send = Send {
            from_user_id: checked(caller)?,
            to_user_id: checked(to_user_id)?,
            content: Personal::new(content.to_owned()),
        };
        send.check()?;
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            command: "message",
            caller,
            wish: format!("{to_user_id}\n{content}"),
            headers: &call.headers,
        };
        let begun = begin_with_id(&state, &request).await?;
        let decide =
            async |reserved: Reserved| Ok(decide(send, facts.user(to_user_id).await?, reserved.entity()?)?);
        execute(&state, &origin, begun, decide, nothing).await
    })
    .await
}
