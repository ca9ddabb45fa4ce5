//! Commenting on a video, and taking a comment away.

use vidlog_events::{
    CommentDeleted, CommentEvent, CommentId, CommentPosted, Event, Personal, UserId, VideoId,
};
use vidlog_read_models::{CommentFact, Fresh, VideoFact};

use super::{Rejection, known, published};

/// A comment that a user wants to post.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Post {
    /// Who.
    pub user_id: UserId,
    /// On which video.
    pub video_id: VideoId,
    /// The text.
    pub text: Personal<String>,
}

/// A comment that a user wants to take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Who.
    pub user_id: UserId,
    /// From which video.
    pub video_id: VideoId,
    /// The comment.
    pub comment_id: CommentId,
}

/// What must be known before a comment is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletable {
    /// The video.
    pub video: Option<VideoFact>,
    /// The comment, if there ever was one.
    pub comment: Option<CommentFact>,
}

/// Decides about a new comment.
pub fn post(post: Post, video: Fresh<Option<VideoFact>>, comment_id: CommentId) -> Result<Event, Rejection> {
    published(video)?;
    Ok(Event::Comment(CommentEvent::CommentPosted(CommentPosted {
        comment_id,
        video_id: post.video_id,
        user_id: post.user_id,
        text: post.text,
    })))
}

/// Decides about taking a comment away: its writer may, and the video's author.
pub fn delete(delete: Delete, facts: Fresh<Deletable>) -> Result<Event, Rejection> {
    let Delete { user_id, video_id, comment_id } = delete;
    let video = known(facts.map(|facts| facts.video), "video")?;
    let comment = known(facts.map(|facts| facts.comment), "comment")?;
    if comment.deleted {
        return Err(Rejection::NotFound("comment"));
    }
    if ![comment.user_id, video.author_id].contains(&user_id.get()) {
        return Err(Rejection::Forbidden("only its writer and the video's author can delete a comment"));
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
        super::given::{fresh, stale, user, video, video_of},
        *,
    };

    const WRITER: i64 = 1;
    const AUTHOR: i64 = 2;

    fn comment_id() -> CommentId {
        CommentId::new(7).unwrap()
    }

    fn wish(user_id: i64) -> Delete {
        Delete { user_id: user(user_id), video_id: video(9), comment_id: comment_id() }
    }

    fn facts() -> Deletable {
        Deletable {
            video: Some(video_of(AUTHOR, VideoState::Published)),
            comment: Some(CommentFact { user_id: WRITER, deleted: false }),
        }
    }

    #[test]
    fn given_a_published_video_when_commented_then_the_comment_is_posted() {
        let text = Personal::new("nice".to_owned());
        let wish = Post { user_id: user(WRITER), video_id: video(9), text: text.clone() };
        let posted =
            CommentPosted { comment_id: comment_id(), video_id: video(9), user_id: user(WRITER), text };
        let published = Some(video_of(AUTHOR, VideoState::Published));
        assert_eq!(
            post(wish.clone(), fresh(published), comment_id()),
            Ok(Event::Comment(CommentEvent::CommentPosted(posted)))
        );
        let processing = Some(video_of(WRITER, VideoState::Processing));
        assert_eq!(post(wish, fresh(processing), comment_id()), Err(Rejection::NotPublished));
    }

    #[test]
    fn given_a_comment_when_its_writer_or_the_author_deletes_it_then_it_is_deleted() {
        for deleted_by in [WRITER, AUTHOR] {
            let deleted =
                CommentDeleted { comment_id: comment_id(), video_id: video(9), deleted_by: user(deleted_by) };
            assert_eq!(
                delete(wish(deleted_by), fresh(facts())),
                Ok(Event::Comment(CommentEvent::CommentDeleted(deleted)))
            );
        }
    }

    #[test]
    fn given_a_comment_when_another_deletes_it_then_it_is_forbidden() {
        assert!(matches!(delete(wish(3), fresh(facts())), Err(Rejection::Forbidden(_))));
    }

    #[test]
    fn given_a_deleted_comment_when_deleted_then_it_is_not_found() {
        let gone = Deletable { comment: Some(CommentFact { user_id: WRITER, deleted: true }), ..facts() };
        let expected = Err(Rejection::NotFound("comment"));
        assert_eq!(delete(wish(WRITER), fresh(gone)), expected);
        // That it was deleted is final, however old the fact.
        assert_eq!(delete(wish(WRITER), stale(gone)), expected);
    }

    #[test]
    fn given_no_comment_or_video_when_deleted_then_it_is_not_found() {
        let no_comment = Deletable { comment: None, ..facts() };
        let no_video = Deletable { video: None, ..facts() };
        let rejected = |facts| delete(wish(WRITER), facts).unwrap_err();
        assert_eq!(rejected(fresh(no_comment)), Rejection::NotFound("comment"));
        assert_eq!(rejected(fresh(no_video)), Rejection::NotFound("video"));
        assert_eq!(rejected(stale(no_comment)), Rejection::Uncertain);
        assert_eq!(rejected(stale(no_video)), Rejection::Uncertain);
    }
}
