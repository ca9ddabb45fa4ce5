//! Records: what is written is read back, whatever it holds.

use proptest::prelude::*;
use uuid::Uuid;
use vidlog_events::{
    CommentDeleted, CommentEvent, CommentId, CommentPosted, ConversationId, DecodeError, EncodedRecord,
    Envelope, Event, FollowEvent, LikeEvent, MAX_ID, MessageEvent, MessageId, MessageSent, Personal, Stream,
    UserEvent, UserFollowed, UserId, UserRegistered, UserUnfollowed, VideoEvent, VideoId, VideoLiked,
    VideoPublished, VideoRejected, VideoUnliked, VideoUploaded, catalogue, decode,
};

/// The times that RFC 3339 can write: of the years 0 to 9999.
const TIMES_MS: std::ops::Range<i64> = -62_167_219_200_000..253_402_300_800_000;

proptest! {
    #[test]
    fn every_event_is_read_back_as_it_was_written(envelope in envelopes()) {
        let record = envelope.encode().unwrap();
        prop_assert_eq!(read(&record), Ok(envelope));
    }

    #[test]
    fn a_record_is_of_its_stream_and_key(envelope in envelopes()) {
        let record = envelope.encode().unwrap();
        prop_assert_eq!(record.stream, envelope.event.stream());
        prop_assert_eq!(&record.key, &envelope.event.key());
        prop_assert_eq!(header_bytes(&record, "ce_subject"), Some(record.key.as_bytes()));
        prop_assert_eq!(record.timestamp_ms, envelope.time_ms);
    }

    #[test]
    fn properties_that_a_reader_does_not_know_are_passed_over(envelope in envelopes()) {
        let mut record = envelope.encode().unwrap();
        let mut payload: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        payload["of_a_later_version"] = serde_json::json!({"x": [1]});
        record.value = serde_json::to_vec(&payload).unwrap();
        prop_assert_eq!(read(&record), Ok(envelope));
    }

    #[test]
    fn anything_at_all_is_read_without_a_panic(value in any::<Vec<u8>>(), name in any::<prop::sample::Index>()) {
        let types = catalogue();
        let event_type = name.get(&types);
        let mut record = any_record();
        set(&mut record, "ce_type", event_type.name);
        record.stream = event_type.stream;
        record.value = value;
        let is_refused = matches!(read(&record), Err(DecodeError::Payload { .. }));
        prop_assert!(is_refused);
    }
}

#[test]
fn a_conversation_is_one_key_whoever_writes() {
    let sent = |from, to| {
        Event::Message(MessageEvent::MessageSent(MessageSent {
            message_id: MessageId::new(1).unwrap(),
            from_user_id: UserId::new(from).unwrap(),
            to_user_id: UserId::new(to).unwrap(),
            content: Personal::new("hi".to_owned()),
        }))
    };
    assert_eq!(sent(10, 9).key(), "9-10");
    assert_eq!(sent(9, 10).key(), "9-10");
    let (nine, ten) = (UserId::new(9).unwrap(), UserId::new(10).unwrap());
    assert_eq!(ConversationId::of(ten, nine).to_string(), "9-10");
}

#[test]
fn a_missing_or_broken_attribute_is_named() {
    for name in ["ce_id", "ce_type", "ce_source", "ce_time"] {
        let mut record = any_record();
        record.headers.retain(|(header, _)| *header != name);
        assert_eq!(read(&record), Err(DecodeError::MissingHeader(name)));
    }
    for name in ["ce_id", "ce_time"] {
        let mut record = any_record();
        set(&mut record, name, "yesterday");
        assert!(matches!(read(&record), Err(DecodeError::InvalidHeader { header, .. }) if header == name));
    }
}

#[test]
fn a_type_of_another_stream_is_unknown() {
    for event_type in catalogue() {
        let mut record = any_record();
        set(&mut record, "ce_type", event_type.name);
        for stream in Stream::ALL.into_iter().filter(|stream| *stream != event_type.stream) {
            record.stream = stream;
            let unknown = DecodeError::UnknownType { stream, name: event_type.name.to_owned() };
            assert_eq!(read(&record), Err(unknown));
        }
    }
}

#[test]
fn an_error_does_not_show_what_people_wrote() {
    let mut record = any_record();
    record.value = br#"{"user_id":"Ada Lovelace","name":7}"#.to_vec();
    let error = read(&record).unwrap_err();
    assert!(!error.to_string().contains("Ada") && !format!("{error:?}").contains("Ada"), "{error}");
}

fn any_record() -> EncodedRecord {
    let registered =
        UserRegistered { user_id: UserId::new(1).unwrap(), name: Personal::new("Ada".to_owned()) };
    let envelope = Envelope {
        id: Uuid::nil(),
        source: "/test".to_owned(),
        time_ms: 0,
        traceparent: None,
        correlation_id: None,
        causation_id: None,
        event: Event::User(UserEvent::UserRegistered(registered)),
    };
    envelope.encode().unwrap()
}

fn set(record: &mut EncodedRecord, name: &str, value: &str) {
    let (_, held) = record.headers.iter_mut().find(|(header, _)| *header == name).unwrap();
    value.clone_into(held);
}

pub(crate) fn header_bytes<'a>(record: &'a EncodedRecord, name: &str) -> Option<&'a [u8]> {
    record.headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.as_bytes())
}

fn read(record: &EncodedRecord) -> Result<Envelope, DecodeError> {
    decode(record.stream, |name| header_bytes(record, name), &record.value)
}

/// Records as writers of this system write them.
pub(crate) fn encoded_envelopes() -> impl Strategy<Value = EncodedRecord> {
    envelopes().prop_map(|envelope| envelope.encode().unwrap())
}

fn envelopes() -> impl Strategy<Value = Envelope> {
    let extension = || prop::option::of("[ -~]{0,40}");
    (any::<u128>(), ".{0,20}", TIMES_MS, extension(), extension(), extension(), events()).prop_map(
        |(id, source, time_ms, traceparent, correlation_id, causation_id, event)| Envelope {
            id: Uuid::from_u128(id),
            source,
            time_ms,
            traceparent,
            correlation_id,
            causation_id,
            event,
        },
    )
}

/// An event of any type.
fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        (user(), text()).prop_map(|(user_id, name)| {
            Event::User(UserEvent::UserRegistered(UserRegistered { user_id, name }))
        }),
        videos().prop_map(Event::Video),
        likes().prop_map(Event::Like),
        follows().prop_map(Event::Follow),
        comments().prop_map(Event::Comment),
        (id(), user(), user(), text()).prop_map(|(message, from_user_id, to_user_id, content)| {
            let message_id = MessageId::new(message).unwrap();
            Event::Message(MessageEvent::MessageSent(MessageSent {
                message_id,
                from_user_id,
                to_user_id,
                content,
            }))
        }),
    ]
}

fn videos() -> impl Strategy<Value = VideoEvent> {
    prop_oneof![
        (video(), user(), text(), ".*").prop_map(|(video_id, author_id, title, original_key)| {
            VideoEvent::VideoUploaded(VideoUploaded { video_id, author_id, title, original_key })
        }),
        (video(), user(), ".*", ".*", any::<i64>()).prop_map(
            |(video_id, author_id, play_key, cover_key, published_ms)| {
                let published = VideoPublished { video_id, author_id, play_key, cover_key, published_ms };
                VideoEvent::VideoPublished(published)
            }
        ),
        (video(), user(), ".*").prop_map(|(video_id, author_id, reason)| {
            VideoEvent::VideoRejected(VideoRejected { video_id, author_id, reason })
        }),
    ]
}

fn likes() -> impl Strategy<Value = LikeEvent> {
    (video(), user(), user(), any::<bool>()).prop_map(|(video_id, user_id, author_id, likes)| {
        if likes {
            LikeEvent::VideoLiked(VideoLiked { video_id, user_id, author_id })
        } else {
            LikeEvent::VideoUnliked(VideoUnliked { video_id, user_id, author_id })
        }
    })
}

fn follows() -> impl Strategy<Value = FollowEvent> {
    (user(), user(), any::<bool>()).prop_map(|(follower_id, followee_id, follows)| {
        if follows {
            FollowEvent::UserFollowed(UserFollowed { follower_id, followee_id })
        } else {
            FollowEvent::UserUnfollowed(UserUnfollowed { follower_id, followee_id })
        }
    })
}

fn comments() -> impl Strategy<Value = CommentEvent> {
    let comment = || id().prop_map(|comment| CommentId::new(comment).unwrap());
    prop_oneof![
        (comment(), video(), user(), text()).prop_map(|(comment_id, video_id, user_id, text)| {
            CommentEvent::CommentPosted(CommentPosted { comment_id, video_id, user_id, text })
        }),
        (comment(), video(), user()).prop_map(|(comment_id, video_id, deleted_by)| {
            CommentEvent::CommentDeleted(CommentDeleted { comment_id, video_id, deleted_by })
        }),
    ]
}

fn id() -> impl Strategy<Value = i64> {
    prop_oneof![Just(1), Just(MAX_ID), 1..=MAX_ID]
}

fn user() -> impl Strategy<Value = UserId> {
    id().prop_map(|user| UserId::new(user).unwrap())
}

fn video() -> impl Strategy<Value = VideoId> {
    id().prop_map(|video| VideoId::new(video).unwrap())
}

/// Text of any kind, with what JSON and headers have to escape.
fn text() -> impl Strategy<Value = Personal<String>> {
    prop_oneof![".*", Just("\"\\\n\u{1F3AC}\u{0}".to_owned())].prop_map(Personal::new)
}
