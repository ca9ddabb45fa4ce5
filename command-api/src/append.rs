//! Appends an event, and records its position for read-your-writes.

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

/// An event that the broker has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Position that a projection has reached once it has folded the event.
    pub position: Position,
    /// Whether the next reads wait for the position. False if Redis did not record it: then they may miss the event
    /// for a moment.
    pub is_recorded: bool,
}

/// Appends an event; once it is acknowledged, records its position in the scopes that it affects.
pub async fn append(
    log: &dyn EventLog,
    freshness: &Freshness,
    envelope: &Envelope,
) -> Result<Acknowledged, AppendError> {
    let position = position_after(log.append(envelope).await?);
    let recorded = freshness.record(&scopes(&envelope.event), position).await;
    if let Err(error) = &recorded {
        report_unrecorded(error);
    }
    Ok(Acknowledged { position, is_recorded: recorded.is_ok() })
}

/// The position that a projection has reached once it has folded an event.
pub const fn position_after(appended: Appended) -> Position {
    Position {
        stream: appended.stream.name(),
        partition: appended.partition,
        next_offset: appended.offset + 1,
    }
}

/// The scopes whose next read must include an event: its author, and the entities that it changes.
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

/// Counts and logs a position that could not be recorded.
pub(crate) fn report_unrecorded(error: &ReadError) {
    counter!(UNRECORDED_POSITIONS).increment(1);
    if error.is_unavailable(Store::Redis) {
        // The circuit breaker logs once that Redis is unavailable.
        debug!(%error, "failed to record position for readers");
    } else {
        warn!(%error, "failed to record position for readers");
    }
}

#[cfg(test)]
mod tests {
    use vidlog_events::{MessageId, MessageSent, Personal, UserId, VideoId, VideoLiked};

    use super::*;

    #[test]
    fn scopes_are_the_author_and_the_changed_entities() {
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
