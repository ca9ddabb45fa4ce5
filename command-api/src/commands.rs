//! The commands: pure functions from a command and facts to an event or a rejection.
//!
//! Facts may lag behind the log. So a decision returns an event even if the facts say that it changes nothing (the
//! fold detects that), and an entity that is missing from stale facts may still exist.

pub mod comment;
pub mod follow;
pub mod like;
pub mod message;
pub mod publish;

use thiserror::Error;
use vidlog_read_models::{Fresh, VideoFact};
use vidlog_schemas::rows::VideoState;

/// Why a command is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// The command is invalid, regardless of the facts.
    #[error("{0}")]
    Invalid(&'static str),
    /// The entity does not exist.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The video exists but is not published; its author can't act on it either.
    #[error("the video is not published")]
    NotPublished,
    /// The caller lacks permission.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Stale facts contradict the command; current ones may not.
    #[error("the facts may be stale")]
    Uncertain,
}

/// Returns the video if it is published.
fn require_published(video: Fresh<Option<VideoFact>>) -> Result<VideoFact, Rejection> {
    let found = require_existing(video, "video")?;
    match found.state {
        VideoState::Published => Ok(found),
        VideoState::Processing | VideoState::Rejected if video.stale => Err(Rejection::Uncertain),
        VideoState::Processing | VideoState::Rejected => Err(Rejection::NotPublished),
    }
}

/// Returns the value of a fact if it exists.
fn require_existing<T>(fact: Fresh<Option<T>>, entity: &'static str) -> Result<T, Rejection> {
    match fact.value {
        Some(value) => Ok(value),
        None if fact.stale => Err(Rejection::Uncertain),
        None => Err(Rejection::NotFound(entity)),
    }
}

#[cfg(test)]
mod fixtures {
    //! Facts and ids for tests of decisions.

    use vidlog_events::{UserId, VideoId};
    use vidlog_read_models::{Fresh, VideoFact};
    use vidlog_schemas::rows::VideoState;

    pub(super) fn user(id: i64) -> UserId {
        UserId::new(id).unwrap()
    }

    pub(super) fn video(id: i64) -> VideoId {
        VideoId::new(id).unwrap()
    }

    pub(super) fn fresh<T>(value: T) -> Fresh<T> {
        Fresh { value, stale: false }
    }

    pub(super) fn stale<T>(value: T) -> Fresh<T> {
        Fresh { value, stale: true }
    }

    pub(super) const fn video_of(author_id: i64, state: VideoState) -> VideoFact {
        VideoFact { author_id, state }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        fixtures::{fresh, stale, video_of},
        *,
    };

    #[test]
    fn unpublished_video_is_rejected() {
        assert!(require_published(fresh(Some(video_of(1, VideoState::Published)))).is_ok());
        assert!(require_published(stale(Some(video_of(1, VideoState::Published)))).is_ok());
        for state in [VideoState::Processing, VideoState::Rejected] {
            assert_eq!(require_published(fresh(Some(video_of(1, state)))), Err(Rejection::NotPublished));
            assert_eq!(require_published(stale(Some(video_of(1, state)))), Err(Rejection::Uncertain));
        }
    }

    #[test]
    fn missing_video_in_stale_facts_is_uncertain() {
        assert_eq!(require_published(fresh(None)), Err(Rejection::NotFound("video")));
        assert_eq!(require_published(stale(None)), Err(Rejection::Uncertain));
    }
}
