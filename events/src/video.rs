//! The stream of videos.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Personal, Stream, UserId, VideoId, payload::stream};

stream!(
    /// An event of a video.
    VideoEvent in Stream::Videos,
    VideoUploaded as "video-uploaded",
    VideoPublished as "video-published",
    VideoRejected as "video-rejected",
);

impl VideoEvent {
    pub(crate) fn key(&self) -> String {
        match self {
            Self::VideoUploaded(event) => event.video_id.to_string(),
            Self::VideoPublished(event) => event.video_id.to_string(),
            Self::VideoRejected(event) => event.video_id.to_string(),
        }
    }
}

/// A video was uploaded: the object store has the complete file, and the media worker has not processed it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoUploaded {
    /// The new video.
    pub video_id: VideoId,
    /// The uploader.
    pub author_id: UserId,
    /// The title, as entered.
    pub title: Personal<String>,
    /// The object key of the original file.
    pub original_key: String,
}

/// A video was published: it is visible to all users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoPublished {
    /// The video.
    pub video_id: VideoId,
    /// The uploader.
    pub author_id: UserId,
    /// The object key of the playable file.
    pub play_key: String,
    /// The object key of the cover picture.
    pub cover_key: String,
    /// The publish time, milliseconds since 1970. It is unique, because the feed is paged by it.
    pub published_ms: i64,
}

/// An upload was rejected: it cannot be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoRejected {
    /// The video.
    pub video_id: VideoId,
    /// The uploader.
    pub author_id: UserId,
    /// The reason, as shown to the author.
    pub reason: String,
}
