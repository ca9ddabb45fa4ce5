//! Sending a chat message.

use vidlog_events::{Event, MessageEvent, MessageId, MessageSent, Personal, UserId};
use vidlog_read_models::Fresh;

use super::{Rejection, known};

/// A message that a user wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Send {
    /// Who.
    pub from_user_id: UserId,
    /// To whom.
    pub to_user_id: UserId,
    /// The text.
    pub content: Personal<String>,
}

impl Send {
    /// What can be said against it before any fact is known.
    pub fn check(&self) -> Result<(), Rejection> {
        if self.from_user_id == self.to_user_id {
            return Err(Rejection::Invalid("nobody can write to themselves"));
        }
        Ok(())
    }
}

/// Decides it.
pub fn decide(send: Send, recipient: Fresh<Option<()>>, message_id: MessageId) -> Result<Event, Rejection> {
    send.check()?;
    known(recipient, "user")?;
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
        super::given::{fresh, stale, user},
        *,
    };

    fn send(from: i64, to: i64) -> Send {
        Send { from_user_id: user(from), to_user_id: user(to), content: Personal::new("hi".to_owned()) }
    }

    fn decide(send: Send, recipient: Fresh<Option<()>>) -> Result<Event, Rejection> {
        super::decide(send, recipient, MessageId::new(5).unwrap())
    }

    #[test]
    fn given_a_user_when_written_to_then_the_message_is_sent() {
        let sent = MessageSent {
            message_id: MessageId::new(5).unwrap(),
            from_user_id: user(1),
            to_user_id: user(2),
            content: Personal::new("hi".to_owned()),
        };
        assert_eq!(decide(send(1, 2), stale(Some(()))), Ok(Event::Message(MessageEvent::MessageSent(sent))));
    }

    #[test]
    fn given_a_user_when_it_writes_to_itself_then_it_is_rejected() {
        assert!(matches!(decide(send(1, 1), fresh(Some(()))), Err(Rejection::Invalid(_))));
    }

    #[test]
    fn given_no_user_when_written_to_then_it_is_rejected() {
        assert_eq!(decide(send(1, 2), fresh(None)), Err(Rejection::NotFound("user")));
        assert_eq!(decide(send(1, 2), stale(None)), Err(Rejection::Uncertain));
    }
}
