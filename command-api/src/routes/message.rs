//! POST message/action.

use axum::{Extension, extract::State};
use vidlog_contract::{
    Action, ApiError, ApiResponse, Call, Empty, limits,
    openapi::{IdempotencyKey, PositionHeader},
};
use vidlog_events::Personal;

use crate::{
    commands::message::{Send, decide},
    error::typed_id,
    execute::{begin_with_id, empty_content, execute, run_command},
    facts::Facts,
    idempotency::{Fingerprint, Request, Reservation},
    reply::Reply,
    request_context::RequestContext,
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
        ("action_type" = Option<i32>, Query, description = "1 send; default: 1"),
        ("content" = String, Query, description = "1 to 255 characters, no control characters but line breaks and tabs"),
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
    run_command("message", async {
        let caller = call.caller()?;
        let to_user_id = call.params.id("to_user_id")?;
        // Some clients omit it.
        let is_given = call.params.optional("action_type")?.is_some();
        if is_given && call.params.action_type()? != Action::Do {
            return Err(ApiError::invalid("action_type must be 1"));
        }
        let content = call.params.limited_lines("content", limits::MESSAGE_CONTENT)?;
        let send = Send {
            from_user_id: typed_id(caller)?,
            to_user_id: typed_id(to_user_id)?,
            content: Personal::new(content.to_owned()),
        };
        send.validate()?;
        let facts = Facts::new(&state.read_models, caller, &call.headers)?;
        let request = Request {
            caller,
            fingerprint: Fingerprint::new("message", &format!("{to_user_id}\n{content}")),
            headers: &call.headers,
        };
        let outcome = begin_with_id(&state, &request).await?;
        let decide = async |reservation: Reservation| {
            Ok(decide(send, facts.user(to_user_id).await?, reservation.entity()?)?)
        };
        execute(&state, &context, outcome, decide, empty_content()).await
    })
    .await
}
