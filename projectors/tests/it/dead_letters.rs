//! Dead letters: what can't be folded waits with all that comes behind it, everything else goes on, and a retry brings
//! the view to what it would have been.

use std::process::Output;

use rdkafka::{
    ClientConfig, Message, Timestamp,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, OwnedMessage},
};
use redis::cmd;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};
use vidlog_events::{CommentEvent, CommentPosted, Event, Personal, Stream, Topics, UserId, VideoId};
use vidlog_projectors::{
    dead_letters::DeadLetterQueue,
    desired_state,
    log::{Log, Partition},
    store::{Class, Failure},
};

use crate::support::{DEADLINE, Running, World, envelope, liked, partition_of, until};

const T: i64 = 1_700_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn undecodable_record_parks_only_its_key() {
    let world = World::new().await;
    let running = Running::start(&world);
    // One partition: an undecodable record of one key, and likes of this key and of another.
    world.append(&[envelope(liked(1, 1), T)]).await;
    let partition = world.append_garbage(Stream::Likes, "1").await;
    let other = (2..1000).find(|video| partition_of(&video.to_string()) == partition).unwrap();
    world.append(&[envelope(liked(1, 2), T + 1), envelope(liked(other, 2), T + 2)]).await;

    until("the other key is folded", async || likers(&world, other).await == [2]).await;
    assert_eq!(likers(&world, 1).await, [1], "later records of the parked key wait");
    // A parked key does not affect readiness.
    until("the projections are ready", async || running.readiness.missing().is_none()).await;

    let listed = listed(&world, "likes").await;
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0]["key"], &listed[0]["class"]), (&"1".into(), &"undecodable".into()));
    assert_eq!(listed[0]["waiting"], 2);
    let letters = letters(&world, "likes");
    let classes: Vec<_> = letters.iter().map(|(partition, class, _)| (*partition, class.as_str())).collect();
    assert_eq!(classes, [(partition, "undecodable"), (partition, "behind")]);

    world.assert_views_equal_the_log().await;
    // A retry cannot decode the record.
    let retried = command(&world, &["retry", "likes"]).await;
    assert_eq!(retried.status.code(), Some(1), "{retried:?}");
    let place =
        [&listed[0]["partition"], &listed[0]["first_offset"]].map(|part| part.to_string().replace('"', ""));
    for projection in ["likes", "likes-table"] {
        let discarded = command(&world, &["discard", projection, &place[0], &place[1]]).await;
        assert!(discarded.status.success(), "{discarded:?}");
    }
    assert_eq!(likers(&world, 1).await, [1, 2]);
    world.append(&[envelope(liked(1, 3), T + 3)]).await;
    until("the key is folded again", async || likers(&world, 1).await == [1, 2, 3]).await;
    world.assert_views_equal_the_log().await;
    assert!(self::listed(&world, "likes").await.is_empty());

    // A refill of the view does not park discarded records again.
    world.delete_redis_keys().await;
    until("the view is refilled", async || likers(&world, 1).await == [1, 2, 3]).await;
    world.assert_views_equal_the_log().await;
    assert!(self::listed(&world, "likes").await.is_empty());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_a_fix_makes_mysql_view_exact() {
    let world = World::new().await;
    alter(&world, "ALTER TABLE comments MODIFY text VARCHAR(5) NOT NULL").await;
    let running = Running::start(&world);
    let mut comments: Vec<_> = (1..40).map(|id| comment(id, id % 3 + 1, "short")).collect();
    comments.insert(7, comment(101, 1, "a long one"));
    comments.insert(20, comment(102, 1, "another long one"));
    comments.insert(22, comment(103, 2, "a long one"));
    world.append(&comments).await;
    world.assert_views_equal_the_log().await;
    let parked = listed(&world, "comments-table").await;
    let keys: Vec<_> = parked.iter().map(|key| (key["key"].as_str(), key["class"].as_str())).collect();
    assert_eq!(keys.len(), 2, "{parked:?}");
    assert!(keys.contains(&(Some("1"), Some("unfoldable"))), "{parked:?}");
    assert_eq!(comments_of(&world, 3).await, 13, "the third key is folded");

    // A partial fix: only one of the keys can be retried.
    alter(&world, "ALTER TABLE comments MODIFY text VARCHAR(12) NOT NULL").await;
    let retried = command(&world, &["retry", "comments-table"]).await;
    assert_eq!(retried.status.code(), Some(1));
    world.assert_views_equal_the_log().await;
    assert_eq!(listed(&world, "comments-table").await.len(), 1);

    // Retries while further records of the key arrive.
    alter(&world, "ALTER TABLE comments MODIFY text VARCHAR(255) NOT NULL").await;
    let (append, retry) = tokio::join!(
        async {
            for id in 200..400 {
                world.append(&[comment(id, 1, "long enough to be too long")]).await;
            }
        },
        command(&world, &["retry", "comments-table", "--key", "1"]),
    );
    let () = append;
    assert!(retry.status.success(), "{retry:?}");
    assert!(listed(&world, "comments-table").await.is_empty());
    world.assert_views_equal_the_log().await;
    assert_eq!(comments_of(&world, 1).await, 13 + 2 + 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_key_leaves_the_parked_metric() {
    let world = World::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let _process = world.start_projectors(&free, &[]);
    world.append_garbage(Stream::Likes, "1").await;
    for projection in ["likes", "likes-table"] {
        until("the metric counts the key", async || parked_metric(&free, projection).await == Some(1)).await;
        let parked = listed(&world, projection).await;
        let place = [&parked[0]["partition"], &parked[0]["first_offset"]].map(ToString::to_string);
        let [partition, offset] = place.map(|part| part.replace('"', ""));
        let discarded = command(&world, &["discard", projection, &partition, &offset]).await;
        assert!(discarded.status.success(), "{discarded:?}");
        // Without further records of the key.
        until("the metric drops the key", async || parked_metric(&free, projection).await == Some(0)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_retry_of_one_key_does_not_block_others() {
    let world = World::new().await;
    let running = Running::start(&world);
    for key in ["1", "2", "3"] {
        world.append_garbage(Stream::Likes, key).await;
    }
    until("all keys are parked", async || listed(&world, "likes-table").await.len() == 3).await;
    alter(&world, "UPDATE parked_likes_table SET waiting = waiting + 1 WHERE record_key = '2'").await;
    let retried = command(&world, &["retry", "likes-table"]).await;
    assert_eq!(retried.status.code(), Some(1), "{retried:?}");
    let out = String::from_utf8(retried.stdout).unwrap();
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("key 2: 2 wait, but the dead letters have 1"), "{out}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_outage_does_not_hide_mysql_dead_letters() {
    let world = World::new().await;
    let running = Running::start(&world);
    let partition = world.append_garbage(Stream::Likes, "1").await;
    until("the key is parked", async || listed(&world, "likes").await.len() == 1).await;
    // The refill produces the dead letter again.
    world.delete_redis_keys().await;
    until("the key is parked again", async || {
        let waits = listed(&world, "likes").await.len() + listed(&world, "likes-table").await.len();
        letters(&world, "likes").len() == 2 && waits == 2
    })
    .await;
    let shown = command(&world, &["show", "likes", &format!("likes:{partition}"), "0"]).await;
    assert_eq!(
        String::from_utf8_lossy(&shown.stdout).matches("dead_letter_offset: 0").count(),
        1,
        "{shown:?}"
    );

    let nowhere = command(&world, &["--redis-url", "redis://127.0.0.1:1/", "list", "--json"]).await;
    assert_eq!(nowhere.status.code(), Some(1), "{nowhere:?}");
    let known: Vec<serde_json::Value> = serde_json::from_slice(&nowhere.stdout).unwrap();
    assert_eq!((known.len(), &known[0]["projection"]), (1, &"likes-table".into()));
    assert!(
        String::from_utf8_lossy(&nowhere.stderr).contains("not known: what waits of likes"),
        "{nowhere:?}"
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_during_parking_keep_record_order() {
    let world = World::new().await;
    let mut process = world.start_projectors("127.0.0.1:0", &[]);
    let mut time = T;
    for round in 0..4 {
        for video in 1..=30 {
            time += 1;
            if video % 10 == round {
                world.append_garbage(Stream::Likes, &video.to_string()).await;
            }
            world.append(&[envelope(liked(video, time - T), time)]).await;
        }
        // The kill is while keys are being parked.
        let keys = usize::try_from(round).unwrap();
        until("keys are parked", async || parked_keys(&world).await > keys * 2).await;
        process.kill();
        process = world.start_projectors("127.0.0.1:0", &[]);
    }
    world.assert_views_equal_the_log().await;
    assert_eq!(listed(&world, "likes").await.len(), 12);
    assert_eq!(listed(&world, "likes-table").await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn consecutive_failures_stop_the_projection_until_resumed() {
    let world = World::new().await;
    let running = Running::start(&world);
    for _ in 0..30 {
        world.append_garbage(Stream::Likes, "1").await;
    }
    let names = ["likes", "likes-table", "top-videos"];
    until("all projections of likes are stopped", async || {
        let wanted = desired_state::read(&world.target.mysql).await.unwrap();
        let wish = |name: &str| wanted.get(name).map(|wanted| wanted.run_state.clone());
        names.iter().all(|name| matches!(wish(name), Some(desired_state::RunState::Stopped(_))))
    })
    .await;
    let is_reported =
        async || running.readiness.missing().is_some_and(|missing| missing.contains("one after the other"));
    until("the reason is reported", is_reported).await;
    for projection in names.map(|name| vidlog_projectors::projections::find(name).unwrap()) {
        desired_state::resume(&world.target.mysql, &projection).await.unwrap();
    }
    until("the projections are ready", async || running.readiness.missing().is_none()).await;
    world.assert_views_equal_the_log().await;

    // Failures before the resume do not stop the projection again during a refill.
    world.delete_redis_keys().await;
    let is_back = async || {
        let parked = self::listed(&world, "likes").await;
        parked.first().is_some_and(|parked| parked["waiting"] == 30) && running.readiness.missing().is_none()
    };
    until("the view is refilled", is_back).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_follow_their_origin_to_more_partitions() {
    let world = World::new().await;
    let running = Running::start(&world);
    world.append_garbage(Stream::Likes, "1").await;
    until("a key is parked", async || listed(&world, "likes").await.len() == 1).await;
    running.stop().await;
    // Of a process that goes on, which has sent letters before.
    let (brokers, topics) = (world.log.kafka_brokers.clone(), Topics::new(&world.stores.namespace));
    let post = DeadLetterQueue::new(Log { brokers, topics });
    let sent = async |number| {
        let letter = OwnedMessage::new(None, None, String::new(), Timestamp::NotAvailable, number, 0, None);
        let failure = Failure::new(Class::Undecodable, "no event");
        let partition = Partition { stream: Stream::Likes, number };
        post.send("nobody", partition, &[(&letter, failure)]).await.is_ok()
    };
    assert!(sent(0).await);

    let partition = world.append_garbage_to_new_partition(Stream::Likes).await;
    until("it sends letters from the new one", async || sent(partition).await).await;
    let running = Running::start(&world);
    until("both keys are parked", async || {
        listed(&world, "likes").await.len() == 2 && listed(&world, "likes-table").await.len() == 2
    })
    .await;
    until("the projections are ready", async || running.readiness.missing().is_none()).await;
    let letters = letters(&world, "likes");
    assert!(letters.iter().any(|(of, class, _)| *of == partition && class == "undecodable"), "{letters:?}");
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

async fn comments_of(world: &World, video: i64) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM comments WHERE video_id = ?")
        .bind(video)
        .fetch_one(&world.target.mysql)
        .await
        .unwrap()
}

async fn alter(world: &World, statement: &'static str) {
    sqlx::query(statement).execute(&world.target.mysql).await.unwrap();
}

async fn likers(world: &World, video: i64) -> Vec<i64> {
    let key = world.target.keys.likers(video);
    let mut likers: Vec<i64> = world.target.redis.query(cmd("SMEMBERS").arg(&key)).await.unwrap();
    likers.sort_unstable();
    likers
}

/// Keys that are parked of the likes.
async fn parked_keys(world: &World) -> usize {
    let key = world.target.keys.parked(&vidlog_schemas::projections::LIKES);
    world.target.redis.query(cmd("HLEN").arg(&key)).await.unwrap()
}

/// Keys that a process counts as parked of a projection.
async fn parked_metric(ops: &str, projection: &str) -> Option<u32> {
    let mut metrics = String::new();
    let mut connection = TcpStream::connect(ops).await.ok()?;
    connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
    connection.read_to_string(&mut metrics).await.ok()?;
    let name = format!("projector_parked_keys{{projection=\"{projection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

/// Runs `projectors dead-letters`.
async fn command(world: &World, arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_projectors"))
        .arg("dead-letters")
        .args(["--namespace", &world.stores.namespace])
        .env("VIDLOG_MYSQL_URL", world.stores.mysql_url.reveal())
        .args(arguments)
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap()
}

async fn listed(world: &World, projection: &str) -> Vec<serde_json::Value> {
    let output = command(world, &["list", projection, "--json"]).await;
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The dead letters of the likes that a projection has: partition, class and value.
fn letters(world: &World, projection: &str) -> Vec<(i32, String, Vec<u8>)> {
    let topic = Topics::new(&world.stores.namespace).dead_letters(Stream::Likes);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &world.log.kafka_brokers)
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
