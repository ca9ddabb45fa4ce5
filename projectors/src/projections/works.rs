//! Each author's works: what everyone sees, and all that was uploaded, for the author's own eyes.

use vidlog_events::{Envelope, Event, VideoEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::Keys;

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Video(event) = &envelope.event else {
        return;
    };
    match event {
        VideoEvent::VideoUploaded(uploaded) => {
            let video = uploaded.video_id.get();
            writes.add_scored(keys.uploads(uploaded.author_id.get()), video, video);
        }
        VideoEvent::VideoPublished(published) => {
            let video = published.video_id.get();
            writes.add_scored(keys.works(published.author_id.get()), video, video);
        }
        VideoEvent::VideoRejected(_) => {}
    }
}
