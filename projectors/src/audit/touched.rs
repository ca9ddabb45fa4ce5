//! The lines in Redis that an event may change, listed without the projections' code.

use vidlog_events::{CommentEvent, Event, FollowEvent, LikeEvent, UserEvent, VideoEvent};
use vidlog_schemas::{
    Keys,
    keys::{Key, feed_week_of},
};

use crate::comparison::LineKey;

const USER_FIELDS: [&str; 2] = ["name", "registered_ms"];
const VIDEO_FIELDS: [&str; 7] =
    ["author", "title", "state", "play_key", "cover_key", "published_ms", "reason"];

/// Lists the lines, of all views in Redis, that folding an event may change. An extra line costs a lookup; a
/// missing one makes the audit report a false difference.
pub fn touched(keys: &Keys, event: &Event) -> Vec<LineKey> {
    match event {
        Event::User(UserEvent::UserRegistered(event)) => {
            fields(&keys.user_card(event.user_id.get()), &USER_FIELDS)
        }
        Event::Video(event) => {
            let (video, author) = match event {
                VideoEvent::VideoUploaded(event) => (event.video_id.get(), event.author_id.get()),
                VideoEvent::VideoPublished(event) => (event.video_id.get(), event.author_id.get()),
                VideoEvent::VideoRejected(event) => (event.video_id.get(), event.author_id.get()),
            };
            let mut touched = fields(&keys.video_card(video), &VIDEO_FIELDS);
            touched.extend([member(&keys.uploads(author), video), member(&keys.works(author), video)]);
            if let VideoEvent::VideoPublished(event) = event {
                let week = feed_week_of(event.published_ms);
                touched.extend([member(&keys.feed_week(week), video), member(&keys.feed_weeks(), week)]);
                touched.push(member(&keys.top_of_video(video), video));
            }
            touched
        }
        Event::Like(event) => {
            let (video, user, author) = match event {
                LikeEvent::VideoLiked(event) => (event.video_id, event.user_id, event.author_id),
                LikeEvent::VideoUnliked(event) => (event.video_id, event.user_id, event.author_id),
            };
            let (video, user, favorited) = (video.get(), user.get(), keys.favorited(author.get()));
            vec![
                member(&keys.likers(video), user),
                member(&keys.favorites(user), video),
                member(&favorited, video),
                LineKey::member(&favorited.name, "total"),
                member(&keys.top_likers(video), user),
                member(&keys.top_of_video(video), video),
            ]
        }
        Event::Follow(event) => {
            let (follower, followee) = match event {
                FollowEvent::UserFollowed(event) => (event.follower_id.get(), event.followee_id.get()),
                FollowEvent::UserUnfollowed(event) => (event.follower_id.get(), event.followee_id.get()),
            };
            vec![member(&keys.following(follower), followee), member(&keys.followers(followee), follower)]
        }
        Event::Comment(event) => {
            let (video, comment) = match event {
                CommentEvent::CommentPosted(event) => (event.video_id.get(), event.comment_id.get()),
                CommentEvent::CommentDeleted(event) => (event.video_id.get(), event.comment_id.get()),
            };
            vec![member(&keys.comments(video), comment), member(&keys.deleted_comments(video), comment)]
        }
        Event::Message(_) => Vec::new(),
    }
}

fn member(key: &Key, member: i64) -> LineKey {
    LineKey::member(&key.name, member.to_string())
}

fn fields(key: &Key, fields: &[&str]) -> Vec<LineKey> {
    fields.iter().map(|field| LineKey::member(&key.name, field)).collect()
}
