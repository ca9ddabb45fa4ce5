//! A namespace of a test's own, a log to write to, and made-up histories.

use std::{collections::BTreeSet, time::Duration};

use clap::Parser;
use proptest::prelude::*;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
};
use uuid::Uuid;
use vidlog_events::*;
use vidlog_projectors::{audit, store::Stores};
use vidlog_redis_shards::Redis;
use vidlog_schemas::Keys;
use vidlog_service_kit::{config, mysql};

/// Partitions of a test's topics: enough that keys spread, few enough that many tests share one broker.
pub(crate) const PARTITIONS: i32 = 3;

/// A namespace with its stores, empty at first.
pub(crate) struct World {
    pub(crate) log: config::Log,
    pub(crate) stores: config::Stores,
    pub(crate) target: Stores,
    producer: FutureProducer,
}

#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    log: config::Log,
    #[command(flatten)]
    stores: config::Stores,
}

impl Environment {
    fn read() -> Self {
        Self::try_parse_from(["test"])
            .unwrap_or_else(|error| panic!("the tests need Kafka, MySQL and Redis, see `make test`: {error}"))
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let Environment { log, stores } = Environment::read();
        Self::create(log, stores).await
    }

    /// The same with a Redis of the test's own.
    pub(crate) async fn on_redis(url: String) -> Self {
        let Environment { log, mut stores } = Environment::read();
        stores.redis_url = url.into();
        Self::create(log, stores).await
    }

    async fn create(log: config::Log, mut stores: config::Stores) -> Self {
        stores.namespace = format!("t{}", Uuid::now_v7().simple());
        let (server, _) = stores.mysql_url.reveal().rsplit_once('/').unwrap();
        let database_url = format!("{server}/{}", stores.namespace);
        let admin = mysql::open(stores.mysql_url.reveal(), 1).unwrap();
        let create = format!("CREATE DATABASE {}", stores.namespace);
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&admin).await.unwrap();
        stores.mysql_url = database_url.into();

        let mysql = mysql::open(stores.mysql_url.reveal(), 8).unwrap();
        vidlog_schemas::MIGRATOR.run(&mysql).await.unwrap();
        let target = Stores {
            keys: Keys::new(&stores.namespace, stores.shards),
            redis: Redis::open(stores.redis_url.reveal()).unwrap(),
            mysql,
        };
        let world = Self { producer: client(&log).create().unwrap(), log, stores, target };
        world.create_topics().await;
        world
    }

    async fn create_topics(&self) {
        let topics = Topics::new(&self.stores.namespace);
        let admin: AdminClient<DefaultClientContext> = client(&self.log).create().unwrap();
        let names: Vec<_> = Stream::ALL.map(|stream| topics.name(stream)).into();
        let new: Vec<_> =
            names.iter().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))).collect();
        for created in admin.create_topics(&new, &AdminOptions::new()).await.unwrap() {
            created.unwrap();
        }
        self.until_there_are_leaders().await;
    }

    /// A new partition has no leader for a moment, and nothing can be asked of it.
    async fn until_there_are_leaders(&self) {
        let (brokers, topics) = (self.log.kafka_brokers.clone(), Topics::new(&self.stores.namespace));
        let log = vidlog_projectors::log::Log { brokers, topics };
        let asked = async {
            while log.ends(Stream::ALL.to_vec()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(3), asked).await.expect("every partition has a leader");
    }

    /// Deletes a topic, and makes one of the same name.
    pub(crate) async fn make_topic_anew(&self, stream: Stream) {
        let topic = Topics::new(&self.stores.namespace).name(stream);
        let admin: AdminClient<DefaultClientContext> = client(&self.log).create().unwrap();
        admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        let made = async {
            let new = [NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1))];
            while admin.create_topics(&new, &AdminOptions::new()).await.unwrap().remove(0).is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(3), made).await.unwrap();
        self.until_there_are_leaders().await;
    }

    /// Appends events in order; returns when the broker has all of them.
    pub(crate) async fn append(&self, events: &[Envelope]) {
        self.append_by(&self.producer, events).await;
    }

    /// Appends events in a transaction, and leaves it open. Returns its producer.
    pub(crate) async fn append_in_transaction(&self, events: &[Envelope]) -> FutureProducer {
        let id = Uuid::now_v7().to_string();
        let producer: FutureProducer = client(&self.log).set("transactional.id", id).create().unwrap();
        producer.init_transactions(Duration::from_secs(30)).unwrap();
        producer.begin_transaction().unwrap();
        self.append_by(&producer, events).await;
        producer
    }

    /// Appends a record to each partition of a stream's dead letters, in a transaction that is aborted.
    pub(crate) async fn abort_in_dead_letters(&self, stream: Stream) {
        let topic = Topics::new(&self.stores.namespace).dead_letters(stream);
        let producer = self.append_in_transaction(&[]).await;
        for partition in 0..PARTITIONS {
            let record = FutureRecord::to(&topic).key("1").payload("{").partition(partition);
            producer.send(record, Duration::from_secs(5)).await.map_err(|(error, _)| error).unwrap();
        }
        producer.abort_transaction(Duration::from_secs(30)).unwrap();
    }

    /// Deletes the records of a stream before some offsets, by partition.
    pub(crate) async fn delete_records(&self, stream: Stream, before: &[(i32, Offset)]) {
        let topic = Topics::new(&self.stores.namespace).name(stream);
        let admin: AdminClient<DefaultClientContext> = client(&self.log).create().unwrap();
        let mut list = TopicPartitionList::new();
        for (partition, offset) in before {
            list.add_partition_offset(&topic, *partition, *offset).unwrap();
        }
        admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
    }

    /// The first offset and the end of each partition of a stream.
    pub(crate) fn watermarks(&self, stream: Stream) -> Vec<(i64, i64)> {
        let topic = Topics::new(&self.stores.namespace).name(stream);
        let consumer: BaseConsumer = client(&self.log).create().unwrap();
        (0..PARTITIONS)
            .map(|number| consumer.fetch_watermarks(&topic, number, Duration::from_secs(30)).unwrap())
            .collect()
    }

    async fn append_by(&self, producer: &FutureProducer, events: &[Envelope]) {
        let topics = Topics::new(&self.stores.namespace);
        let mut acknowledged = Vec::new();
        for envelope in events {
            let record = envelope.encode().unwrap();
            let mut headers = OwnedHeaders::new();
            for (key, value) in &record.headers {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            let topic = topics.name(record.stream);
            let record = FutureRecord::to(&topic)
                .key(&record.key)
                .payload(&record.value)
                .timestamp(record.timestamp_ms)
                .headers(headers);
            acknowledged.push(producer.send_result(record).map_err(|(error, _)| error).unwrap());
        }
        for delivery in acknowledged {
            delivery.await.unwrap().map_err(|(error, _)| error).unwrap();
        }
    }

    /// Appends what is no event; returns the partition that it is in.
    pub(crate) async fn append_garbage(&self, stream: Stream, key: &str) -> i32 {
        let topic = Topics::new(&self.stores.namespace).name(stream);
        let record = FutureRecord::to(&topic).key(key).payload("{");
        let sent = self.producer.send(record, Duration::from_secs(5)).await;
        sent.map_err(|(error, _)| error).unwrap().partition
    }

    /// Adds a partition to a topic, and appends what is no event to it.
    pub(crate) async fn append_garbage_to_another_partition(&self, stream: Stream) -> i32 {
        let topic = Topics::new(&self.stores.namespace).name(stream);
        let admin: AdminClient<DefaultClientContext> = client(&self.log).create().unwrap();
        let more = NewPartitions::new(&topic, usize::try_from(PARTITIONS).unwrap() + 1);
        admin.create_partitions([&more], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
        self.until_there_are_leaders().await;
        // One that knows of the partition.
        let producer: FutureProducer = client(&self.log).create().unwrap();
        let record = FutureRecord::to(&topic).key("1").payload("{").partition(PARTITIONS);
        let sent = producer.send(record, Duration::from_secs(5)).await;
        sent.map_err(|(error, _)| error).unwrap().partition
    }

    /// The partition of a key: as the producers find it, by murmur2.
    pub(crate) fn partition_of(key: &str) -> i32 {
        i32::try_from((murmur2(key.as_bytes()) & 0x7fff_ffff) % u32::try_from(PARTITIONS).unwrap()).unwrap()
    }

    /// Audits the views, which have to come up with the log; panics with the differences if there are any.
    pub(crate) async fn assert_views_equal_the_log(&self) -> audit::Report {
        let report = audit::audit(&self.log, &self.stores).await.unwrap();
        assert!(report.differences.is_empty(), "{:#?}", report.differences);
        report
    }
}

fn murmur2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(bytes.len()).unwrap();
    let mut chunks = bytes.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

fn client(log: &config::Log) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &log.kafka_brokers)
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random");
    config
}

/// Histories in which few users do much to few videos, so that everything collides; some events are repeated later,
/// as after an append whose acknowledgement was lost.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Envelope>> {
    let step = (event(), 0..1000_i64, prop::option::weighted(0.1, any::<prop::sample::Index>()));
    prop::collection::vec(step, length / 2..=length).prop_map(|steps| {
        let mut time_ms = 1_700_000_000_000;
        let mut uploaded = BTreeSet::new();
        let mut envelopes: Vec<Envelope> = Vec::new();
        for (number, (event, pause, repeated)) in steps.into_iter().enumerate() {
            time_ms += pause;
            match repeated {
                Some(index) if !envelopes.is_empty() => {
                    envelopes.push(index.get(&envelopes).clone());
                }
                _ if can_happen(&event, &mut uploaded) => {
                    envelopes.push(envelope(numbered(event, number), time_ms));
                }
                _ => {}
            }
        }
        envelopes
    })
}

/// A video is uploaded once, and its one outcome follows: who appends them makes sure of that.
fn can_happen(event: &Event, uploaded: &mut BTreeSet<VideoId>) -> bool {
    match event {
        Event::Video(VideoEvent::VideoUploaded(event)) => uploaded.insert(event.video_id),
        Event::Video(VideoEvent::VideoPublished(event)) => uploaded.contains(&event.video_id),
        Event::Video(VideoEvent::VideoRejected(event)) => uploaded.contains(&event.video_id),
        _ => true,
    }
}

pub(crate) fn envelope(event: Event, time_ms: i64) -> Envelope {
    Envelope {
        id: Uuid::now_v7(),
        source: "test".to_owned(),
        time_ms,
        traceparent: None,
        correlation_id: None,
        causation_id: None,
        event,
    }
}

pub(crate) fn liked(video: i64, user: i64) -> Event {
    Event::Like(LikeEvent::VideoLiked(VideoLiked {
        video_id: VideoId::new(video).unwrap(),
        user_id: UserId::new(user).unwrap(),
        author_id: author(video),
    }))
}

pub(crate) fn unliked(video: i64, user: i64) -> Event {
    Event::Like(LikeEvent::VideoUnliked(VideoUnliked {
        video_id: VideoId::new(video).unwrap(),
        user_id: UserId::new(user).unwrap(),
        author_id: author(video),
    }))
}

/// Every video has one author; three videos share one.
fn author(video: i64) -> UserId {
    UserId::new(100 + video % 2).unwrap()
}

fn event() -> impl Strategy<Value = Event> {
    let (user, other, video) = (1..6_i64, 1..6_i64, 1..6_i64);
    (0..14_u8, user, other, video).prop_map(|(kind, user, other, video)| {
        let other = if user == other { 6 } else { other };
        let (user_id, other_id) = (UserId::new(user).unwrap(), UserId::new(other).unwrap());
        let (video_id, author_id) = (VideoId::new(video).unwrap(), author(video));
        let comment_id = CommentId::new(video * 100 + other).unwrap();
        let text = Personal::new(format!("text {user} “{other}”"));
        match kind {
            0 => Event::User(UserEvent::UserRegistered(UserRegistered { user_id, name: text })),
            1 | 2 => {
                let original_key = format!("originals/{video}");
                Event::Video(VideoEvent::VideoUploaded(VideoUploaded {
                    video_id,
                    author_id,
                    title: text,
                    original_key,
                }))
            }
            3 | 4 if video == 1 => Event::Video(VideoEvent::VideoRejected(VideoRejected {
                video_id,
                author_id,
                reason: "not a video".to_owned(),
            })),
            3 | 4 => Event::Video(VideoEvent::VideoPublished(VideoPublished {
                video_id,
                author_id,
                play_key: format!("videos/{video}.mp4"),
                cover_key: format!("covers/{video}.jpg"),
                // Two videos a week.
                published_ms: 1_700_000_000_000 + (video / 2) * 604_800_000 + video,
            })),
            5 | 6 => liked(video, user),
            7 => unliked(video, user),
            8 | 9 => Event::Follow(FollowEvent::UserFollowed(UserFollowed {
                follower_id: user_id,
                followee_id: other_id,
            })),
            10 => Event::Follow(FollowEvent::UserUnfollowed(UserUnfollowed {
                follower_id: user_id,
                followee_id: other_id,
            })),
            11 => Event::Comment(CommentEvent::CommentPosted(CommentPosted {
                comment_id,
                video_id,
                user_id,
                text,
            })),
            12 => Event::Comment(CommentEvent::CommentDeleted(CommentDeleted {
                comment_id,
                video_id,
                deleted_by: user_id,
            })),
            _ => Event::Message(MessageEvent::MessageSent(MessageSent {
                message_id: MessageId::new(1).unwrap(),
                from_user_id: user_id,
                to_user_id: other_id,
                content: text,
            })),
        }
    })
}

/// Gives messages ids of their own.
fn numbered(mut event: Event, number: usize) -> Event {
    if let Event::Message(MessageEvent::MessageSent(sent)) = &mut event {
        sent.message_id = MessageId::new(i64::try_from(number).unwrap() + 1).unwrap();
    }
    event
}
