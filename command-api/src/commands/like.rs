//! Likes and unlikes videos.

use vidlog_contract::Action;
use vidlog_events::{Event, LikeEvent, UserId, VideoId, VideoLiked, VideoUnliked};
use vidlog_read_models::{Fresh, VideoFact};

use super::{Rejection, require_published};

/// Command: like or unlike a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Like {
    /// The caller.
    pub user_id: UserId,
    /// The video.
    pub video_id: VideoId,
    /// Like or unlike.
    pub action: Action,
}

/// Decides on a like or unlike. Returns an event even if the facts say that it changes nothing.
pub fn decide(like: Like, video: Fresh<Option<VideoFact>>) -> Result<Event, Rejection> {
    let author_id = require_published(video)?.author_id;
    let author_id = UserId::new(author_id).ok_or(Rejection::NotFound("author"))?;
    let Like { user_id, video_id, action } = like;
    Ok(Event::Like(match action {
        Action::Do => LikeEvent::VideoLiked(VideoLiked { video_id, user_id, author_id }),
        Action::Undo => LikeEvent::VideoUnliked(VideoUnliked { video_id, user_id, author_id }),
    }))
}

#[cfg(test)]
mod tests {
    use vidlog_schemas::rows::VideoState;

    use super::{
        super::fixtures::{fresh, stale, user, video, video_of},
        *,
    };

    const fn like(user_id: UserId, video_id: VideoId, action: Action) -> Like {
        Like { user_id, video_id, action }
    }

    #[test]
    fn given_a_published_video_when_liked_then_its_author_is_named() {
        let decided =
            decide(like(user(1), video(9), Action::Do), fresh(Some(video_of(2, VideoState::Published))));
        let liked = VideoLiked { video_id: video(9), user_id: user(1), author_id: user(2) };
        assert_eq!(decided, Ok(Event::Like(LikeEvent::VideoLiked(liked))));
    }

    #[test]
    fn given_a_published_video_when_unliked_then_it_is_unliked() {
        let decided =
            decide(like(user(1), video(9), Action::Undo), stale(Some(video_of(2, VideoState::Published))));
        let unliked = VideoUnliked { video_id: video(9), user_id: user(1), author_id: user(2) };
        assert_eq!(decided, Ok(Event::Like(LikeEvent::VideoUnliked(unliked))));
    }

    #[test]
    fn given_an_unpublished_video_when_its_author_likes_it_then_it_is_rejected() {
        let decided =
            decide(like(user(2), video(9), Action::Do), fresh(Some(video_of(2, VideoState::Processing))));
        assert_eq!(decided, Err(Rejection::NotPublished));
    }

    #[test]
    fn given_no_video_when_liked_then_it_is_rejected() {
        let command = like(user(1), video(9), Action::Do);
        assert_eq!(decide(command, fresh(None)), Err(Rejection::NotFound("video")));
        assert_eq!(decide(command, stale(None)), Err(Rejection::Uncertain));
    }
}
