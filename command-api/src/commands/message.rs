//! Sends chat messages.

use vidlog_events::{Event, MessageEvent, MessageId, MessageSent, Personal, UserId};
use vidlog_read_models::Fresh;

use super::{Rejection, require_existing};

/// Command: send a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// The sender.
    pub from_user_id: UserId,
    /// The recipient.
    pub to_user_id: UserId,
    /// The text.
    pub content: Personal<String>,
}

impl Send {
    /// Checks the command without facts.
    pub fn validate(&self) -> Result<(), Rejection> {
        if self.from_user_id == self.to_user_id {
            return Err(Rejection::Invalid("users cannot send messages to themselves"));
        }
        Ok(())
    }
}

/// Decides on a message.
pub fn decide(send: Send, recipient: Fresh<Option<()>>, message_id: MessageId) -> Result<Event, Rejection> {
    send.validate()?;
    require_existing(recipient, "user")?;
    Ok(Event::Message(MessageEvent::MessageSent(MessageSent {
        message_id,
        from_user_id: send.from_user_id,
        to_user_id: send.to_user_id,
        content: send.content,
    })))
}

#[cfg(test)]
mod tests {
    use super::{
        super::fixtures::{fresh, stale, user},
        *,
    };

    fn send(from: i64, to: i64) -> Send {
        Send { from_user_id: user(from), to_user_id: user(to), content: Personal::new("hi".to_owned()) }
    }

    fn decide(send: Send, recipient: Fresh<Option<()>>) -> Result<Event, Rejection> {
        super::decide(send, recipient, MessageId::new(5).unwrap())
    }

    #[test]
    fn given_a_user_when_messaged_then_the_message_is_sent() {
        let sent = MessageSent {
            message_id: MessageId::new(5).unwrap(),
            from_user_id: user(1),
            to_user_id: user(2),
            content: Personal::new("hi".to_owned()),
        };
        assert_eq!(decide(send(1, 2), stale(Some(()))), Ok(Event::Message(MessageEvent::MessageSent(sent))));
    }

    #[test]
    fn given_a_user_when_it_messages_itself_then_it_is_rejected() {
        assert!(matches!(decide(send(1, 1), fresh(Some(()))), Err(Rejection::Invalid(_))));
    }

    #[test]
    fn given_no_user_when_messaged_then_it_is_rejected() {
        assert_eq!(decide(send(1, 2), fresh(None)), Err(Rejection::NotFound("user")));
        assert_eq!(decide(send(1, 2), stale(None)), Err(Rejection::Uncertain));
    }
}
