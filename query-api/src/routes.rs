//! The handlers: extract, read, respond.

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

/// The result of a handler.
type FreshResult<T> = Result<Fresh<ApiResponse<T>>, ApiError>;

/// The projections behind the feed, and behind the cards of its videos.
const FEED_PROJECTIONS: &[Projection] = &[
    projections::FEED,
    projections::VIDEO_CARDS,
    projections::COMMENT_COUNTS,
    projections::USER_CARDS,
    projections::FOLLOWS,
    projections::WORKS,
    projections::LIKES,
];

/// The projections behind video cards, and behind the lists of a user's videos.
const VIDEO_PROJECTIONS: &[Projection] = FEED_PROJECTIONS.split_at(1).1;

/// The projections behind user cards, which every video has, and behind the lists of users.
const USER_PROJECTIONS: &[Projection] = VIDEO_PROJECTIONS.split_at(2).1;

/// A list of videos.
#[derive(Serialize, ToSchema)]
pub(crate) struct VideoList {
    video_list: Vec<Video>,
    /// The cursor of the next page. Present if the request has a limit and another page follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// A list of users.
#[derive(Serialize, ToSchema)]
pub(crate) struct UserList {
    user_list: Vec<User>,
    /// The cursor of the next page. Present if the request has a limit and another page follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// Returns the user whose list or card is requested: `user_id`, else the caller.
fn requested_user(call: &Call) -> Result<i64, ApiError> {
    match call.params.optional_id("user_id")? {
        Some(user) => Ok(user),
        None => call.viewer().ok_or_else(|| ApiError::invalid("user_id is missing, and there is no token")),
    }
}

/// Returns the writes that a read must include: the caller's, those to the entity read, and the positions of the client.
fn freshness_requirement(
    call: &Call,
    entity: Option<Scope>,
    projections: &'static [Projection],
) -> Result<FreshnessRequirement, ApiError> {
    let caller = call.viewer().map(Scope::User);
    let mut scopes: Vec<_> = caller.into_iter().chain(entity).collect();
    scopes.dedup();
    Ok(FreshnessRequirement { scopes, projections, client_positions: client_positions(&call.headers)? })
}
