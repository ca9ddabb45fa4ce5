//! The stream of chat messages.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ConversationId, MessageId, Personal, Stream, UserId, payload::stream};

stream!(
    /// An event of a conversation.
    MessageEvent in Stream::Messages,
    MessageSent as "message-sent",
);

impl MessageEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::MessageSent(event) => event.conversation().to_string(),
        }
    }
}

/// A user sent a message to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageSent {
    /// The new message.
    pub message_id: MessageId,
    /// The sender.
    pub from_user_id: UserId,
    /// The recipient.
    pub to_user_id: UserId,
    /// The text, as entered.
    pub content: Personal<String>,
}

impl MessageSent {
    /// Returns the message's conversation.
    pub fn conversation(&self) -> ConversationId {
        ConversationId::of(self.from_user_id, self.to_user_id)
    }
}
