//! Likes: the users who like a video, the videos that a user likes, and the number of likes of an author's
//! videos.
//!
//! The three keys are on three shards. The first two are sets, each exact by itself. The author's total is
//! the sum of one absolute part per video: the size of the video's set after the batch was applied to it.

use vidlog_events::{Envelope, Event, LikeEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::Keys;

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Like(event) = &envelope.event else {
        return;
    };
    let (video, author) = match event {
        LikeEvent::VideoLiked(liked) => {
            writes.add_member(keys.likers(liked.video_id.get()), liked.user_id.get());
            writes.add_scored(keys.favorites(liked.user_id.get()), liked.video_id.get(), envelope.time_ms);
            (liked.video_id, liked.author_id)
        }
        LikeEvent::VideoUnliked(unliked) => {
            writes.remove_member(keys.likers(unliked.video_id.get()), unliked.user_id.get());
            writes.remove_scored(keys.favorites(unliked.user_id.get()), unliked.video_id.get());
            (unliked.video_id, unliked.author_id)
        }
    };
    writes.set_part(keys.favorited(author.get()), video.get(), keys.likers(video.get()));
}
