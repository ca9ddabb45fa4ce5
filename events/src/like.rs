//! The stream of likes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Stream, UserId, VideoId, payload::stream};

stream!(
    /// What happened between a user and a video that may be liked.
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

/// A user likes a video. Of a video that is liked already it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoLiked {
    /// The video.
    pub video_id: VideoId,
    /// Who likes it.
    pub user_id: UserId,
    /// The video's author, whose total counts it.
    pub author_id: UserId,
}

/// A user likes a video no longer. Of a video that is not liked it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoUnliked {
    /// The video.
    pub video_id: VideoId,
    /// Who liked it.
    pub user_id: UserId,
    /// The video's author, whose total counted it.
    pub author_id: UserId,
}
