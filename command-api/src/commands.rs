//! The commands: pure decisions from a wish and facts to an event.
//!
//! Facts can be a moment old, so a decision never leaves an event out because it seems to change nothing: the fold
//! knows. And that something is missing from facts that may be stale is no proof that it does not exist.

pub mod comment;
pub mod follow;
pub mod like;
pub mod message;
pub mod publish;

use thiserror::Error;
use vidlog_read_models::{Fresh, VideoFact};
use vidlog_schemas::rows::VideoState;

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// It makes no sense, whatever the facts.
    #[error("{0}")]
    Invalid(&'static str),
    /// What it is about does not exist.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// The video exists, but nobody can do anything with it yet, its author neither.
    #[error("the video is not published")]
    NotPublished,
    /// The caller may not.
    #[error("{0}")]
    Forbidden(&'static str),
    /// The facts speak against it, but they may be stale.
    #[error("the facts may be stale")]
    Uncertain,
}

/// The published video of a fact.
fn published(video: Fresh<Option<VideoFact>>) -> Result<VideoFact, Rejection> {
    let found = known(video, "video")?;
    match found.state {
        VideoState::Published => Ok(found),
        VideoState::Processing | VideoState::Rejected if video.stale => Err(Rejection::Uncertain),
        VideoState::Processing | VideoState::Rejected => Err(Rejection::NotPublished),
    }
}

/// What a fact says there is.
fn known<T>(fact: Fresh<Option<T>>, what: &'static str) -> Result<T, Rejection> {
    match fact.value {
        Some(value) => Ok(value),
        None if fact.stale => Err(Rejection::Uncertain),
        None => Err(Rejection::NotFound(what)),
    }
}

#[cfg(test)]
mod given {
    //! What tests of decisions are given.

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
        given::{fresh, stale, video_of},
        *,
    };

    #[test]
    fn only_a_published_video_can_be_acted_on() {
        assert!(published(fresh(Some(video_of(1, VideoState::Published)))).is_ok());
        assert!(published(stale(Some(video_of(1, VideoState::Published)))).is_ok());
        for state in [VideoState::Processing, VideoState::Rejected] {
            assert_eq!(published(fresh(Some(video_of(1, state)))), Err(Rejection::NotPublished));
            assert_eq!(published(stale(Some(video_of(1, state)))), Err(Rejection::Uncertain));
        }
    }

    #[test]
    fn what_stale_facts_lack_may_exist() {
        assert_eq!(published(fresh(None)), Err(Rejection::NotFound("video")));
        assert_eq!(published(stale(None)), Err(Rejection::Uncertain));
    }
}
