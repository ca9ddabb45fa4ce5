//! Ids of each video's comments; their number is the video's comment count.

use vidlog_events::{CommentEvent, Envelope, Event};
use vidlog_projection_engine::view::RedisWrites;
use vidlog_schemas::Keys;

pub(super) fn project(keys: &Keys, envelope: &Envelope, writes: &mut RedisWrites) {
    let Event::Comment(event) = &envelope.event else {
        return;
    };
    match event {
        CommentEvent::CommentPosted(posted) => {
            let video = posted.video_id.get();
            let deleted = keys.deleted_comments(video);
            writes.add_member_unless_in(keys.comments(video), posted.comment_id.get(), deleted);
        }
        CommentEvent::CommentDeleted(deleted) => {
            let video = deleted.video_id.get();
            writes.remove_member(keys.comments(video), deleted.comment_id.get());
            writes.add_member(keys.deleted_comments(video), deleted.comment_id.get());
        }
    }
}
