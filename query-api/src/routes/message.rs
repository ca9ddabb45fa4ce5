//! GET message/chat.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, limits, objects::Message, times};
use vidlog_read_models::Scope;
use vidlog_schemas::projections::{self, Projection};

use super::{FreshResult, freshness_requirement};
use crate::{
    paging::Page,
    reads::{self, chat::Chat},
    state::QueryState,
};

const PROJECTIONS: &[Projection] = &[projections::MESSAGES_TABLE, projections::USER_CARDS];

/// Messages of a conversation.
#[derive(Serialize, ToSchema)]
pub(crate) struct MessageList {
    message_list: Vec<Message>,
    /// The cursor of the next page. Present if the request has a limit and another page follows. The next page is
    /// older without `pre_msg_time`, newer with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The messages between the caller and another user, oldest first.
#[utoipa::path(
    get,
    path = "/douyin/message/chat/",
    operation_id = "messageChat",
    tag = "messages",
    params(
        ("to_user_id" = i64, Query),
        ("pre_msg_time" = Option<String>, Query, description = "only the peer's messages strictly later than this; \
            milliseconds, or seconds up to 1e11; missing, empty, 0 or not a number: the history of both"),
        ("limit" = Option<i64>, Query, description = "1 to 1000"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses((status = 200, body = ApiResponse<MessageList>))
)]
pub(crate) async fn chat(State(state): State<QueryState>, call: Call) -> FreshResult<MessageList> {
    let caller = call.caller()?;
    let peer = call.params.id("to_user_id")?;
    let after_ms = times::parse(call.params.optional("pre_msg_time")?);
    let page = Page::from_params(&call.params, limits::CHAT_LIST)?;
    let mut requirement = freshness_requirement(&call, Some(Scope::Conversation(caller, peer)), PROJECTIONS)?;
    // The read also checks that the peer exists.
    requirement.scopes.push(Scope::User(peer));
    let chat = Chat { caller, peer, after_ms };
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::chat::messages(models, source, chat, page))
        .await?
        .require("user")?;
    Ok(read.map(|(message_list, next_cursor)| ApiResponse::new(MessageList { message_list, next_cursor })))
}
