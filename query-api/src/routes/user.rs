//! GET user.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, objects::User};
use vidlog_read_models::Scope;

use super::{Answered, CARDS, need, user_of};
use crate::{reads, state::QueryState};

/// A user's card.
#[derive(Serialize, ToSchema)]
pub(crate) struct Card {
    user: User,
}

/// A user, as the caller sees it.
#[utoipa::path(
    get,
    path = "/douyin/user/",
    operation_id = "user",
    tag = "users",
    params(
        ("user_id" = Option<i64>, Query, description = "missing: the caller"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<Card>))
)]
pub(crate) async fn user(State(state): State<QueryState>, call: Call) -> Answered<Card> {
    let user = user_of(&call)?;
    let need = need(&call, Some(Scope::User(user)), CARDS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(need, |source| reads::user::card(models, source, call.viewer(), user))
        .await?
        .require("user")?;
    Ok(read.map(|user| ApiResponse::new(Card { user })))
}
