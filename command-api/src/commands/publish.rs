//! Publishes uploads, and derives the object keys of their files.

use uuid::Uuid;
use vidlog_events::{Event, Personal, UserId, VideoEvent, VideoId, VideoUploaded};

/// Prefix of the object keys of originals, which are never served.
pub const ORIGINALS: &str = "originals";

/// Command: publish an upload whose file is in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The author.
    pub author_id: UserId,
    /// The title.
    pub title: Personal<String>,
    /// Object key of the original.
    pub original_key: String,
}

/// Decides on an upload. The media worker checks later whether the file is a video.
pub fn decide(publish: Publish, video_id: VideoId) -> Event {
    Event::Video(VideoEvent::VideoUploaded(VideoUploaded {
        video_id,
        author_id: publish.author_id,
        title: publish.title,
        original_key: publish.original_key,
    }))
}

/// Object key of an original. The random part makes it unguessable.
pub fn original_key(video_id: VideoId, random: Uuid) -> String {
    format!("{ORIGINALS}/{video_id}-{random}")
}

/// Object key of an upload's playable file: deterministic, and not guessable from the video's id.
pub fn play_key(upload: &VideoUploaded) -> String {
    format!("videos/{}-{}.mp4", upload.video_id, original_key_hash(upload))
}

/// Object key of an upload's cover.
pub fn cover_key(upload: &VideoUploaded) -> String {
    format!("covers/{}-{}.jpg", upload.video_id, original_key_hash(upload))
}

/// Hash of the original's key: deterministic, and does not reveal the key.
fn original_key_hash(upload: &VideoUploaded) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, upload.original_key.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(video_id: i64, random: u128) -> VideoUploaded {
        let video_id = VideoId::new(video_id).unwrap();
        let publish = Publish {
            author_id: UserId::new(7).unwrap(),
            title: Personal::new("a title".to_owned()),
            original_key: original_key(video_id, Uuid::from_u128(random)),
        };
        match decide(publish, video_id) {
            Event::Video(VideoEvent::VideoUploaded(uploaded)) => uploaded,
            event => panic!("{event:?}"),
        }
    }

    #[test]
    fn given_a_file_when_published_then_the_event_carries_its_key() {
        let uploaded = upload(9, 1);
        assert_eq!(uploaded.original_key, "originals/9-00000000-0000-0000-0000-000000000001");
        assert_eq!((uploaded.video_id.get(), uploaded.author_id.get()), (9, 7));
        assert_eq!(uploaded.title.reveal(), "a title");
    }

    #[test]
    fn published_keys_are_deterministic_and_hide_the_original() {
        let one = upload(9, 1);
        assert_eq!(play_key(&one), play_key(&one.clone()));
        assert_ne!(play_key(&one), play_key(&upload(9, 2)));
        assert!(play_key(&one).starts_with("videos/9-"));
        assert!(cover_key(&one).starts_with("covers/9-"));
        assert!(!play_key(&one).contains("00000000-0000"));
    }
}
