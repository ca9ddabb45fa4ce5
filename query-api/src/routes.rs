//! The handlers: extract, read, answer.

pub(crate) mod comment;
pub(crate) mod favorite;
pub(crate) mod feed;
pub(crate) mod media;
pub(crate) mod message;
pub(crate) mod publish;
pub(crate) mod relation;
pub(crate) mod user;

use serde::Serialize;
use utoipa::ToSchema;
use vidlog_contract::{
    ApiError, ApiResponse, Call,
    objects::{User, Video},
};
use vidlog_read_models::{Fresh, FreshnessRequirement, Scope, freshness::client_positions};
use vidlog_schemas::projections::{self, Projection};

/// What a handler answers.
type Answered<T> = Result<Fresh<ApiResponse<T>>, ApiError>;

/// The projections of everything that users and videos show, with those of the lists of them.
const CARDS: &[Projection] = &[
    projections::FEED,
    projections::WORKS,
    projections::VIDEO_CARDS,
    projections::USER_CARDS,
    projections::LIKES,
    projections::FOLLOWS,
    projections::COMMENT_COUNTS,
];

/// A list of videos.
#[derive(Serialize, ToSchema)]
pub(crate) struct VideoList {
    video_list: Vec<Video>,
    /// Where the next page begins; only if this one was asked for with a limit, and there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A list of users.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserList {
    user_list: Vec<User>,
    /// Where the next page begins; only if this one was asked for with a limit, and there is more.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// The user that a list or card is about: `user_id`, else the caller.
fn user_of(call: &Call) -> Result<i64, ApiError> {
    match call.params.optional_id("user_id")? {
        Some(user) => Ok(user),
        None => call.viewer().ok_or_else(|| ApiError::invalid("user_id is missing, and so is a token")),
    }
}

/// What a read must see: the writes of the caller and those to what is read, and what the caller says it has seen.
fn need(
    call: &Call,
    read: Option<Scope>,
    projections: &'static [Projection],
) -> Result<FreshnessRequirement, ApiError> {
    let caller = call.viewer().map(Scope::User);
    let mut scopes: Vec<_> = caller.into_iter().chain(read).collect();
    scopes.dedup();
    Ok(FreshnessRequirement { scopes, projections, client_positions: client_positions(&call.headers)? })
}
