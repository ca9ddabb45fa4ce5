//! The worker, with real files.

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusBuilder;
use object_store::{ObjectStoreExt, path::Path};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use vidlog_command_api::{
    media::{
        Limits, MediaContext,
        jobs::JobStore,
        outcomes::{OutcomeStore, Upload, Verdict},
    },
    publisher::{AppendError, Appended, EventLog},
};
use vidlog_events::{Envelope, Event, Stream, VideoEvent, VideoId};
use vidlog_test_support::ChildProcess;

use super::support::*;
use crate::support::{Api, World, until};

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
        stored.push(store.decide(&upload, verdict.clone()).await.unwrap().envelope);
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

/// Puts uploads of an author into the queue of a worker that is not started yet.
async fn enqueue(api: &Api, author: i64, ids: impl IntoIterator<Item = i64>, content: &[u8]) {
    let mut jobs = Vec::new();
    for id in ids {
        let envelope = upload_of(author, id);
        api.state.objects.put(&original_of(&envelope), content.to_vec().into()).await.unwrap();
        jobs.push(new_job(envelope));
    }
    let queue = JobStore::new(api.state.mysql.clone(), "before".to_owned(), limits().lease);
    queue.enqueue(&jobs).await.unwrap();
}

#[tokio::test]
async fn second_timeout_is_a_verdict() {
    let (world, api) = World::with_api().await;
    enqueue(&api, 7, [9], &video().await).await;
    // Its budget is spent, so that each try times out.
    sqlx::query("UPDATE media_jobs SET spent_ms = 1000000000").execute(&world.mysql).await.unwrap();
    let worker = Worker::start(&world, &api);
    let outcomes = until_finalized(&world, 1).await;
    assert!(reason(&outcomes[0]).1.starts_with("The video could not be processed."));
    worker.stop().await;
}

#[tokio::test]
async fn try_gets_what_earlier_tries_left_of_the_budget() {
    let (world, api) = World::with_api().await;
    // Of two seconds: the budget is 128 s, of which one try may use half. It needs less than that, and more than 50 ms.
    enqueue(&api, 7, [1, 2], &video().await).await;
    let spend = "UPDATE media_jobs SET spent_ms = 127950 WHERE video_id = 1";
    sqlx::query(spend).execute(&world.mysql).await.unwrap();
    let limits = Limits { initial_backoff: Duration::from_mins(1), ..limits() };
    let worker = Worker::start_with(&world, MediaContext { limits, ..MediaContext::from_state(&api.state) });
    let timed_out = async || jobs_with(&world, "timed_out").await == 1;
    until("the first upload has used its budget", timed_out).await;
    let spent: i64 = sqlx::query_scalar("SELECT spent_ms FROM media_jobs WHERE reason = 'timed_out'")
        .fetch_one(&world.mysql)
        .await
        .unwrap();
    assert!(spent >= 128_000, "{spent}");
    let outcomes = until_finalized(&world, 1).await;
    assert!(
        matches!(outcomes[0].event, Event::Video(VideoEvent::VideoPublished(_))),
        "the second one is published"
    );
    worker.stop().await;
}

#[tokio::test]
async fn many_uploads_of_one_author_delay_another_author_by_one_job() {
    let (world, api) = World::with_api().await;
    enqueue(&api, 7, 1..=50, b"Just a text.").await;
    enqueue(&api, 8, [101], b"Just a text.").await;
    let worker = Worker::start(&world, &api);
    until("the other upload is finalized", async || {
        let appended = "SELECT COUNT(*) FROM media_outcomes WHERE video_id = 101 AND appended";
        sqlx::query_scalar::<_, i64>(appended).fetch_one(&world.mysql).await.unwrap() == 1
    })
    .await;
    let mut outcomes = outcomes(&world).await;
    outcomes.sort_by_key(|envelope| envelope.time_ms);
    let order: Vec<_> = outcomes.iter().map(|envelope| reason(envelope).0).collect();
    assert!(order.iter().take(2).any(|id| *id == 101), "{order:?}");
    worker.stop().await;
}

#[tokio::test]
async fn upload_that_killed_its_worker_does_not_come_first() {
    let (world, api) = World::with_api().await;
    let long = generated("-f lavfi -i testsrc=size=1280x720:rate=25 -t 40 -codec:v mpeg4 -f avi").await;
    enqueue(&api, 7, [1], &long).await;
    enqueue(&api, 8, [2], b"Just a text.").await;
    let mut killed = start_process(&world);
    let is_running = "SELECT COUNT(*) FROM media_jobs WHERE video_id = 1 AND worker IS NOT NULL";
    until("the upload is processed", async || {
        sqlx::query_scalar::<_, i64>(is_running).fetch_one(&world.mysql).await.unwrap() == 1
    })
    .await;
    // As the kernel does when memory runs out.
    killed.kill();
    sqlx::query("UPDATE media_jobs SET due_ms = 1 WHERE worker IS NOT NULL")
        .execute(&world.mysql)
        .await
        .unwrap();
    let worker = Worker::start(&world, &api);
    assert_eq!(reason(&until_finalized(&world, 1).await[0]).0, 2);
    assert_eq!(jobs_with(&world, "interrupted").await, 1);
    worker.stop().await;
}

/// The worker as a process, with one slot.
fn start_process(world: &World) -> ChildProcess {
    let kafka = world.kafka();
    ChildProcess::spawn(
        std::process::Command::new(env!("CARGO_BIN_EXE_media-worker"))
            .env("VIDLOG_KAFKA_BROKERS", kafka.kafka_brokers)
            .env("VIDLOG_NAMESPACE", &world.stores.namespace)
            .env("VIDLOG_MYSQL_URL", world.stores.mysql_url.reveal())
            .env("VIDLOG_REDIS_URL", world.stores.redis_url.reveal())
            .env("VIDLOG_OBJECT_STORE", world.object_store())
            .env("VIDLOG_OPS_LISTEN", "127.0.0.1:0")
            .env("VIDLOG_MEDIA_CONCURRENCY", "1"),
    )
}

fn faults(metrics: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix("vidlog_media_faults_total "));
    line.map_or(0, |count| count.parse().unwrap())
}
