//! Works of each author: the published videos, which are public, and all uploads, which only the author sees.

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
