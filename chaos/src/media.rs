//! Videos, without files and ffmpeg: their events are appended as the media worker would.

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
    ledger::{Command, Kind, Outcome, Place},
    system::System,
};

/// Videos that there are from the beginning.
const FIRST: i64 = 4;
/// Between two videos later on.
const PAUSE: Duration = Duration::from_millis(700);
/// Each so many videos one is rejected.
const REJECTED: i64 = 4;

/// Makes videos.
pub(crate) struct Studio {
    producer: FutureProducer,
    topics: Topics,
    clock: Clock,
    authors: Vec<i64>,
    made: i64,
    published_ms: i64,
}

impl Studio {
    /// A studio of some authors. It reaches the log directly, and waits while that is away.
    pub(crate) fn open(system: &System, authors: &[i64]) -> anyhow::Result<Self> {
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
            made: 0,
            published_ms: 0,
        })
    }

    /// Publishes the first videos; returns their ids.
    pub(crate) async fn premiere(&mut self) -> anyhow::Result<(Vec<i64>, Vec<Command>)> {
        let mut commands = Vec::new();
        while self.made < FIRST {
            commands.extend(self.make(|_| true).await?);
        }
        Ok(((1..=FIRST).collect(), commands))
    }

    /// Makes videos until it is stopped.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<Vec<Command>> {
        let mut commands = Vec::new();
        while stop.run_until_cancelled(sleep(PAUSE)).await.is_some() {
            commands.extend(self.make(|video| video % REJECTED != 0).await?);
        }
        Ok(commands)
    }

    /// Uploads a video, and says what became of it, once it is known that the upload is in the log.
    async fn make(&mut self, is_good: impl Fn(i64) -> bool) -> anyhow::Result<Vec<Command>> {
        self.made += 1;
        let author = self.authors[usize::try_from(self.made)? % self.authors.len()];
        let ids = (
            VideoId::new(self.made).context("a video has no id")?,
            UserId::new(author).context("no such author")?,
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
        let decided = if is_good(self.made) {
            VideoEvent::VideoPublished(VideoPublished {
                video_id,
                author_id,
                play_key: format!("videos/{video_id}"),
                cover_key: format!("covers/{video_id}"),
                published_ms: self.published_ms,
            })
        } else {
            VideoEvent::VideoRejected(VideoRejected {
                video_id,
                author_id,
                reason: "out of focus".to_owned(),
            })
        };
        Ok(vec![uploaded, self.append(decided).await?])
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
            Ok(delivery) => Outcome::Acknowledged(Some(Place {
                stream: encoded.stream.to_string(),
                partition: delivery.partition,
                offset: delivery.offset,
            })),
            Err(_) => Outcome::Unknown,
        };
        Ok(Command { id: id.to_string(), kind: Kind::Video, attempts: 1, outcome })
    }
}
