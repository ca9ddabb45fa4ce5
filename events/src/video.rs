//! The stream of videos.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Personal, Stream, UserId, VideoId, payload::stream};

stream!(
    /// What happened to a video.
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

/// An upload is whole in the object store, and waits for the media worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoUploaded {
    /// The new video.
    pub video_id: VideoId,
    /// Who uploaded it.
    pub author_id: UserId,
    /// Its title, as it was typed.
    pub title: Personal<String>,
    /// The object key of the file as it was uploaded.
    pub original_key: String,
}

/// A video became visible to everyone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoPublished {
    /// The video.
    pub video_id: VideoId,
    /// Who uploaded it.
    pub author_id: UserId,
    /// The object key of the playable file.
    pub play_key: String,
    /// The object key of the cover picture.
    pub cover_key: String,
    /// The publish time, milliseconds since 1970. No two videos share one: the feed is paged by it.
    pub published_ms: i64,
}

/// An upload can't be published.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VideoRejected {
    /// The video.
    pub video_id: VideoId,
    /// Who uploaded it.
    pub author_id: UserId,
    /// Why, in words for its author.
    pub reason: String,
}
