//! Publishing a video: its upload, and the keys of its objects.

use uuid::Uuid;
use vidlog_events::{Event, Personal, UserId, VideoEvent, VideoId, VideoUploaded};

/// The folder of files as they were uploaded. They are never served.
pub const ORIGINALS: &str = "originals";

/// A video that a user wants to publish; its file is in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Who.
    pub author_id: UserId,
    /// The title.
    pub title: Personal<String>,
    /// The object key of the file.
    pub original_key: String,
}

/// Decides it. Whether the file is a video is found out later, by the media worker.
pub fn decide(publish: Publish, video_id: VideoId) -> Event {
    Event::Video(VideoEvent::VideoUploaded(VideoUploaded {
        video_id,
        author_id: publish.author_id,
        title: publish.title,
        original_key: publish.original_key,
    }))
}

/// The object key of an upload, with something random in it that only the log knows.
pub fn original_key(video_id: VideoId, random: Uuid) -> String {
    format!("{ORIGINALS}/{video_id}-{random}")
}

/// The object key of the playable file of an upload: always the same, and not to be guessed from the video's id.
pub fn play_key(upload: &VideoUploaded) -> String {
    format!("videos/{}-{}.mp4", upload.video_id, secret(upload))
}

/// The object key of the cover of an upload.
pub fn cover_key(upload: &VideoUploaded) -> String {
    format!("covers/{}-{}.jpg", upload.video_id, secret(upload))
}

/// A hash of the original's key: it follows from that, and tells nothing about it.
fn secret(upload: &VideoUploaded) -> Uuid {
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
    fn given_a_file_when_published_then_the_event_names_it() {
        let uploaded = upload(9, 1);
        assert_eq!(uploaded.original_key, "originals/9-00000000-0000-0000-0000-000000000001");
        assert_eq!((uploaded.video_id.get(), uploaded.author_id.get()), (9, 7));
        assert_eq!(uploaded.title.reveal(), "a title");
    }

    #[test]
    fn keys_follow_from_the_originals_key_and_do_not_show_it() {
        let one = upload(9, 1);
        assert_eq!(play_key(&one), play_key(&one.clone()));
        assert_ne!(play_key(&one), play_key(&upload(9, 2)));
        assert!(play_key(&one).starts_with("videos/9-"));
        assert!(cover_key(&one).starts_with("covers/9-"));
        assert!(!play_key(&one).contains("00000000-0000"));
    }
}
