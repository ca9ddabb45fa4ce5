//! The stream of follows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Stream, UserId, payload::stream};

stream!(
    /// What happened between a user and one that may be followed.
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

/// A user follows another. Of one that is followed already it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserFollowed {
    /// Who follows.
    pub follower_id: UserId,
    /// Who is followed.
    pub followee_id: UserId,
}

/// A user follows another no longer. Of one that is not followed it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserUnfollowed {
    /// Who followed.
    pub follower_id: UserId,
    /// Who was followed.
    pub followee_id: UserId,
}
