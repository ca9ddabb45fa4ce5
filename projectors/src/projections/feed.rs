//! Global feed: published videos by publish time, one ZSET per week.

use vidlog_events::{Envelope, Event, VideoEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::keys::{Keys, feed_week_of};

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Video(event) = &envelope.event else {
        return;
    };
    match event {
        VideoEvent::VideoPublished(published) => {
            let week = feed_week_of(published.published_ms);
            writes.add_scored(keys.feed_week(week), published.video_id.get(), published.published_ms);
            writes.add_scored(keys.feed_weeks(), week, week);
        }
        VideoEvent::VideoUploaded(_) | VideoEvent::VideoRejected(_) => {}
    }
}
