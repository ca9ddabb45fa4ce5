//! Video cards: the fields that responses include for each listed video.

use vidlog_events::{Envelope, Event, VideoEvent};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::{Keys, rows::VideoState};

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Video(event) = &envelope.event else {
        return;
    };
    let processing = VideoState::Processing.number().to_string();
    match event {
        VideoEvent::VideoUploaded(uploaded) => writes.create_hash(
            keys.video_card(uploaded.video_id.get()),
            &[
                ("author", uploaded.author_id.to_string()),
                ("title", uploaded.title.reveal().clone()),
                ("state", processing),
            ],
        ),
        // Only the first outcome counts; repeated ones are no-ops.
        VideoEvent::VideoPublished(published) => writes.update_hash_while(
            keys.video_card(published.video_id.get()),
            ("state", processing),
            &[
                ("state", VideoState::Published.number().to_string()),
                ("play_key", published.play_key.clone()),
                ("cover_key", published.cover_key.clone()),
                ("published_ms", published.published_ms.to_string()),
            ],
        ),
        VideoEvent::VideoRejected(rejected) => writes.update_hash_while(
            keys.video_card(rejected.video_id.get()),
            ("state", processing),
            &[("state", VideoState::Rejected.number().to_string()), ("reason", rejected.reason.clone())],
        ),
    }
}
