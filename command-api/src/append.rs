//! Appends a command's event, and marks it for those who must see it in their next read.

use metrics::counter;
use tracing::{debug, warn};
use vidlog_events::{
    CommentEvent, Envelope, Event, FollowEvent, LikeEvent, MessageEvent, UserEvent, VideoEvent,
};
use vidlog_read_models::{Freshness, Position, ReadError, Scope, Store};

use crate::{
    metrics::UNRECORDED_POSITIONS,
    publisher::{AppendError, Appended, EventLog},
};

/// An event that is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The position that readers of the event must reach.
    pub position: Position,
    /// Whether readers will wait for it by themselves.
    pub marked: Marked,
}

/// Whether the next reads will wait for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// They will.
    Yes,
    /// The marks could not be kept. The event is in the log nevertheless, and will be seen a moment later.
    No,
}

/// Appends an event; once it is acknowledged, marks its position for its readers.
pub async fn append(
    log: &dyn EventLog,
    freshness: &Freshness,
    envelope: &Envelope,
) -> Result<Acknowledged, AppendError> {
    let position = position_behind(log.append(envelope).await?);
    let marked = match freshness.record(&scopes(&envelope.event), position).await {
        Ok(()) => Marked::Yes,
        Err(error) => {
            note_unmarked(&error);
            Marked::No
        }
    };
    Ok(Acknowledged { position, marked })
}

/// The position that a reader has reached once it has seen an event.
pub const fn position_behind(appended: Appended) -> Position {
    Position {
        stream: appended.stream.name(),
        partition: appended.partition,
        next_offset: appended.offset + 1,
    }
}

/// Whose next read must see an event: who caused it, and what it was done to.
pub fn scopes(event: &Event) -> Vec<Scope> {
    match event {
        Event::User(UserEvent::UserRegistered(event)) => vec![Scope::User(event.user_id.get())],
        Event::Video(event) => {
            let (video_id, author_id) = match event {
                VideoEvent::VideoUploaded(event) => (event.video_id, event.author_id),
                VideoEvent::VideoPublished(event) => (event.video_id, event.author_id),
                VideoEvent::VideoRejected(event) => (event.video_id, event.author_id),
            };
            vec![Scope::User(author_id.get()), Scope::Video(video_id.get())]
        }
        Event::Like(event) => {
            let (user_id, video_id, author_id) = match event {
                LikeEvent::VideoLiked(event) => (event.user_id, event.video_id, event.author_id),
                LikeEvent::VideoUnliked(event) => (event.user_id, event.video_id, event.author_id),
            };
            vec![Scope::User(user_id.get()), Scope::Video(video_id.get()), Scope::User(author_id.get())]
        }
        Event::Follow(event) => {
            let (follower_id, followee_id) = match event {
                FollowEvent::UserFollowed(event) => (event.follower_id, event.followee_id),
                FollowEvent::UserUnfollowed(event) => (event.follower_id, event.followee_id),
            };
            vec![Scope::User(follower_id.get()), Scope::User(followee_id.get())]
        }
        Event::Comment(event) => {
            let (user_id, video_id) = match event {
                CommentEvent::CommentPosted(event) => (event.user_id, event.video_id),
                CommentEvent::CommentDeleted(event) => (event.deleted_by, event.video_id),
            };
            vec![Scope::User(user_id.get()), Scope::Video(video_id.get())]
        }
        Event::Message(MessageEvent::MessageSent(event)) => {
            let (from, to) = (event.from_user_id.get(), event.to_user_id.get());
            vec![Scope::User(from), Scope::User(to), Scope::Conversation(from, to)]
        }
    }
}

pub(crate) fn note_unmarked(error: &ReadError) {
    counter!(UNRECORDED_POSITIONS).increment(1);
    if error.is_away(Store::Redis) {
        // That Redis went away was logged once, by its breaker.
        debug!(%error, "a position could not be kept for its readers");
    } else {
        warn!(%error, "a position could not be kept for its readers");
    }
}

#[cfg(test)]
mod tests {
    use vidlog_events::{MessageId, MessageSent, Personal, UserId, VideoId, VideoLiked};

    use super::*;

    #[test]
    fn an_event_concerns_its_writer_and_what_was_written_to() {
        let user = |id| UserId::new(id).unwrap();
        let like = Event::Like(LikeEvent::VideoLiked(VideoLiked {
            video_id: VideoId::new(9).unwrap(),
            user_id: user(1),
            author_id: user(2),
        }));
        assert_eq!(scopes(&like), [Scope::User(1), Scope::Video(9), Scope::User(2)]);
        let message = Event::Message(MessageEvent::MessageSent(MessageSent {
            message_id: MessageId::new(5).unwrap(),
            from_user_id: user(2),
            to_user_id: user(1),
            content: Personal::new(String::new()),
        }));
        assert_eq!(scopes(&message), [Scope::User(2), Scope::User(1), Scope::Conversation(2, 1)]);
    }
}
