//! The stream of likes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Stream, UserId, VideoId, payload::stream};

stream!(
    /// An event of a like.
    LikeEvent in Stream::Likes,
    VideoLiked as "video-liked",
    VideoUnliked as "video-unliked",
);

impl LikeEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::VideoLiked(event) => event.video_id.to_string(),
            Self::VideoUnliked(event) => event.video_id.to_string(),
        }
    }
}

/// A user liked a video. It has no effect if the user already likes the video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoLiked {
    /// The video.
    pub video_id: VideoId,
    /// The user who likes it.
    pub user_id: UserId,
    /// The video's author. The like counts toward the author's total.
    pub author_id: UserId,
}

/// A user unliked a video. It has no effect if the user does not like the video.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoUnliked {
    /// The video.
    pub video_id: VideoId,
    /// The user who liked it.
    pub user_id: UserId,
    /// The video's author. The like no longer counts toward the author's total.
    pub author_id: UserId,
}
