//! The stream of comments.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{CommentId, Personal, Stream, UserId, VideoId, payload::stream};

stream!(
    /// An event of a comment.
    CommentEvent in Stream::Comments,
    CommentPosted as "comment-posted",
    CommentDeleted as "comment-deleted",
);

impl CommentEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::CommentPosted(event) => event.video_id.to_string(),
            Self::CommentDeleted(event) => event.video_id.to_string(),
        }
    }
}

/// A user commented on a video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommentPosted {
    /// The new comment.
    pub comment_id: CommentId,
    /// The video.
    pub video_id: VideoId,
    /// The commenter.
    pub user_id: UserId,
    /// The text, as entered.
    pub text: Personal<String>,
}

/// A comment was deleted, permanently: a later event cannot restore it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommentDeleted {
    /// The comment.
    pub comment_id: CommentId,
    /// Its video.
    pub video_id: VideoId,
    /// The user who deleted it: the commenter or the video's author.
    pub deleted_by: UserId,
}
