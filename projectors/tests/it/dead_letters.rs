//! Dead letters: an unfoldable record parks its key, other keys are folded, and a retry after a fix makes the view exact.

use std::process::Output;

use rdkafka::{
    ClientConfig, Message, Timestamp,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, OwnedMessage},
};
use redis::cmd;
use tokio::process::Command;
use vidlog_events::{CommentEvent, CommentPosted, Event, Personal, Stream, Topics, UserId, VideoId};
use vidlog_projectors::{
    dead_letters::DeadLetterQueue,
    desired_state,
    log::{Log, Partition},
    store::{Class, Failure},
};

use crate::support::{DEADLINE, Running, TestSystem, envelope, get_metrics, liked, partition_of, until};

const T: i64 = 1_700_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_record_parks_only_its_key() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    // One partition: an undecodable record of one key, and likes of this key and of another.
    system.append(&[envelope(liked(1, 1), T)]).await;
    let partition = system.append_garbage(Stream::Likes, "1").await;
    let other = (2..1000).find(|video| partition_of(&video.to_string()) == partition).unwrap();
    system.append(&[envelope(liked(1, 2), T + 1), envelope(liked(other, 2), T + 2)]).await;

    until("the other key is folded", async || likers(&system, other).await == [2]).await;
    assert_eq!(likers(&system, 1).await, [1], "later records of the parked key wait");
    // A parked key does not affect readiness.
    until("the projections are ready", async || running.readiness.unready().is_none()).await;

    let listed = listed(&system, "likes").await;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["key"], &listed[0]["class"]), (&"1".into(), &"undecodable".into()));
    assert_eq!(listed[0]["waiting"], 2);
    let dead_letters = dead_letters(&system, "likes");
    let classes: Vec<_> =
        dead_letters.iter().map(|(partition, class, _)| (*partition, class.as_str())).collect();
    assert_eq!(classes, [(partition, "undecodable"), (partition, "behind")]);

    system.assert_views_equal_the_log().await;
    // A retry cannot decode the record.
    let retried = command(&system, &["retry", "likes"]).await;
    assert_eq!(retried.status.code(), Some(1), "{retried:?}");
    let place =
        [&listed[0]["partition"], &listed[0]["first_offset"]].map(|part| part.to_string().replace('"', ""));
    for projection in ["likes", "likes-table"] {
        let discarded = command(&system, &["discard", projection, &place[0], &place[1]]).await;
        assert!(discarded.status.success(), "{discarded:?}");
    }
    assert_eq!(likers(&system, 1).await, [1, 2]);
    system.append(&[envelope(liked(1, 3), T + 3)]).await;
    until("the key is folded again", async || likers(&system, 1).await == [1, 2, 3]).await;
    system.assert_views_equal_the_log().await;
    assert!(self::listed(&system, "likes").await.is_empty());

    // A refill of the view does not park discarded records again.
    system.delete_redis_keys().await;
    until("the view is refilled", async || likers(&system, 1).await == [1, 2, 3]).await;
    system.assert_views_equal_the_log().await;
    assert!(self::listed(&system, "likes").await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_a_fix_makes_mysql_view_exact() {
    let system = TestSystem::new().await;
    alter(&system, "ALTER TABLE comments MODIFY text VARCHAR(5) NOT NULL").await;
    let running = Running::start(&system);
    let mut comments: Vec<_> = (1..40).map(|id| comment(id, id % 3 + 1, "short")).collect();
    comments.insert(7, comment(101, 1, "a long one"));
    comments.insert(20, comment(102, 1, "another long one"));
    comments.insert(22, comment(103, 2, "a long one"));
    system.append(&comments).await;
    system.assert_views_equal_the_log().await;
    let parked = listed(&system, "comments-table").await;
    let keys: Vec<_> = parked.iter().map(|key| (key["key"].as_str(), key["class"].as_str())).collect();
    assert_eq!(keys.len(), 2, "{parked:?}");
    assert!(keys.contains(&(Some("1"), Some("unfoldable"))), "{parked:?}");
    assert_eq!(comments_of(&system, 3).await, 13, "the third key is folded");

    // A partial fix: only one of the keys can be retried.
    alter(&system, "ALTER TABLE comments MODIFY text VARCHAR(12) NOT NULL").await;
    let retried = command(&system, &["retry", "comments-table"]).await;
    assert_eq!(retried.status.code(), Some(1));
    system.assert_views_equal_the_log().await;
    assert_eq!(listed(&system, "comments-table").await.len(), 1);

    // Retries while further records of the key arrive.
    alter(&system, "ALTER TABLE comments MODIFY text VARCHAR(255) NOT NULL").await;
    let (append, retry) = tokio::join!(
        async {
            for id in 200..400 {
                system.append(&[comment(id, 1, "long enough to be too long")]).await;
            }
        },
        command(&system, &["retry", "comments-table", "--key", "1"]),
    );
    let () = append;
    assert!(retry.status.success(), "{retry:?}");
    assert!(listed(&system, "comments-table").await.is_empty());
    system.assert_views_equal_the_log().await;
    assert_eq!(comments_of(&system, 1).await, 13 + 2 + 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_key_leaves_the_parked_metric() {
    let system = TestSystem::new().await;
    let (_process, ops) = system.start_with_ops(&[]).await;
    system.append_garbage(Stream::Likes, "1").await;
    for projection in ["likes", "likes-table"] {
        until("the metric counts the key", async || parked_metric(&ops, projection).await == Some(1)).await;
        let parked = listed(&system, projection).await;
        let place = [&parked[0]["partition"], &parked[0]["first_offset"]].map(ToString::to_string);
        let [partition, offset] = place.map(|part| part.replace('"', ""));
        let discarded = command(&system, &["discard", projection, &partition, &offset]).await;
        assert!(discarded.status.success(), "{discarded:?}");
        // Without further records of the key.
        until("the metric drops the key", async || parked_metric(&ops, projection).await == Some(0)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_retry_of_one_key_does_not_block_others() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    for key in ["1", "2", "3"] {
        system.append_garbage(Stream::Likes, key).await;
    }
    until("all keys are parked", async || listed(&system, "likes-table").await.len() == 3).await;
    alter(&system, "UPDATE parked_likes_table SET waiting = waiting + 1 WHERE record_key = '2'").await;
    let retried = command(&system, &["retry", "likes-table"]).await;
    assert_eq!(retried.status.code(), Some(1), "{retried:?}");
    let out = String::from_utf8(retried.stdout).unwrap();
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("key 2: 2 records are parked, but the dead-letter topic has 1"), "{out}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_outage_does_not_hide_mysql_dead_letters() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    let partition = system.append_garbage(Stream::Likes, "1").await;
    until("the key is parked", async || listed(&system, "likes").await.len() == 1).await;
    // The refill produces the dead letter again.
    system.delete_redis_keys().await;
    until("the key is parked again", async || {
        let waits = listed(&system, "likes").await.len() + listed(&system, "likes-table").await.len();
        dead_letters(&system, "likes").len() == 2 && waits == 2
    })
    .await;
    let shown = command(&system, &["show", "likes", &format!("likes:{partition}"), "0"]).await;
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout).matches("dead_letter_offset: 0").count(),
        1,
        "{shown:?}"
    );

    let nowhere = command(&system, &["--redis-url", "redis://127.0.0.1:1/", "list", "--json"]).await;
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    let known: Vec<serde_json::Value> = serde_json::from_slice(&nowhere.stdout).unwrap();
    assert_eq!((known.len(), &known[0]["projection"]), (1, &"likes-table".into()));
    assert!(
        String::from_utf8_lossy(&nowhere.stderr).contains("unavailable: parked keys of likes"),
        "{nowhere:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_during_parking_keep_record_order() {
    let system = TestSystem::new().await;
    let mut process = system.start_projectors("127.0.0.1:0", &[]);
    let mut time = T;
    for round in 0..4 {
        for video in 1..=30 {
            time += 1;
            if video % 10 == round {
                system.append_garbage(Stream::Likes, &video.to_string()).await;
            }
            system.append(&[envelope(liked(video, time - T), time)]).await;
        }
        // The kill is while keys are being parked.
        let keys = usize::try_from(round).unwrap();
        until("keys are parked", async || parked_keys(&system).await > keys * 2).await;
        process.kill();
        process = system.start_projectors("127.0.0.1:0", &[]);
    }
    system.assert_views_equal_the_log().await;
    assert_eq!(listed(&system, "likes").await.len(), 12);
    assert_eq!(listed(&system, "likes-table").await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn consecutive_failures_stop_the_projection_until_resumed() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    for _ in 0..30 {
        system.append_garbage(Stream::Likes, "1").await;
    }
    let names = ["likes", "likes-table", "top-videos"];
    until("all projections of likes are stopped", async || {
        let desired = desired_state::read(&system.target.mysql).await.unwrap();
        let run_state = |name: &str| desired.get(name).map(|desired| desired.run_state.clone());
        names.iter().all(|name| matches!(run_state(name), Some(desired_state::RunState::Stopped(_))))
    })
    .await;
    let is_reported =
        async || running.readiness.unready().is_some_and(|missing| missing.contains("consecutive records"));
    until("the reason is reported", is_reported).await;
    for projection in names.map(|name| vidlog_projectors::projections::find(name).unwrap()) {
        desired_state::resume(&system.target.mysql, &projection).await.unwrap();
    }
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    system.assert_views_equal_the_log().await;

    // Failures before the resume do not stop the projection again during a refill.
    system.delete_redis_keys().await;
    let is_back = async || {
        let parked = self::listed(&system, "likes").await;
        parked.first().is_some_and(|parked| parked["waiting"] == 30) && running.readiness.unready().is_none()
    };
    until("the view is refilled", is_back).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_follow_their_origin_to_more_partitions() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append_garbage(Stream::Likes, "1").await;
    until("a key is parked", async || listed(&system, "likes").await.len() == 1).await;
    running.stop().await;
    // A producer that has sent dead letters before the topic gets another partition.
    let (brokers, topics) = (system.log.kafka_brokers.clone(), Topics::new(&system.stores.namespace));
    let queue = DeadLetterQueue::new(Log { brokers, topics });
    let sent = async |number| {
        let dead_letter =
            OwnedMessage::new(None, None, String::new(), Timestamp::NotAvailable, number, 0, None);
        let failure = Failure::new(Class::Undecodable, "no event");
        let partition = Partition { stream: Stream::Likes, number };
        queue.send("likes", partition, &[(&dead_letter, failure)]).await.is_ok()
    };
    assert!(sent(0).await);

    let partition = system.append_garbage_to_new_partition(Stream::Likes).await;
    until("a dead letter of the new partition is sent", async || sent(partition).await).await;
    let running = Running::start(&system);
    until("both keys are parked", async || {
        listed(&system, "likes").await.len() == 2 && listed(&system, "likes-table").await.len() == 2
    })
    .await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    let dead_letters = dead_letters(&system, "likes");
    assert!(
        dead_letters.iter().any(|(of, class, _)| *of == partition && class == "undecodable"),
        "{dead_letters:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_record_is_parked_by_its_position() {
    let system = TestSystem::new().await;
    let running = Running::start(&system);
    system.append(&[envelope(liked(1, 1), T)]).await;
    let (partition, offset) = system.append_large_garbage(Stream::Likes, "1").await;
    let other = (2..1000).find(|video| partition_of(&video.to_string()) == partition).unwrap();
    system.append(&[envelope(liked(1, 2), T + 1), envelope(liked(other, 2), T + 2)]).await;
    until("the other key is folded", async || likers(&system, other).await == [2]).await;
    until("the projections are ready", async || running.readiness.unready().is_none()).await;
    let parked = listed(&system, "likes").await;
    assert_eq!(
        (&parked[0]["class"], &parked[0]["waiting"]),
        (&"undecodable".into(), &2.into()),
        "{parked:?}"
    );
    assert_eq!(dead_letters(&system, "likes")[0].2, b"", "the dead letter has no content");
    system.assert_views_equal_the_log().await;

    let id = [format!("likes:{partition}"), offset.to_string()];
    let show = async || {
        let shown = command(&system, &["show", "likes", &id[0], &id[1]]).await;
        assert!(shown.status.success(), "{:?}", shown.stderr);
        String::from_utf8(shown.stdout).unwrap()
    };
    let shown = show().await;
    assert!(shown.starts_with("key: 1\n") && shown.len() > 8_000_000, "the record is read from the log");
    assert_eq!(command(&system, &["retry", "likes"]).await.status.code(), Some(1));
    for projection in ["likes", "likes-table", "top-videos"] {
        let discarded = command(&system, &["discard", projection, &id[0], &id[1]]).await;
        assert!(discarded.status.success(), "{discarded:?}");
    }
    assert_eq!(likers(&system, 1).await, [1, 2]);
    system.assert_views_equal_the_log().await;

    // A record that the log no longer has.
    let (partition, offset) = system.append_large_garbage(Stream::Likes, "1").await;
    until("the key is parked again", async || listed(&system, "likes").await.len() == 1).await;
    system.delete_records(Stream::Likes, &[(partition, rdkafka::Offset::Offset(offset + 1))]).await;
    let retried = command(&system, &["retry", "likes"]).await;
    let out = String::from_utf8(retried.stdout).unwrap();
    assert!(retried.status.code() == Some(1) && out.contains("is no longer in the log; discard it"), "{out}");
    let id = [format!("likes:{partition}"), offset.to_string()];
    let shown = command(&system, &["show", "likes", &id[0], &id[1]]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("is no longer in the log"), "{shown:?}");
    let discarded = command(&system, &["discard", "likes", &id[0], &id[1]]).await;
    assert!(discarded.status.success(), "{discarded:?}");
    running.stop().await;
}

fn comment(id: i64, video: i64, text: &str) -> vidlog_events::Envelope {
    let posted = CommentPosted {
        comment_id: vidlog_events::CommentId::new(id).unwrap(),
        video_id: VideoId::new(video).unwrap(),
        user_id: UserId::new(1).unwrap(),
        text: Personal::new(text.to_owned()),
    };
    envelope(Event::Comment(CommentEvent::CommentPosted(posted)), T + id)
}

async fn comments_of(system: &TestSystem, video: i64) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM comments WHERE video_id = ?")
        .bind(video)
        .fetch_one(&system.target.mysql)
        .await
        .unwrap()
}

async fn alter(system: &TestSystem, statement: &'static str) {
    sqlx::query(statement).execute(&system.target.mysql).await.unwrap();
}

async fn likers(system: &TestSystem, video: i64) -> Vec<i64> {
    let key = system.target.keys.likers(video);
    let mut likers: Vec<i64> = system.target.redis.query(cmd("SMEMBERS").arg(&key)).await.unwrap();
    likers.sort_unstable();
    likers
}

/// The number of parked keys of the likes.
async fn parked_keys(system: &TestSystem) -> usize {
    let key = system.target.keys.parked(&vidlog_schemas::projections::LIKES);
    system.target.redis.query(cmd("HLEN").arg(&key)).await.unwrap()
}

/// The parked keys of a projection in the metrics of a process.
async fn parked_metric(ops: &str, projection: &str) -> Option<u32> {
    let metrics = get_metrics(ops).await?;
    let name = format!("projector_parked_keys{{projection=\"{projection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

/// Runs `projectors dead-letters`.
async fn command(system: &TestSystem, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_projectors"))
        .arg("dead-letters")
        .args(["--namespace", &system.stores.namespace])
        .env("VIDLOG_MYSQL_URL", system.stores.mysql_url.reveal())
        .args(arguments)
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap()
}

async fn listed(system: &TestSystem, projection: &str) -> Vec<serde_json::Value> {
    let output = command(system, &["list", projection, "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The dead letters of a projection in the topic of likes: partition, class and value.
fn dead_letters(system: &TestSystem, projection: &str) -> Vec<(i32, String, Vec<u8>)> {
    let topic = Topics::new(&system.stores.namespace).dead_letters(Stream::Likes);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &system.log.kafka_brokers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(&topic), DEADLINE).unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        list.add_partition_offset(&topic, partition.id(), rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut found, mut ends) = (Vec::new(), 0);
    while ends < list.count() {
        match consumer.poll(DEADLINE).expect("the broker answers") {
            Ok(message) => {
                let message = message.detach();
                let header = |name: &str| {
                    let headers = message.headers().unwrap();
                    let found = headers.iter().find(|header| header.key == name).unwrap();
                    String::from_utf8(found.value.unwrap().to_vec()).unwrap()
                };
                if header("dead_letter_projection") == projection {
                    let value = message.payload().unwrap_or_default().to_vec();
                    found.push((message.partition(), header("dead_letter_class"), value));
                }
            }
            Err(rdkafka::error::KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}
