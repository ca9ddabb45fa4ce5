//! Which Redis keys an event may have written to: the audit's own word on it, not the projections'.

use vidlog_events::{CommentEvent, Event, FollowEvent, LikeEvent, UserEvent, VideoEvent};
use vidlog_schemas::{
    Keys,
    keys::{Key, feed_week_of},
};

/// The keys, of all views, that folding an event may write to. One too many costs a reading, one too few makes a
/// difference of what is none.
pub fn touched(keys: &Keys, event: &Event) -> Vec<Key> {
    match event {
        Event::User(UserEvent::UserRegistered(event)) => vec![keys.user_card(event.user_id.get())],
        Event::Video(event) => {
            let (video, author) = match event {
                VideoEvent::VideoUploaded(event) => (event.video_id, event.author_id),
                VideoEvent::VideoPublished(event) => (event.video_id, event.author_id),
                VideoEvent::VideoRejected(event) => (event.video_id, event.author_id),
            };
            let mut touched =
                vec![keys.video_card(video.get()), keys.uploads(author.get()), keys.works(author.get())];
            if let VideoEvent::VideoPublished(event) = event {
                touched.extend([keys.feed_week(feed_week_of(event.published_ms)), keys.feed_weeks()]);
            }
            touched
        }
        Event::Like(event) => {
            let (video, user, author) = match event {
                LikeEvent::VideoLiked(event) => (event.video_id, event.user_id, event.author_id),
                LikeEvent::VideoUnliked(event) => (event.video_id, event.user_id, event.author_id),
            };
            vec![keys.likers(video.get()), keys.favorites(user.get()), keys.favorited(author.get())]
        }
        Event::Follow(event) => {
            let (follower, followee) = match event {
                FollowEvent::UserFollowed(event) => (event.follower_id, event.followee_id),
                FollowEvent::UserUnfollowed(event) => (event.follower_id, event.followee_id),
            };
            vec![keys.following(follower.get()), keys.followers(followee.get())]
        }
        Event::Comment(event) => {
            let video = match event {
                CommentEvent::CommentPosted(event) => event.video_id,
                CommentEvent::CommentDeleted(event) => event.video_id,
            };
            vec![keys.comments(video.get()), keys.deleted_comments(video.get())]
        }
        Event::Message(_) => Vec::new(),
    }
}
