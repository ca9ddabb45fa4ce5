//! Identifiers of entities.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The largest id. Clients store ids in doubles, which are exact below 2^53.
pub const MAX_ID: i64 = (1 << 53) - 1;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(try_from = "i64", into = "i64")]
        #[schemars(extend("minimum" = 1, "maximum" = MAX_ID))]
        pub struct $name(i64);

        impl $name {
            /// Returns the id if it is in 1..=[`MAX_ID`].
            pub const fn new(id: i64) -> Option<Self> {
                if id >= 1 && id <= MAX_ID { Some(Self(id)) } else { None }
            }

            /// Returns the number.
            pub const fn get(self) -> i64 {
                self.0
            }
        }

        impl TryFrom<i64> for $name {
            type Error = String;

            fn try_from(id: i64) -> Result<Self, String> {
                Self::new(id).ok_or_else(|| format!("id {id} is not in 1..={MAX_ID}"))
            }
        }

        impl From<$name> for i64 {
            fn from(id: $name) -> i64 {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Identifies a user.
    UserId
);
id!(
    /// Identifies a video, from its upload on.
    VideoId
);
id!(
    /// Identifies a comment.
    CommentId
);
id!(
    /// Identifies a chat message.
    MessageId
);

/// A conversation between two users. It does not depend on the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationId {
    /// The smaller user id.
    pub low: UserId,
    /// The larger user id.
    pub high: UserId,
}

impl ConversationId {
    /// Returns the conversation of two users, in either order.
    pub fn of(one: UserId, other: UserId) -> Self {
        Self { low: one.min(other), high: one.max(other) }
    }
}

impl fmt::Display for ConversationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_positive_and_exact_in_a_double() {
        assert_eq!(UserId::new(0), None);
        assert_eq!(UserId::new(-1), None);
        assert_eq!(UserId::new(MAX_ID + 1), None);
        assert_eq!(UserId::new(MAX_ID).map(UserId::get), Some(MAX_ID));
        assert!(serde_json::from_str::<UserId>("0").is_err());
    }

    #[test]
    fn conversation_id_is_symmetric() {
        let (one, other) = (UserId::new(7).unwrap(), UserId::new(3).unwrap());
        assert_eq!(ConversationId::of(one, other), ConversationId::of(other, one));
        assert_eq!(ConversationId::of(one, other).to_string(), "3-7");
    }
}
