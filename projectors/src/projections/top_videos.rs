//! Most liked videos by week of publication.
//!
//! Likes and publications are two streams, folded in any order. Both write to the video's shard, and each
//! write takes the current size of the set, so the last one leaves the exact count, no matter which stream it
//! comes from.

use vidlog_events::{Envelope, Event, LikeEvent, VideoEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::keys::{Keys, TOP_COUNTS, feed_week_of, top_score};

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    match &envelope.event {
        Event::Video(VideoEvent::VideoPublished(published)) => {
            let (video, base) =
                (published.video_id.get(), top_score(feed_week_of(published.published_ms), 0));
            writes.rank(keys.top_of_video(video), video, base, keys.top_likers(video));
        }
        Event::Like(LikeEvent::VideoLiked(liked)) => {
            let video = liked.video_id.get();
            writes.add_member(keys.top_likers(video), liked.user_id.get());
            writes.update_rank(keys.top_of_video(video), video, TOP_COUNTS, keys.top_likers(video));
        }
        Event::Like(LikeEvent::VideoUnliked(unliked)) => {
            let video = unliked.video_id.get();
            writes.remove_member(keys.top_likers(video), unliked.user_id.get());
            writes.update_rank(keys.top_of_video(video), video, TOP_COUNTS, keys.top_likers(video));
        }
        Event::Video(VideoEvent::VideoUploaded(_) | VideoEvent::VideoRejected(_))
        | Event::User(_)
        | Event::Follow(_)
        | Event::Comment(_)
        | Event::Message(_) => {}
    }
}
