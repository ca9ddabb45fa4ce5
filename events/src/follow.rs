//! The stream of follows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Stream, UserId, payload::stream};

stream!(
    /// An event of a follow.
    FollowEvent in Stream::Follows,
    UserFollowed as "user-followed",
    UserUnfollowed as "user-unfollowed",
);

impl FollowEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::UserFollowed(event) => event.follower_id.to_string(),
            Self::UserUnfollowed(event) => event.follower_id.to_string(),
        }
    }
}

/// A user followed another. It has no effect if the user already follows the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserFollowed {
    /// The follower.
    pub follower_id: UserId,
    /// The followed user.
    pub followee_id: UserId,
}

/// A user unfollowed another. It has no effect if the user does not follow the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserUnfollowed {
    /// The follower.
    pub follower_id: UserId,
    /// The followed user.
    pub followee_id: UserId,
}
