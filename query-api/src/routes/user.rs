//! GET user.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{ApiResponse, Call, objects::User};
use vidlog_read_models::Scope;

use super::{FreshResult, USER_PROJECTIONS, freshness_requirement, requested_user};
use crate::{reads, state::QueryState};

/// A user's card.
#[derive(Serialize, ToSchema)]
pub(crate) struct Card {
    user: User,
}

/// A user, relative to the caller.
#[utoipa::path(
    get,
    path = "/douyin/user/",
    operation_id = "user",
    tag = "users",
    params(
        ("user_id" = Option<i64>, Query, description = "default: the caller"),
    ),
    security((), ("token" = []), ("bearer" = [])),
    responses((status = 200, body = ApiResponse<Card>))
)]
pub(crate) async fn user(State(state): State<QueryState>, call: Call) -> FreshResult<Card> {
    let user = requested_user(&call)?;
    let requirement = freshness_requirement(&call, Some(Scope::User(user)), USER_PROJECTIONS)?;
    let models = &state.models;
    let read = models
        .freshness
        .read(requirement, |source| reads::user::card(models, source, call.viewer(), user))
        .await?
        .require("user")?;
    Ok(read.map(|user| ApiResponse::new(Card { user })))
}
