//! Follows: whom a user follows, and who follows a user.

use vidlog_events::{Envelope, Event, FollowEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::Keys;

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Follow(event) = &envelope.event else {
        return;
    };
    match event {
        FollowEvent::UserFollowed(followed) => {
            let (follower, followee) = (followed.follower_id.get(), followed.followee_id.get());
            writes.add_scored(keys.following(follower), followee, envelope.time_ms);
            writes.add_scored(keys.followers(followee), follower, envelope.time_ms);
        }
        FollowEvent::UserUnfollowed(unfollowed) => {
            let (follower, followee) = (unfollowed.follower_id.get(), unfollowed.followee_id.get());
            writes.remove_scored(keys.following(follower), followee);
            writes.remove_scored(keys.followers(followee), follower);
        }
    }
}
