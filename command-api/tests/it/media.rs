//! The media worker.

use std::{collections::HashSet, num::NonZeroUsize, path::Path as FilePath, sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream};
use metrics_exporter_prometheus::PrometheusBuilder;
use object_store::{ObjectStoreExt, path::Path};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, task::JoinHandle};
use uuid::Uuid;
use vidlog_command_api::{
    commands::publish::original_key,
    media::{
        self, Limits, MediaConfig, MediaContext, UploadSource,
        jobs::{JobStore, NewJob},
        outcomes::{OutcomeStore, Upload, Verdict},
        retry::{Failure, History, Reason},
    },
    publisher::{AppendError, Appended, EventLog},
};
use vidlog_events::{
    Envelope, Event, Personal, Stream, UserId, VideoEvent, VideoId, VideoPublished, VideoUploaded,
};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use crate::support::{Api, World, until};

/// A worker that runs until the test stops it.
struct Worker {
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
    readiness: Readiness,
}

/// Limits with short delays.
fn limits() -> Limits {
    Limits {
        max_missing: 2,
        initial_backoff: Duration::from_millis(20),
        poll_interval: Duration::from_millis(20),
        ..Limits::default()
    }
}

impl Worker {
    fn start(world: &World, api: &Api) -> Self {
        Self::start_with(world, MediaContext { limits: limits(), ..MediaContext::from_state(&api.state) })
    }

    /// A worker that processes one upload at a time.
    fn start_with(world: &World, media: MediaContext) -> Self {
        let (log, namespace) = (world.kafka(), world.stores.namespace.clone());
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let readiness = Readiness::new();
        let reports = readiness.clone();
        let running = tokio::spawn(async move {
            let uploads = UploadSource { log: &log, namespace: &namespace };
            let config = MediaConfig { media_concurrency: NonZeroUsize::new(1) };
            media::run(config, uploads, media, reports, stop).await
        });
        Self { shutdown, running, readiness }
    }

    async fn stop(self) {
        self.shutdown.request();
        self.running.await.unwrap().unwrap();
    }
}

fn upload(id: i64) -> Envelope {
    upload_of(7, id)
}

fn upload_of(author: i64, id: i64) -> Envelope {
    let video_id = VideoId::new(id).unwrap();
    let event = VideoUploaded {
        video_id,
        author_id: UserId::new(author).unwrap(),
        title: Personal::new("a title".to_owned()),
        original_key: original_key(video_id, Uuid::new_v4()),
    };
    Envelope {
        id: Uuid::now_v7(),
        source: "test".to_owned(),
        time_ms: 1_700_000_000_000,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        correlation_id: Some("a request".to_owned()),
        causation_id: None,
        event: Event::Video(VideoEvent::VideoUploaded(event)),
    }
}

fn original_of(envelope: &Envelope) -> Path {
    match &envelope.event {
        Event::Video(VideoEvent::VideoUploaded(uploaded)) => Path::from(uploaded.original_key.as_str()),
        event => panic!("{event:?}"),
    }
}

/// Stores an original and appends its event.
async fn upload_file(api: &Api, id: i64, content: Vec<u8>) -> Envelope {
    let envelope = upload(id);
    api.state.objects.put(&original_of(&envelope), content.into()).await.unwrap();
    api.state.log.append(&envelope).await.unwrap();
    envelope
}

/// The outcome events in the log, including repetitions.
async fn outcomes(world: &World) -> Vec<Envelope> {
    let is_outcome =
        |envelope: &Envelope| !matches!(envelope.event, Event::Video(VideoEvent::VideoUploaded(_)));
    let logged = world.log.read(Stream::Videos).await.into_iter().map(|logged| logged.envelope);
    logged.filter(is_outcome).collect()
}

async fn until_finalized(world: &World, count: usize) -> Vec<Envelope> {
    until("all uploads are finalized", async || finalized_count(world).await >= count).await;
    outcomes(world).await
}

async fn finalized_count(world: &World) -> usize {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM media_outcomes WHERE appended")
        .fetch_one(&world.mysql)
        .await
        .unwrap();
    usize::try_from(count).unwrap()
}

fn reason(envelope: &Envelope) -> (i64, &str) {
    match &envelope.event {
        Event::Video(VideoEvent::VideoRejected(rejected)) => (rejected.video_id.get(), &rejected.reason),
        event => panic!("{event:?}"),
    }
}

fn published(envelope: &Envelope) -> &VideoPublished {
    match &envelope.event {
        Event::Video(VideoEvent::VideoPublished(published)) => published,
        event => panic!("{event:?}"),
    }
}

/// A file that ffmpeg generates.
async fn generated(arguments: &str) -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("made");
    let status = Command::new("ffmpeg")
        .args(["-loglevel", "error", "-nostdin"])
        .args(arguments.split(' '))
        .arg(&file)
        .status()
        .await
        .unwrap();
    assert!(status.success());
    tokio::fs::read(file).await.unwrap()
}

/// A video of two seconds.
async fn video() -> Vec<u8> {
    generated(
        "-f lavfi -i testsrc=size=320x240:rate=25 -f lavfi -i sine -t 2 -codec:v mpeg4 -codec:a mp3 -f avi",
    )
    .await
}

async fn probe(file: &FilePath) -> Value {
    let output = Command::new("ffprobe")
        .args(["-loglevel", "error", "-show_streams", "-show_format", "-of", "json"])
        .arg(file)
        .output()
        .await
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sums of the committed offsets and of the end offsets of the namespace's video topic.
fn committed(world: &World) -> (i64, i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &world.log.settings.kafka_brokers)
        .set("group.id", format!("{}.media-worker", world.stores.namespace))
        .create()
        .unwrap();
    let topic = world.log.topics.name(Stream::Videos);
    let timeout = Duration::from_mins(1);
    let (mut list, mut ends) = (TopicPartitionList::new(), 0);
    for partition in 0..crate::support::PARTITIONS {
        list.add_partition(&topic, partition);
        ends += consumer.fetch_watermarks(&topic, partition, timeout).unwrap().1;
    }
    let committed = consumer.committed_offsets(list, timeout).unwrap();
    let offset = |offset| if let Offset::Offset(offset) = offset { offset } else { 0 };
    (committed.elements().iter().map(|element| offset(element.offset())).sum(), ends)
}

#[tokio::test]
async fn video_is_published_with_playable_file_and_cover() {
    let (world, api) = World::with_api().await;
    let upload = upload_file(&api, 9, video().await).await;
    let worker = Worker::start(&world, &api);
    let outcomes = until_finalized(&world, 1).await;
    let (envelope, published) = (&outcomes[0], published(&outcomes[0]));
    assert_eq!((published.video_id.get(), published.author_id.get()), (9, 7));
    assert_eq!(envelope.causation_id, Some(upload.id.to_string()));
    assert_eq!(
        (&envelope.correlation_id, &envelope.traceparent),
        (&upload.correlation_id, &upload.traceparent)
    );
    assert_eq!(world.marks("user:7").await, world.marks("video:9").await);
    assert_eq!(world.marks("video:9").await.len(), 1);

    let folder = TempDir::new().unwrap();
    for key in [&published.play_key, &published.cover_key] {
        let object = api.state.objects.get(&Path::from(key.as_str())).await.unwrap();
        let name = key.rsplit_once('.').unwrap().1;
        tokio::fs::write(folder.path().join(name), object.bytes().await.unwrap()).await.unwrap();
    }
    let facts = probe(&folder.path().join("mp4")).await;
    let codecs: Vec<_> = [0, 1].map(|stream| facts["streams"][stream]["codec_name"].as_str().unwrap()).into();
    assert_eq!(codecs, ["h264", "aac"]);
    let seconds: f64 = facts["format"]["duration"].as_str().unwrap().parse().unwrap();
    assert!((1.9..2.2).contains(&seconds), "{seconds}");
    assert_eq!(probe(&folder.path().join("jpg")).await["streams"][0]["codec_name"], "mjpeg");

    until("all offsets are committed", async || matches!(committed(&world), (2, 2))).await;
    worker.stop().await;
}

#[tokio::test]
async fn non_video_is_rejected_without_internal_details() {
    let (world, api) = World::with_api().await;
    let playlist = "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10,\n/etc/passwd\n#EXT-X-ENDLIST\n";
    let mut truncated =
        generated("-f lavfi -i testsrc=size=320x240:rate=25 -t 2 -codec:v mpeg4 -f mp4").await;
    truncated.truncate(truncated.len() / 2);
    let picture = generated("-f lavfi -i testsrc=size=64x48 -frames:v 1 -codec:v png -f image2pipe").await;
    let contents = [b"Just a text.".to_vec(), playlist.into(), truncated, picture];
    for (id, content) in (1..).zip(contents) {
        upload_file(&api, id, content).await;
    }
    let worker = Worker::start(&world, &api);
    let outcomes = until_finalized(&world, 4).await;
    assert_eq!(outcomes.len(), 4);
    for envelope in &outcomes {
        let (_, reason) = reason(envelope);
        assert!(reason.starts_with("This file can't be read as a video."), "{reason}");
        assert!(!reason.contains('/') && !reason.contains("root"), "{reason}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn stored_outcome_is_appended_unchanged_after_a_crash() {
    let (world, api) = World::with_api().await;
    let store = OutcomeStore::new(world.mysql.clone());
    let verdict =
        Verdict::Publish { play_key: "videos/a.mp4".to_owned(), cover_key: "covers/a.jpg".to_owned() };
    let mut stored = Vec::new();
    for id in [1, 2] {
        let upload = Upload::from_envelope(upload_file(&api, id, b"not read".to_vec()).await).unwrap();
        stored.push(store.decide(&upload, verdict.clone(), 1_700_000_000_000).await.unwrap().envelope);
    }
    // The second outcome is also marked as appended.
    api.state.log.append(&stored[1]).await.unwrap();
    store.mark_appended(VideoId::new(2).unwrap()).await.unwrap();
    let worker = Worker::start(&world, &api);
    until("all offsets are committed", async || matches!(committed(&world), (4, 4))).await;
    let mut outcomes = outcomes(&world).await;
    outcomes.sort_by_key(|envelope| published(envelope).video_id);
    assert_eq!(outcomes, stored);
    worker.stop().await;
}

#[tokio::test]
async fn concurrent_decisions_return_the_first_outcome() {
    let (world, _api) = World::with_api().await;
    let upload = Upload::from_envelope(upload(9)).unwrap();
    let decisions = (0..16).map(|number| {
        let (store, upload) = (OutcomeStore::new(world.mysql.clone()), upload.clone());
        let verdict = match number % 2 {
            0 => Verdict::Publish { play_key: format!("videos/{number}"), cover_key: "c".to_owned() },
            _ => Verdict::Reject { reason: number.to_string() },
        };
        async move { store.decide(&upload, verdict, 1_700_000_000_000 + number).await.unwrap().envelope }
    });
    let decided = futures::future::join_all(decisions).await;
    assert!(decided.iter().all(|envelope| *envelope == decided[0]));
}

#[tokio::test]
async fn publish_times_are_unique() {
    let (world, api) = World::with_api().await;
    let now_ms = 1_700_000_000_000;
    let decide = |id: i64| {
        let store = OutcomeStore::new(api.state.mysql.clone());
        let upload = Upload::from_envelope(upload(id)).unwrap();
        let verdict = Verdict::Publish { play_key: "v".to_owned(), cover_key: "c".to_owned() };
        // Clocks of workers differ, and this one stands still.
        async move {
            let outcome = store.decide(&upload, verdict, now_ms - id % 3).await.unwrap();
            published(&outcome.envelope).published_ms
        }
    };
    // Concurrency within the number of connections.
    let decided = stream::iter((1..=200).map(decide)).buffer_unordered(16);
    let times: Vec<_> = decided.collect().await;
    assert_eq!(times.iter().collect::<HashSet<_>>().len(), 200);
    assert!(times.iter().all(|time| (now_ms - 2..now_ms + 200).contains(time)));
    assert_eq!(world.count("media_outcomes").await, 200);
    assert_eq!(decide(201).await, times.iter().max().unwrap() + 1);
}

/// Decides to publish a video at a time of the worker's clock; returns its publish time.
async fn publish_at(world: &World, id: i64, now_ms: i64) -> i64 {
    let upload = Upload::from_envelope(upload(id)).unwrap();
    let verdict = Verdict::Publish { play_key: "v".to_owned(), cover_key: "c".to_owned() };
    let outcome = OutcomeStore::new(world.mysql.clone()).decide(&upload, verdict, now_ms).await.unwrap();
    published(&outcome.envelope).published_ms
}

const NOW: i64 = 1_700_000_000_000;
const HOUR: i64 = 60 * 60 * 1000;

#[tokio::test]
async fn videos_after_a_clock_that_was_ahead_are_not_hidden() {
    for ahead in [HOUR, 24 * HOUR] {
        let (world, _api) = World::with_api().await;
        let early = [publish_at(&world, 1, NOW + ahead).await, publish_at(&world, 2, NOW + ahead).await];
        assert_eq!(early, [NOW + ahead, NOW + ahead + 1]);
        // The clock is corrected.
        assert_eq!(publish_at(&world, 3, NOW).await, NOW);
        assert_eq!(publish_at(&world, 4, NOW).await, NOW + 1);
        // Later the right time reaches the times that are taken.
        assert_eq!(publish_at(&world, 5, NOW + ahead).await, NOW + ahead + 2);
    }
}

#[tokio::test]
async fn videos_after_a_clock_was_set_back_have_their_own_times() {
    let (world, _api) = World::with_api().await;
    assert_eq!(publish_at(&world, 1, NOW).await, NOW);
    // A small step back is within the difference of clocks.
    assert_eq!(publish_at(&world, 2, NOW - 1000).await, NOW + 1);
    for (id, back) in [(3, HOUR), (4, 24 * HOUR)] {
        assert_eq!(publish_at(&world, id, NOW - back).await, NOW - back);
    }
    assert_eq!(publish_at(&world, 5, NOW).await, NOW + 2);
}

#[tokio::test]
async fn worker_ahead_of_mysql_publishes_at_the_time_of_mysql() {
    let (world, _api) = World::with_api().await;
    let now = || vidlog_service_kit::clock::Clock::system().now_ms();
    let before = now();
    let time = publish_at(&world, 1, before + 24 * HOUR).await;
    assert!((before - 1000..=now() + 1000).contains(&time), "{before} {time}");
}

#[tokio::test]
async fn publish_times_are_unique_despite_clock_jumps() {
    let (world, _api) = World::with_api().await;
    let seed = Uuid::new_v4();
    println!("seed {seed}");
    let mut times = HashSet::new();
    // Few values, so that the clock returns to times that are taken.
    for (id, byte) in (1..).zip(seed.as_bytes().repeat(8)) {
        let now_ms = NOW + i64::from(byte % 5) * HOUR;
        let time = publish_at(&world, id, now_ms).await;
        assert!(times.insert(time), "{time} twice");
        assert!((now_ms..now_ms + HOUR / 2).contains(&time), "{time} at {now_ms}");
    }
}

#[tokio::test]
async fn migration_takes_over_the_times_of_stored_outcomes() {
    let (world, _api) = World::with_api().await;
    for id in [1, 2, 3] {
        publish_at(&world, id, NOW).await;
    }
    sqlx::query("DELETE FROM publish_times").execute(&world.mysql).await.unwrap();
    let migration = include_str!("../../../schemas/mysql/0009_publish_times.sql");
    sqlx::raw_sql(migration).execute(&world.mysql).await.unwrap();
    let times: Vec<i64> = sqlx::query_scalar("SELECT published_ms FROM publish_times ORDER BY published_ms")
        .fetch_all(&world.mysql)
        .await
        .unwrap();
    assert_eq!(times, [NOW, NOW + 1, NOW + 2]);
}

#[tokio::test]
async fn upload_waits_while_the_object_store_is_empty() {
    let (world, api) = World::with_api().await;
    let envelope = upload(9);
    api.state.log.append(&envelope).await.unwrap();
    let worker = Worker::start(&world, &api);
    let recorder = PrometheusBuilder::new().build_recorder();
    {
        let _recorder = metrics::set_default_local_recorder(&recorder);
        let failed = async || faults(&recorder.handle().render()) >= 4;
        until("it was attempted more often than a lost upload", failed).await;
    }
    worker.stop().await;
    assert_eq!((world.count("media_jobs").await, world.count("media_outcomes").await), (1, 0));

    api.state.objects.put(&original_of(&envelope), video().await.into()).await.unwrap();
    let worker = Worker::start(&world, &api);
    assert_eq!(published(&until_finalized(&world, 1).await[0]).video_id.get(), 9);
    worker.stop().await;
}

#[tokio::test]
async fn missing_original_is_rejected_after_max_attempts() {
    let (world, api) = World::with_api().await;
    api.state.log.append(&upload(9)).await.unwrap();
    api.state.objects.put(&Path::from("originals/another"), "content".into()).await.unwrap();
    let worker = Worker::start(&world, &api);
    let outcomes = until_finalized(&world, 1).await;
    let expected = "The upload was lost on our side. Please upload the video again.";
    assert_eq!(reason(&outcomes[0]), (9, expected));
    worker.stop().await;
}

#[tokio::test]
async fn undecodable_record_does_not_stop_the_worker() {
    let (world, api) = World::with_api().await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &world.log.settings.kafka_brokers).create().unwrap();
    let topic = world.log.topics.name(Stream::Videos);
    for partition in 0..crate::support::PARTITIONS {
        let record = FutureRecord::to(&topic).partition(partition).key("9").payload("{");
        producer.send(record, Duration::from_secs(5)).await.unwrap();
    }
    upload_file(&api, 9, b"Just a text.".to_vec()).await;
    let worker = Worker::start(&world, &api);
    until("all offsets are committed", async || matches!(committed(&world), (5, 5))).await;
    assert_eq!(finalized_count(&world).await, 1);
    worker.stop().await;
}

#[tokio::test]
async fn two_workers_finalize_each_upload_once() {
    let (world, api) = World::with_api().await;
    for id in 1..=12 {
        upload_file(&api, id, format!("text {id}").into_bytes()).await;
    }
    let workers = [Worker::start(&world, &api), Worker::start(&world, &api)];
    until("all offsets are committed", async || matches!(committed(&world), (24, 24))).await;
    let mut ids: Vec<_> = outcomes(&world).await.iter().map(|envelope| reason(envelope).0).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (1..=12).collect::<Vec<_>>());
    for worker in workers {
        worker.stop().await;
    }
}

/// Appends uploads without originals, to a store that has another original.
async fn lose_uploads(api: &Api, ids: impl IntoIterator<Item = i64>) {
    let uploads: Vec<_> = ids.into_iter().map(upload).collect();
    let appends = uploads.iter().map(|envelope| api.state.log.append(envelope));
    futures::future::try_join_all(appends).await.unwrap();
    api.state.objects.put(&Path::from("originals/another"), "content".into()).await.unwrap();
}

/// Rows of `media_jobs` with a reason.
async fn jobs_with(world: &World, reason: &str) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM media_jobs WHERE reason = ?")
        .bind(reason)
        .fetch_one(&world.mysql)
        .await
        .unwrap()
}

#[tokio::test]
async fn waiting_uploads_hold_no_slot() {
    let (world, api) = World::with_api().await;
    lose_uploads(&api, 1..=100).await;
    let limits = Limits { initial_backoff: Duration::from_mins(1), max_missing: 9, ..limits() };
    let worker = Worker::start_with(&world, MediaContext { limits, ..MediaContext::from_state(&api.state) });
    until("all lost uploads wait", async || jobs_with(&world, "missing").await == 100).await;
    upload_file(&api, 101, b"Just a text.".to_vec()).await;
    assert_eq!(reason(&until_finalized(&world, 1).await[0]).0, 101);
    until("all offsets are committed", async || matches!(committed(&world), (102, 102))).await;
    worker.stop().await;
}

#[tokio::test]
async fn failed_uploads_are_a_warning_in_readyz() {
    let (world, api) = World::with_api().await;
    lose_uploads(&api, 1..=3).await;
    let limits = Limits { lease: Duration::from_secs(3), max_missing: 9999, ..limits() };
    let worker = Worker::start_with(&world, MediaContext { limits, ..MediaContext::from_state(&api.state) });
    let is_reported = async || {
        let warnings = worker.readiness.warnings();
        warnings.iter().any(|warning| warning.starts_with("media-worker: 3 uploads wait for another try"))
    };
    until("the uploads are reported", is_reported).await;
    assert_eq!(worker.readiness.unready(), None);
    worker.stop().await;
}

#[tokio::test]
async fn tries_outlive_the_worker() {
    let (world, api) = World::with_api().await;
    lose_uploads(&api, [9]).await;
    let limits = |max_missing| Limits { max_missing, ..limits() };
    let context = |limits| MediaContext { limits, ..MediaContext::from_state(&api.state) };
    let worker = Worker::start_with(&world, context(limits(9999)));
    let missing = async || -> i64 {
        let query = sqlx::query_scalar("SELECT CAST(COALESCE(MAX(missing), 0) AS SIGNED) FROM media_jobs");
        query.fetch_one(&world.mysql).await.unwrap()
    };
    until("it was tried", async || missing().await >= 3).await;
    worker.stop().await;
    let before = u32::try_from(missing().await).unwrap();
    let worker = Worker::start_with(&world, context(limits(before)));
    assert_eq!(until_finalized(&world, 1).await.len(), 1);
    until("the job is removed", async || world.count("media_jobs").await == 0).await;
    worker.stop().await;
}

/// A log that panics when the outcome of a video is appended.
struct PanickingLog {
    log: Arc<dyn EventLog>,
    video_id: i64,
}

impl EventLog for PanickingLog {
    fn append<'a>(&'a self, envelope: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>> {
        let (video_id, _) = reason(envelope);
        assert_ne!(video_id, self.video_id, "a panic for the test");
        self.log.append(envelope)
    }
}

#[tokio::test]
async fn panic_costs_only_its_upload() {
    let (world, api) = World::with_api().await;
    for id in [1, 2] {
        upload_file(&api, id, b"Just a text.".to_vec()).await;
    }
    let context = MediaContext { limits: limits(), ..MediaContext::from_state(&api.state) };
    let log = Arc::new(PanickingLog { log: Arc::clone(&context.log), video_id: 1 });
    let worker = Worker::start_with(&world, MediaContext { log, ..context });
    assert_eq!(reason(&until_finalized(&world, 1).await[0]).0, 2);
    until("the panic is recorded", async || jobs_with(&world, "crashed").await == 1).await;
    let error: String =
        sqlx::query_scalar("SELECT error FROM media_jobs").fetch_one(&world.mysql).await.unwrap();
    assert!(error.starts_with("the try panicked: "), "{error}");
    worker.stop().await;
}

/// A log that refuses every event.
struct RefusingLog;

impl EventLog for RefusingLog {
    fn append<'a>(&'a self, _: &'a Envelope) -> BoxFuture<'a, Result<Appended, AppendError>> {
        Box::pin(async { Err(AppendError::Refused("too large".to_owned())) })
    }
}

#[tokio::test]
async fn refused_outcome_waits_and_is_appended_later() {
    let (world, api) = World::with_api().await;
    upload_file(&api, 9, b"Just a text.".to_vec()).await;
    let context = MediaContext { limits: limits(), ..MediaContext::from_state(&api.state) };
    let refusing = MediaContext { log: Arc::new(RefusingLog), ..context.clone() };
    let worker = Worker::start_with(&world, refusing);
    until("it waits", async || jobs_with(&world, "refused").await == 1).await;
    worker.stop().await;
    assert_eq!((world.count("media_outcomes").await, finalized_count(&world).await), (1, 0));
    let worker = Worker::start_with(&world, context);
    assert_eq!(until_finalized(&world, 1).await.len(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn second_timeout_is_a_verdict() {
    let (world, api) = World::with_api().await;
    let envelope = upload(9);
    api.state.objects.put(&original_of(&envelope), video().await.into()).await.unwrap();
    queue(&world, "before").enqueue(&[new_job(envelope)], 0).await.unwrap();
    // Its budget is spent, so that each try times out.
    sqlx::query("UPDATE media_jobs SET spent_ms = 1000000000").execute(&world.mysql).await.unwrap();
    let worker = Worker::start(&world, &api);
    let outcomes = until_finalized(&world, 1).await;
    assert!(reason(&outcomes[0]).1.starts_with("The video could not be processed."));
    worker.stop().await;
}

/// The queue, for a worker of a name.
fn queue(world: &World, worker: &str) -> JobStore {
    JobStore::new(world.mysql.clone(), worker.to_owned())
}

fn new_job(envelope: Envelope) -> NewJob {
    let Event::Video(VideoEvent::VideoUploaded(video)) = &envelope.event else { panic!("not an upload") };
    NewJob { video_id: video.video_id, author_id: video.author_id, envelope }
}

fn new_jobs(author: i64, ids: impl IntoIterator<Item = i64>) -> Vec<NewJob> {
    ids.into_iter().map(|id| new_job(upload_of(author, id))).collect()
}

/// Claims jobs from time 0 until a lease ends; returns their ids.
async fn claim(queue: &JobStore, count: usize, lease_end_ms: i64) -> Vec<i64> {
    queue.claim(count, &[], 0, lease_end_ms).await.unwrap().iter().map(|job| job.video_id).collect()
}

#[tokio::test]
async fn authors_take_turns() {
    let (world, _api) = World::with_api().await;
    let queue = queue(&world, "a");
    queue.enqueue(&new_jobs(7, 1..=50), 0).await.unwrap();
    assert_eq!(claim(&queue, 2, 9).await, [1, 2]);
    queue.enqueue(&new_jobs(8, [101, 102]), 0).await.unwrap();
    queue.enqueue(&new_jobs(9, [103]), 0).await.unwrap();
    let mut order = Vec::new();
    for _ in 0..6 {
        order.extend(claim(&queue, 1, 9).await);
    }
    assert_eq!(order, [101, 103, 3, 102, 4, 5]);
    // What author 7 has been given counts later too.
    queue.enqueue(&new_jobs(7, [51]), 0).await.unwrap();
    queue.enqueue(&new_jobs(8, [104]), 0).await.unwrap();
    assert_eq!(claim(&queue, 1, 9).await, [104]);
}

#[tokio::test]
async fn interrupted_upload_does_not_come_first() {
    let (world, _api) = World::with_api().await;
    let (killed, next) = (queue(&world, "killed"), queue(&world, "next"));
    killed.enqueue(&new_jobs(7, [1, 2]), 0).await.unwrap();
    killed.enqueue(&new_jobs(8, [3]), 0).await.unwrap();
    assert_eq!(claim(&killed, 1, 1000).await, [1]);
    assert_eq!(next.requeue_due(999).await.unwrap(), 0, "the lease has not ended");
    assert_eq!(next.requeue_due(1000).await.unwrap(), 1);
    assert_eq!(jobs_with(&world, "interrupted").await, 1);
    assert_eq!(claim(&next, 2, 9000).await, [3, 2]);
    let again = &next.claim(1, &[], 2000, 9000).await.unwrap()[0];
    let History { tries, interruptions, spent, .. } = again.history;
    assert_eq!((again.video_id, tries, interruptions, spent), (1, 2, 2, Duration::ZERO), "it is not charged");
    // The end that the first worker records, if it lives, has no effect.
    let failure = Failure::new(Reason::Crashed, "late");
    killed.record_failure(again, &failure, 0).await.unwrap();
    assert_eq!(jobs_with(&world, "crashed").await, 0);
}

#[tokio::test]
async fn released_upload_counts_no_try() {
    let (world, _api) = World::with_api().await;
    let queue = queue(&world, "a");
    queue.enqueue(&new_jobs(7, [1]), 0).await.unwrap();
    assert_eq!(claim(&queue, 1, 9).await, [1]);
    queue.renew(&[(1, 1)], 5000).await.unwrap();
    assert_eq!(queue.requeue_due(4999).await.unwrap(), 0, "the lease is renewed");
    queue.release(&[(1, 1)]).await.unwrap();
    let history = queue.claim(1, &[], 0, 9).await.unwrap()[0].history;
    assert_eq!((history.tries, history.interruptions), (1, 1));
}

#[tokio::test]
async fn try_without_its_lease_is_fenced() {
    let (world, _api) = World::with_api().await;
    let queue = queue(&world, "a");
    queue.enqueue(&new_jobs(7, [1]), 0).await.unwrap();
    let first = queue.claim(1, &[], 0, 9).await.unwrap().remove(0);
    assert_eq!(queue.requeue_due(9).await.unwrap(), 1);
    let claimed = queue.claim(1, &[first.try_id()], 9, 20).await.unwrap();
    assert!(claimed.is_empty(), "the first try still runs");
    let second = queue.claim(1, &[], 9, 20).await.unwrap().remove(0);
    // The worker is the same, the try is not.
    queue.record_failure(&first, &Failure::new(Reason::Crashed, "late"), 0).await.unwrap();
    queue.release(&[first.try_id()]).await.unwrap();
    queue.renew(&[first.try_id()], 99).await.unwrap();
    assert_eq!(jobs_with(&world, "crashed").await, 0);
    queue.renew(&[first.try_id(), second.try_id()], 50).await.unwrap();
    assert_eq!((queue.requeue_due(49).await.unwrap(), queue.requeue_due(50).await.unwrap()), (0, 1));
    assert_eq!(queue.claim(1, &[], 50, 60).await.unwrap()[0].history.tries, 3);
}

#[tokio::test]
async fn concurrent_claims_are_disjoint() {
    let (world, _api) = World::with_api().await;
    let jobs = new_jobs(7, 1..=60);
    queue(&world, "a").enqueue(&jobs, 0).await.unwrap();
    queue(&world, "b").enqueue(&jobs, 0).await.unwrap();
    let claims = stream::iter(0..24).map(|number| {
        let queue = queue(&world, &number.to_string());
        async move { claim(&queue, 5, 9).await }
    });
    let mut ids = claims.buffer_unordered(6).concat().await;
    ids.sort_unstable();
    assert_eq!(ids, (1..=60).collect::<Vec<_>>());
}

fn faults(metrics: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("vidlog_media_faults_total "));
    line.map_or(0, |count| count.parse().unwrap())
}
