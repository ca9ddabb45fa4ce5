//! The plan of every statement of the projections in MySQL, on tables of 100,000 rows, for batches of 1, 2 and 500
//! records. See `vidlog_test_support::plans`.

use std::time::Duration;

use sqlx::MySqlPool;
use vidlog_events::*;
use vidlog_projectors::{
    audit::{self, Model},
    desired_state,
    log::{Log, Partition, Record, RecordKey},
    projections, status,
    store::{Batch, Change, Class, Failure, ParkedKey, StoreError, Stores, parked_key::ParkedKeyStore},
};
use vidlog_schemas::projections::View;
use vidlog_test_support::plans::{AUTHOR, FAN, FIRST_VIDEO, Recorder, fill};

use crate::support::{TestSystem, envelope};

/// Statements that are not checked.
const EXEMPT: [(&str, &str); 2] = [
    ("SELECT stream, partition_no, record_key, first_offset", "reads all parked keys of a view"),
    ("SELECT stream, partition_no, first_record FROM logs", "a row per partition"),
];
/// Numbers of records. Each batch is of its own part of the tables.
const BATCHES: [(i64, i64); 3] = [(1, 0), (2, 1000), (500, 2000)];

#[tokio::test]
async fn statements_use_indexes() {
    let system = TestSystem::new().await;
    fill(&system.target.mysql).await;
    let recorder = Recorder::start(system.stores.mysql_url.reveal()).await;
    let target = vidlog_projectors::store::Stores::open(&system.stores, 8).unwrap();
    for projection in projections::ALL {
        if let View::Redis(_) = projection.catalogued.view {
            continue;
        }
        let sink = target.view(projection);
        let partition = Partition { stream: projection.streams().next().unwrap(), number: 0 };
        let mut position = sink.positions(&[partition]).await.unwrap().remove(0);
        let mut next = 0;
        for (size, start) in BATCHES {
            // What adds a row, then what changes or deletes it, and the same of rows that exist.
            let batches: Vec<Vec<Event>> = (0..2)
                .flat_map(|kind| [10_000_000 + start, start].map(|from| (kind, from)))
                .map(|(kind, from)| (1..=size).map(|n| event(partition.stream, kind, from + n)).collect())
                .collect();
            for events in batches {
                let records: Vec<_> = events.into_iter().zip(next..).map(record).collect();
                next += size;
                sink.apply(partition, &mut position, &records, next).await.unwrap();
            }
        }
    }
    // Reads a table page by page, as every comparison does.
    let messages = projections::find("messages-table").unwrap();
    let differences = audit::compare_with_model(&target, &[messages], Model::new(1 << 20)).await.unwrap();
    assert!(!differences.is_empty());

    park(&target).await;
    change_desired_state(&target.mysql).await;
    let log = Log::new(&system.log, &system.stores.namespace);
    let status = status::gather(&log, &target, &[messages]).await;
    assert!(status.unknown.is_empty(), "{status:?}");

    let sources = [
        "src/projections",
        "src/comparison",
        "src/status",
        "../projection-engine/src/store",
        "../projection-engine/src/desired_state",
        "../projection-engine/src/desired_state.rs",
    ];
    let sources = sources.map(|folder| format!("{}/{folder}", env!("CARGO_MANIFEST_DIR")));
    recorder.check(&target.mysql, &sources.each_ref().map(String::as_str), &EXEMPT).await;
}

/// Parks keys beside 100,000 others, and retries one.
async fn park(target: &Stores) {
    let others = "INSERT INTO parked_likes_table
                  SELECT 'likes', 1, CONCAT(video_id, '-', user_id), 1, 1, 1, 'unfoldable', '' FROM likes";
    sqlx::query(others).execute(&target.mysql).await.unwrap();
    let store = target.view(projections::find("likes-table").unwrap());
    let partition = Partition { stream: Stream::Likes, number: 1 };
    let mut position = store.positions(&[partition]).await.unwrap().remove(0);
    let zombie = position.clone();
    let failure = Failure::new(Class::Unfoldable, "rejected");
    let mut next = 0;
    for (size, start) in BATCHES {
        let keys = (start..start + size).map(|key| RecordKey::from_text(&format!("key {key}")));
        let parked = ParkedKey { first: next, last: next, waiting: 1, failure: failure.clone() };
        for change in [Change::Park(parked), Change::Extend { last: next + 1, more: 1 }] {
            next += 1;
            let changes = keys.clone().map(|key| (key, change.clone())).collect();
            let batch = Batch { records: &[], next, changes: &changes };
            store.write(&partition.into(), &mut position, &batch).await.unwrap();
        }
    }
    let refused = store.apply(partition, &mut zombie.clone(), &[], next + 1).await;
    assert!(matches!(refused, Err(StoreError::Moved { .. })), "{refused:?}");

    let key = RecordKey::from_text("key 0");
    let parked = store.parked().await.unwrap()[&partition][&key].clone();
    let retried = ParkedKeyStore::new(store, partition, key);
    assert!(retried.begin(&parked).await.unwrap().is_some());
    let rest = ParkedKey { first: parked.last, waiting: 1, ..parked.clone() };
    assert!(retried.repark(&parked, &rest).await.unwrap());
    assert!(retried.unpark(&rest).await.unwrap());
}

async fn change_desired_state(pool: &MySqlPool) {
    let likes = projections::find("likes-table").unwrap();
    let minute = Duration::from_mins(1);
    desired_state::pause(pool, &likes).await.unwrap();
    desired_state::resume(pool, &likes).await.unwrap();
    let until_ms = desired_state::hold(pool, &likes, minute).await.unwrap();
    desired_state::extend_hold(pool, &likes, until_ms, minute).await.unwrap();
    desired_state::take_over(pool, &likes, 1).await.unwrap();
    desired_state::record_generation(pool, &likes, 1).await.unwrap();
    desired_state::end_hold(pool, &likes, until_ms).await.unwrap();
}

fn record((event, offset): (Event, i64)) -> Record {
    Record { offset, envelope: envelope(event, 1_700_000_000_000) }
}

/// The event of a row: the first kind adds it, the second changes or deletes it.
fn event(stream: Stream, kind: i32, n: i64) -> Event {
    let (user_id, author_id) = (UserId::new(FAN).unwrap(), UserId::new(AUTHOR).unwrap());
    let other_id = UserId::new(n + 200).unwrap();
    let first = VideoId::new(FIRST_VIDEO).unwrap();
    let video_id = VideoId::new(FIRST_VIDEO + n).unwrap();
    let text = Personal::new("text".to_owned());
    match (stream, kind) {
        (Stream::Users, _) => {
            Event::User(UserEvent::UserRegistered(UserRegistered { user_id: other_id, name: text }))
        }
        (Stream::Videos, 0) => Event::Video(VideoEvent::VideoUploaded(VideoUploaded {
            video_id,
            author_id,
            title: text,
            original_key: "original".to_owned(),
        })),
        (Stream::Videos, _) => Event::Video(VideoEvent::VideoPublished(VideoPublished {
            video_id,
            author_id,
            play_key: "play".to_owned(),
            cover_key: "cover".to_owned(),
            published_ms: 1_700_000_000_000 + n,
        })),
        (Stream::Likes, 0) => Event::Like(LikeEvent::VideoLiked(VideoLiked { video_id, user_id, author_id })),
        (Stream::Likes, _) => {
            Event::Like(LikeEvent::VideoUnliked(VideoUnliked { video_id, user_id, author_id }))
        }
        (Stream::Follows, 0) => Event::Follow(FollowEvent::UserFollowed(UserFollowed {
            follower_id: other_id,
            followee_id: author_id,
        })),
        (Stream::Follows, _) => Event::Follow(FollowEvent::UserUnfollowed(UserUnfollowed {
            follower_id: other_id,
            followee_id: author_id,
        })),
        (Stream::Comments, 0) => Event::Comment(CommentEvent::CommentPosted(CommentPosted {
            comment_id: CommentId::new(n).unwrap(),
            video_id: first,
            user_id,
            text,
        })),
        (Stream::Comments, _) => Event::Comment(CommentEvent::CommentDeleted(CommentDeleted {
            comment_id: CommentId::new(n).unwrap(),
            video_id: first,
            deleted_by: user_id,
        })),
        (Stream::Messages, _) => Event::Message(MessageEvent::MessageSent(MessageSent {
            message_id: MessageId::new(n).unwrap(),
            from_user_id: author_id,
            to_user_id: other_id,
            content: text,
        })),
    }
}
