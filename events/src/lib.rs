//! The events of vidlog, and their encoding in the log.
//!
//! This crate has no clock and does no IO. A stream is one Kafka topic and one enum; an [`Envelope`]
//! is an event with its CloudEvents attributes, encoded to and decoded from a record in Kafka's binary mode.

mod comment;
mod envelope;
mod follow;
mod ids;
mod like;
mod message;
mod payload;
mod personal;
mod topic;
mod user;
mod video;

pub use comment::{CommentDeleted, CommentEvent, CommentPosted};
pub use envelope::{EncodedRecord, Envelope, Event, decode};
pub use follow::{FollowEvent, UserFollowed, UserUnfollowed};
pub use ids::{CommentId, ConversationId, MAX_ID, MessageId, UserId, VideoId};
pub use like::{LikeEvent, VideoLiked, VideoUnliked};
pub use message::{MessageEvent, MessageSent};
pub use payload::{DecodeError, EventType};
pub use personal::Personal;
pub use topic::{PARTITIONS, Stream, Topics};
pub use user::{UserEvent, UserRegistered};
pub use video::{VideoEvent, VideoPublished, VideoRejected, VideoUploaded};

/// Returns all event types, grouped by stream.
pub fn catalogue() -> Vec<EventType> {
    [
        UserEvent::types(),
        VideoEvent::types(),
        LikeEvent::types(),
        FollowEvent::types(),
        CommentEvent::types(),
        MessageEvent::types(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
