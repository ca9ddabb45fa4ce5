//! The stream of users.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Personal, Stream, UserId, payload::stream};

stream!(
    /// An event of a user.
    UserEvent in Stream::Users,
    UserRegistered as "user-registered",
);

impl UserEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::UserRegistered(event) => event.user_id.to_string(),
        }
    }
}

/// A user registered. The event never contains the password hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UserRegistered {
    /// The new user.
    pub user_id: UserId,
    /// The name, as entered.
    pub name: Personal<String>,
}
