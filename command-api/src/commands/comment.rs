//! Posts and deletes comments.

use vidlog_events::{
    CommentDeleted, CommentEvent, CommentId, CommentPosted, Event, Personal, UserId, VideoId,
};
use vidlog_read_models::{CommentFact, Fresh, VideoFact};

use super::{Rejection, require_existing, require_published};

/// Command: post a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Author of the comment.
    pub user_id: UserId,
    /// The commented video.
    pub video_id: VideoId,
    /// The text.
    pub text: Personal<String>,
}

/// Command: delete a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete {
    /// The caller.
    pub user_id: UserId,
    /// The commented video.
    pub video_id: VideoId,
    /// The comment.
    pub comment_id: CommentId,
}

/// Facts for the deletion of a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommentFacts {
    /// The video.
    pub video: Option<VideoFact>,
    /// The comment, also if it is deleted.
    pub comment: Option<CommentFact>,
}

/// Decides on a new comment.
pub fn post(post: Post, video: Fresh<Option<VideoFact>>, comment_id: CommentId) -> Result<Event, Rejection> {
    require_published(video)?;
    Ok(Event::Comment(CommentEvent::CommentPosted(CommentPosted {
        comment_id,
        video_id: post.video_id,
        user_id: post.user_id,
        text: post.text,
    })))
}

/// Decides on the deletion of a comment: the comment's author and the video's author may delete it.
pub fn delete(delete: Delete, facts: Fresh<CommentFacts>) -> Result<Event, Rejection> {
    let Delete { user_id, video_id, comment_id } = delete;
    let video = require_existing(facts.map(|facts| facts.video), "video")?;
    let comment = require_existing(facts.map(|facts| facts.comment), "comment")?;
    if comment.deleted {
        return Err(Rejection::NotFound("comment"));
    }
    if ![comment.user_id, video.author_id].contains(&user_id.get()) {
        return Err(Rejection::Forbidden("only the comment's author and the video's author can delete it"));
    }
    Ok(Event::Comment(CommentEvent::CommentDeleted(CommentDeleted {
        comment_id,
        video_id,
        deleted_by: user_id,
    })))
}

#[cfg(test)]
mod tests {
    use vidlog_schemas::rows::VideoState;

    use super::{
        super::fixtures::{fresh, stale, user, video, video_of},
        *,
    };

    const WRITER: i64 = 1;
    const AUTHOR: i64 = 2;

    fn comment_id() -> CommentId {
        CommentId::new(7).unwrap()
    }

    fn command(user_id: i64) -> Delete {
        Delete { user_id: user(user_id), video_id: video(9), comment_id: comment_id() }
    }

    fn facts() -> CommentFacts {
        CommentFacts {
            video: Some(video_of(AUTHOR, VideoState::Published)),
            comment: Some(CommentFact { user_id: WRITER, deleted: false }),
        }
    }

    #[test]
    fn given_a_published_video_when_commented_then_the_comment_is_posted() {
        let text = Personal::new("nice".to_owned());
        let command = Post { user_id: user(WRITER), video_id: video(9), text: text.clone() };
        let posted =
            CommentPosted { comment_id: comment_id(), video_id: video(9), user_id: user(WRITER), text };
        let published = Some(video_of(AUTHOR, VideoState::Published));
        assert_eq!(
            post(command.clone(), fresh(published), comment_id()),
            Ok(Event::Comment(CommentEvent::CommentPosted(posted)))
        );
        let processing = Some(video_of(WRITER, VideoState::Processing));
        assert_eq!(post(command, fresh(processing), comment_id()), Err(Rejection::NotPublished));
    }

    #[test]
    fn given_a_comment_when_either_author_deletes_it_then_it_is_deleted() {
        for deleted_by in [WRITER, AUTHOR] {
            let deleted =
                CommentDeleted { comment_id: comment_id(), video_id: video(9), deleted_by: user(deleted_by) };
            assert_eq!(
                delete(command(deleted_by), fresh(facts())),
                Ok(Event::Comment(CommentEvent::CommentDeleted(deleted)))
            );
        }
    }

    #[test]
    fn given_a_comment_when_another_user_deletes_it_then_it_is_forbidden() {
        assert!(matches!(delete(command(3), fresh(facts())), Err(Rejection::Forbidden(_))));
    }

    #[test]
    fn given_a_deleted_comment_when_deleted_then_it_is_not_found() {
        let gone = CommentFacts { comment: Some(CommentFact { user_id: WRITER, deleted: true }), ..facts() };
        let expected = Err(Rejection::NotFound("comment"));
        assert_eq!(delete(command(WRITER), fresh(gone)), expected);
        // Deletion is final, so a stale fact suffices.
        assert_eq!(delete(command(WRITER), stale(gone)), expected);
    }

    #[test]
    fn given_no_comment_or_video_when_deleted_then_it_is_not_found() {
        let no_comment = CommentFacts { comment: None, ..facts() };
        let no_video = CommentFacts { video: None, ..facts() };
        let rejected = |facts| delete(command(WRITER), facts).unwrap_err();
        assert_eq!(rejected(fresh(no_comment)), Rejection::NotFound("comment"));
        assert_eq!(rejected(fresh(no_video)), Rejection::NotFound("video"));
        assert_eq!(rejected(stale(no_comment)), Rejection::Uncertain);
        assert_eq!(rejected(stale(no_video)), Rejection::Uncertain);
    }
}
