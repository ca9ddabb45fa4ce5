//! Uploads and workers of the tests.

use std::{num::NonZeroUsize, time::Duration};

use object_store::{ObjectStoreExt, path::Path};
use sqlx::{AssertSqlSafe, MySqlPool};
use tempfile::TempDir;
use tokio::{process::Command, task::JoinHandle};
use uuid::Uuid;
use vidlog_command_api::{
    commands::publish::original_key,
    media::{self, Limits, MediaConfig, MediaContext, UploadSource, jobs::NewJob},
};
use vidlog_events::{
    Envelope, Event, Personal, Stream, UserId, VideoEvent, VideoId, VideoPublished, VideoUploaded,
};
use vidlog_service_kit::{mysql, ops::Readiness, shutdown::Shutdown};

use crate::support::{Api, World, until};

/// A worker that runs until the test stops it.
pub(crate) struct Worker {
    shutdown: Shutdown,
    running: JoinHandle<anyhow::Result<()>>,
    pub(crate) readiness: Readiness,
}

/// Limits with short delays.
pub(crate) fn limits() -> Limits {
    Limits {
        max_missing: 2,
        initial_backoff: Duration::from_millis(20),
        poll_interval: Duration::from_millis(20),
        ..Limits::default()
    }
}

impl Worker {
    pub(crate) fn start(world: &World, api: &Api) -> Self {
        Self::start_with(world, MediaContext { limits: limits(), ..MediaContext::from_state(&api.state) })
    }

    /// A worker that processes one upload at a time.
    pub(crate) fn start_with(world: &World, media: MediaContext) -> Self {
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

    pub(crate) async fn stop(self) {
        self.shutdown.request();
        self.running.await.unwrap().unwrap();
    }
}

pub(crate) fn upload(id: i64) -> Envelope {
    upload_of(7, id)
}

pub(crate) fn upload_of(author: i64, id: i64) -> Envelope {
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

pub(crate) fn original_of(envelope: &Envelope) -> Path {
    match &envelope.event {
        Event::Video(VideoEvent::VideoUploaded(uploaded)) => Path::from(uploaded.original_key.as_str()),
        event => panic!("{event:?}"),
    }
}

/// Stores an original and appends its event.
pub(crate) async fn upload_file(api: &Api, id: i64, content: Vec<u8>) -> Envelope {
    let envelope = upload(id);
    api.state.objects.put(&original_of(&envelope), content.into()).await.unwrap();
    api.state.log.append(&envelope).await.unwrap();
    envelope
}

/// The outcome events in the log, including repetitions.
pub(crate) async fn outcomes(world: &World) -> Vec<Envelope> {
    let is_outcome =
        |envelope: &Envelope| !matches!(envelope.event, Event::Video(VideoEvent::VideoUploaded(_)));
    let logged = world.log.read(Stream::Videos).await.into_iter().map(|logged| logged.envelope);
    logged.filter(is_outcome).collect()
}

pub(crate) async fn until_finalized(world: &World, count: usize) -> Vec<Envelope> {
    until("all uploads are finalized", async || finalized_count(world).await >= count).await;
    outcomes(world).await
}

pub(crate) async fn finalized_count(world: &World) -> usize {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM media_outcomes WHERE appended")
        .fetch_one(&world.mysql)
        .await
        .unwrap();
    usize::try_from(count).unwrap()
}

pub(crate) fn reason(envelope: &Envelope) -> (i64, &str) {
    match &envelope.event {
        Event::Video(VideoEvent::VideoRejected(rejected)) => (rejected.video_id.get(), &rejected.reason),
        event => panic!("{event:?}"),
    }
}

pub(crate) fn published(envelope: &Envelope) -> &VideoPublished {
    match &envelope.event {
        Event::Video(VideoEvent::VideoPublished(published)) => published,
        event => panic!("{event:?}"),
    }
}

/// A file that ffmpeg generates.
/// A file that ffmpeg generates.
pub(crate) async fn generated(arguments: &str) -> Vec<u8> {
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
pub(crate) async fn video() -> Vec<u8> {
    generated(
        "-f lavfi -i testsrc=size=320x240:rate=25 -f lavfi -i sine -t 2 -codec:v mpeg4 -codec:a mp3 -f avi",
    )
    .await
}
/// Appends uploads without originals, to a store that has another original.
pub(crate) async fn lose_uploads(api: &Api, ids: impl IntoIterator<Item = i64>) {
    let uploads: Vec<_> = ids.into_iter().map(upload).collect();
    let appends = uploads.iter().map(|envelope| api.state.log.append(envelope));
    futures::future::try_join_all(appends).await.unwrap();
    api.state.objects.put(&Path::from("originals/another"), "content".into()).await.unwrap();
}

/// Rows of `media_jobs` with a reason.
pub(crate) async fn jobs_with(world: &World, reason: &str) -> i64 {
    sqlx::query_scalar("SELECT COUNT(*) FROM media_jobs WHERE reason = ?")
        .bind(reason)
        .fetch_one(&world.mysql)
        .await
        .unwrap()
}

pub(crate) fn new_job(envelope: Envelope) -> NewJob {
    let Event::Video(VideoEvent::VideoUploaded(video)) = &envelope.event else { panic!("not an upload") };
    NewJob { video_id: video.video_id, author_id: video.author_id, envelope }
}

pub(crate) fn new_jobs(author: i64, ids: impl IntoIterator<Item = i64>) -> Vec<NewJob> {
    ids.into_iter().map(|id| new_job(upload_of(author, id))).collect()
}

/// Connects to the database with the time of MySQL fixed, for one statement at a time.
pub(crate) async fn mysql_at(world: &World, now_ms: i64) -> MySqlPool {
    let pool = mysql::open(world.stores.mysql_url.reveal(), 1).unwrap();
    let set = format!("SET timestamp = {}.{:03}", now_ms / 1000, now_ms % 1000);
    sqlx::raw_sql(AssertSqlSafe(set)).execute(&pool).await.unwrap();
    pool
}
