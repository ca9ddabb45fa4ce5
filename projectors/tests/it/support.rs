//! A namespace per test with projections to run in it, and generated histories.

use std::{collections::BTreeSet, ops::Deref, process::Command};

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngSeed, TestRunner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use uuid::Uuid;
use vidlog_events::*;
use vidlog_projectors::{Plan, audit, projections, store::Stores, view::Projection};
use vidlog_service_kit::{config, ops::Readiness, shutdown::Shutdown};
use vidlog_test_support::{Namespace, namespace::delete_redis_keys};
use vidlog_test_support_kafka::Kafka;

pub(crate) use vidlog_test_support::{ChildProcess, DEADLINE, until};
pub(crate) use vidlog_test_support_kafka::{PARTITIONS, envelope, partition_of};

/// A namespace with its stores, tables and topics, all empty.
pub(crate) struct TestSystem {
    pub(crate) log: config::Kafka,
    pub(crate) stores: config::Stores,
    pub(crate) target: Stores,
    kafka: Kafka,
}

impl Deref for TestSystem {
    type Target = Kafka;

    fn deref(&self) -> &Kafka {
        &self.kafka
    }
}

impl TestSystem {
    pub(crate) async fn new() -> Self {
        Self::of(Namespace::create().await).await
    }

    /// The same on another Redis.
    pub(crate) async fn on_redis(url: String) -> Self {
        Self::of(Namespace::create_on_redis(url).await).await
    }

    async fn of(namespace: Namespace) -> Self {
        namespace.migrate().await;
        let kafka = Kafka::connect(&namespace.stores.namespace).await;
        kafka.create_topics().await;
        let Namespace { stores, keys, redis, mysql } = namespace;
        Self { log: kafka.settings.clone(), stores, target: Stores { keys, redis, mysql }, kafka }
    }

    /// Deletes every Redis key of the namespace, as FLUSHALL does.
    pub(crate) async fn delete_redis_keys(&self) {
        delete_redis_keys(&self.target.redis, &self.stores.namespace).await;
    }

    /// Instances in a projection's consumer group.
    pub(crate) fn group_members(&self, projection: &str) -> usize {
        self.kafka.group_members(&format!("{}.{projection}", self.stores.namespace))
    }

    /// Audits the views once they have caught up with the log; panics with the differences if there are any.
    pub(crate) async fn assert_views_equal_the_log(&self) -> audit::Report {
        let report = audit::audit(&self.log, &self.stores).await.unwrap();
        assert!(report.differences.is_empty(), "{:#?}", report.differences);
        report
    }

    /// The projectors program, with settings that point to the namespace.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_projectors"));
        command
            .args(arguments)
            .env("VIDLOG_NAMESPACE", &self.stores.namespace)
            .env("VIDLOG_MYSQL_URL", self.stores.mysql_url.reveal())
            .env("VIDLOG_REDIS_URL", self.stores.redis_url.reveal());
        command
    }

    /// Starts a projectors process with an ops port; returns the port's address too.
    pub(crate) async fn start_with_ops(&self, arguments: &[&str]) -> (ChildProcess, String) {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        (self.start_projectors(&free, arguments), free)
    }

    /// Starts a projectors process with an ops port at an address.
    pub(crate) fn start_projectors(&self, ops: &str, arguments: &[&str]) -> ChildProcess {
        let run = ["run", "--ops-listen", ops, "--log", "warn"];
        ChildProcess::spawn(&mut self.command(&[&run, arguments].concat()))
    }
}

/// Gets the metrics of a process.
pub(crate) async fn get_metrics(ops: &str) -> Option<String> {
    get(ops, "/metrics").await
}

/// Gets a path of an ops port: the head and the body of the answer.
pub(crate) async fn get(ops: &str, path: &str) -> Option<String> {
    let mut answer = String::new();
    let mut connection = TcpStream::connect(ops).await.ok()?;
    connection.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
    connection.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

/// Projections in this process.
pub(crate) struct Running {
    pub(crate) readiness: Readiness,
    shutdown: Shutdown,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(crate) fn start(system: &TestSystem) -> Self {
        Self::of(system, projections::ALL.to_vec())
    }

    pub(crate) fn of(system: &TestSystem, projections: Vec<Projection>) -> Self {
        let (readiness, shutdown) = (Readiness::new(), Shutdown::new());
        let (log, stores) = (system.log.clone(), system.stores.clone());
        let (ready, stop) = (readiness.clone(), shutdown.clone());
        let task = tokio::spawn(async move {
            let plan = Plan { log: &log, stores: &stores, projections: &projections, instance: None };
            vidlog_projectors::run(plan, ready, stop).await
        });
        Self { readiness, shutdown, task }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.request();
        timeout(DEADLINE, self.task).await.expect("the projections stop in time").unwrap().unwrap();
    }
}

/// A source of random cases. Prints its seed, which a failed test shows; `PROPTEST_RNG_SEED=<seed>` repeats the cases.
pub(crate) fn case_runner() -> TestRunner {
    let mut config = ProptestConfig::default();
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => Uuid::new_v4().as_u64_pair().0,
    };
    eprintln!("repeat the cases with PROPTEST_RNG_SEED={seed}");
    config.rng_seed = RngSeed::Fixed(seed);
    TestRunner::new(config)
}

/// A random history with more than half of the given length.
pub(crate) fn random_history(length: usize) -> Vec<Envelope> {
    let mut runner = case_runner();
    history(length)
        .prop_filter("long", move |events| events.len() > length / 2)
        .new_tree(&mut runner)
        .unwrap()
        .current()
}

/// Histories of few users and few videos, so that many events concern the same entities; some events are repeated later,
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

/// Whether an event may follow the earlier ones: the command side uploads a video once, before its outcome.
fn can_happen(event: &Event, uploaded: &mut BTreeSet<VideoId>) -> bool {
    match event {
        Event::Video(VideoEvent::VideoUploaded(event)) => uploaded.insert(event.video_id),
        Event::Video(VideoEvent::VideoPublished(event)) => uploaded.contains(&event.video_id),
        Event::Video(VideoEvent::VideoRejected(event)) => uploaded.contains(&event.video_id),
        _ => true,
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

/// Gives each message a unique id.
fn numbered(mut event: Event, number: usize) -> Event {
    if let Event::Message(MessageEvent::MessageSent(sent)) = &mut event {
        sent.message_id = MessageId::new(i64::try_from(number).unwrap() + 1).unwrap();
    }
    event
}
