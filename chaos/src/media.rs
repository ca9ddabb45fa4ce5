//! Appends the events of videos in place of the media worker, without files and ffmpeg.

use std::time::Duration;

use anyhow::Context;
use rdkafka::{
    ClientConfig,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vidlog_events::{
    Envelope, Event, Personal, Topics, UserId, VideoEvent, VideoId, VideoPublished, VideoRejected,
    VideoUploaded,
};
use vidlog_service_kit::clock::Clock;

use crate::{
    ledger::{Command, Kind, LogPosition, Outcome},
    system::System,
};

/// Videos that are published before the load starts.
const INITIAL: i64 = 4;
/// Pause between two later videos.
const PAUSE: Duration = Duration::from_millis(700);
/// One in this many later videos is rejected.
const REJECTION_INTERVAL: i64 = 4;

/// Appends the events of videos.
pub(crate) struct VideoProducer {
    producer: FutureProducer,
    topics: Topics,
    clock: Clock,
    authors: Vec<i64>,
    last_id: i64,
    published_ms: i64,
}

impl VideoProducer {
    /// A producer of the authors' videos, with a direct connection; retries while Kafka is down.
    pub(crate) fn new(system: &System, authors: &[i64]) -> anyhow::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &system.log.kafka_brokers)
            .set("enable.idempotence", "true")
            .set("partitioner", "murmur2_random")
            .set("delivery.timeout.ms", "20000")
            .create()?;
        let topics = Topics::new(&system.stores.namespace);
        Ok(Self {
            producer,
            topics,
            clock: Clock::system(),
            authors: authors.to_vec(),
            last_id: 0,
            published_ms: 0,
        })
    }

    /// Publishes the first videos; returns their ids.
    pub(crate) async fn publish_initial(&mut self) -> anyhow::Result<(Vec<i64>, Vec<Command>)> {
        let mut commands = Vec::new();
        while self.last_id < INITIAL {
            commands.extend(self.append_video(|_| true).await?);
        }
        Ok(((1..=INITIAL).collect(), commands))
    }

    /// Appends videos until stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<Vec<Command>> {
        let mut commands = Vec::new();
        while stop.run_until_cancelled(sleep(PAUSE)).await.is_some() {
            commands.extend(self.append_video(|video| video % REJECTION_INTERVAL != 0).await?);
        }
        Ok(commands)
    }

    /// Appends the upload of a video and, once the upload is acknowledged, its publication or rejection.
    async fn append_video(&mut self, is_valid: impl Fn(i64) -> bool) -> anyhow::Result<Vec<Command>> {
        self.last_id += 1;
        let author = self.authors[usize::try_from(self.last_id)? % self.authors.len()];
        let ids = (
            VideoId::new(self.last_id).context("the video id is out of range")?,
            UserId::new(author).context("the author id is out of range")?,
        );
        let (video_id, author_id) = ids;
        let uploaded = self
            .append(VideoEvent::VideoUploaded(VideoUploaded {
                video_id,
                author_id,
                title: Personal::new(format!("video {video_id}")),
                original_key: format!("originals/{video_id}"),
            }))
            .await?;
        if uploaded.outcome == Outcome::Unknown {
            return Ok(vec![uploaded]);
        }
        self.published_ms = self.clock.now_ms().max(self.published_ms + 1);
        let outcome = if is_valid(self.last_id) {
            VideoEvent::VideoPublished(VideoPublished {
                video_id,
                author_id,
                play_key: format!("videos/{video_id}"),
                cover_key: format!("covers/{video_id}"),
                published_ms: self.published_ms,
            })
        } else {
            VideoEvent::VideoRejected(VideoRejected { video_id, author_id, reason: "not a video".to_owned() })
        };
        Ok(vec![uploaded, self.append(outcome).await?])
    }

    async fn append(&self, event: VideoEvent) -> anyhow::Result<Command> {
        let id = Uuid::now_v7();
        let envelope = Envelope {
            id,
            source: "/vidlog/chaos".to_owned(),
            time_ms: self.clock.now_ms(),
            traceparent: None,
            correlation_id: Some(id.to_string()),
            causation_id: None,
            event: Event::Video(event),
        };
        let encoded = envelope.encode()?;
        let headers = encoded.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let topic = self.topics.name(encoded.stream);
        let record = FutureRecord::to(&topic)
            .key(&encoded.key)
            .payload(&encoded.value)
            .timestamp(encoded.timestamp_ms)
            .headers(headers);
        let outcome = match self.producer.send(record, Duration::ZERO).await {
            Ok(delivery) => Outcome::Acknowledged(Some(LogPosition {
                stream: encoded.stream.to_string(),
                partition: delivery.partition,
                offset: delivery.offset,
            })),
            Err(_) => Outcome::Unknown,
        };
        Ok(Command { id: id.to_string(), kind: Kind::Video, attempts: 1, outcome })
    }
}
