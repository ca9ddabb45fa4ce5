//! Outcomes of uploads, in the MySQL table `media_outcomes`: decided once, appended until acknowledged.

use sqlx::MySqlPool;
use thiserror::Error;
use uuid::Uuid;
use vidlog_events::{Envelope, Event, VideoEvent, VideoId, VideoPublished, VideoRejected, VideoUploaded};

use crate::{
    envelope_json::{EnvelopeJsonError, from_json, to_json},
    mysql::mysql_now_ms,
    request_context::EventIdentity,
};

/// `ce_source` of outcomes.
const SOURCE: &str = "/vidlog/media-worker";
/// How far publish times may be ahead of the clock before the clock counts as set back. Above the difference between two
/// MySQL servers, of which one replaces the other; below it, a new video is hidden from a phone whose clock is right for
/// that long.
const MAX_AHEAD_MS: i64 = 10_000;

const NOW: &str = concat!("SELECT ", mysql_now_ms!());
const LOCK_CLOCK: &str =
    concat!("SELECT last_ms, ", mysql_now_ms!(), " FROM publish_clock WHERE id = 1 FOR UPDATE");

/// An upload, from its event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The video.
    pub video: VideoUploaded,
    /// The event's `ce_id`: the causation id of the outcome.
    pub event_id: Uuid,
    /// Trace context of the upload request.
    pub traceparent: Option<String>,
    /// Id of the upload request.
    pub correlation_id: Option<String>,
}

/// Decision on an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Publish the video.
    Publish {
        /// Object key of the playable file.
        play_key: String,
        /// Object key of the cover.
        cover_key: String,
    },
    /// Reject the upload.
    Reject {
        /// Reason for the author.
        reason: String,
    },
}

/// A stored outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its event; never changes.
    pub envelope: Envelope,
    /// Whether the broker acknowledged the event.
    pub appended: bool,
}

/// Error of storing or reading an outcome. Every variant can be retried.
#[derive(Debug, Error)]
pub enum OutcomeError {
    /// MySQL failed.
    #[error("failed to store or read an outcome: {0}")]
    MySql(#[from] sqlx::Error),
    /// The outcome does not encode or decode.
    #[error("failed to encode or decode an outcome: {0}")]
    Envelope(#[from] EnvelopeJsonError),
    /// An outcome that existed is gone.
    #[error("a stored outcome disappeared")]
    Missing,
}

/// Access to the stored outcomes. Clones share the pool.
#[derive(Clone, Debug)]
pub struct OutcomeStore {
    pool: MySqlPool,
}

impl Upload {
    /// The upload of an event; `None` for other events.
    pub fn from_envelope(envelope: Envelope) -> Option<Self> {
        match envelope.event {
            Event::Video(VideoEvent::VideoUploaded(video)) => Some(Self {
                video,
                event_id: envelope.id,
                traceparent: envelope.traceparent,
                correlation_id: envelope.correlation_id,
            }),
            _ => None,
        }
    }

    /// Builds the event of the outcome.
    fn outcome_event(&self, verdict: Verdict, time_ms: i64) -> Envelope {
        let (video_id, author_id) = (self.video.video_id, self.video.author_id);
        let event = match verdict {
            Verdict::Publish { play_key, cover_key } => VideoEvent::VideoPublished(VideoPublished {
                video_id,
                author_id,
                play_key,
                cover_key,
                published_ms: time_ms,
            }),
            Verdict::Reject { reason } => {
                VideoEvent::VideoRejected(VideoRejected { video_id, author_id, reason })
            }
        };
        let identity = EventIdentity::new(time_ms);
        Envelope {
            id: identity.event_id,
            source: SOURCE.to_owned(),
            time_ms: identity.time_ms,
            traceparent: self.traceparent.clone(),
            correlation_id: self.correlation_id.clone(),
            causation_id: Some(self.event_id.to_string()),
            event: Event::Video(event),
        }
    }
}

impl OutcomeStore {
    /// The outcomes in the pool's database.
    pub const fn new(pool: MySqlPool) -> Self {
        Self { pool }
    }

    /// Finds the outcome of a video.
    pub async fn find(&self, video: VideoId) -> Result<Option<Outcome>, OutcomeError> {
        let row: Option<(String, bool)> =
            sqlx::query_as("SELECT event, appended FROM media_outcomes WHERE video_id = ?")
                .bind(video.get())
                .fetch_optional(&self.pool)
                .await?;
        row.map(|(event, appended)| Ok(Outcome { envelope: from_json(&event)?, appended })).transpose()
    }

    /// Stores the outcome of an upload and returns it; returns the existing outcome if there is one. So it can be repeated
    /// after an error, which does not tell whether the outcome is stored.
    ///
    /// Its time is MySQL's: the clocks of workers differ. A published video gets a unique publish time: about now, and
    /// above all publish times before it, except those of a clock that was ahead ([ADR 0006]).
    ///
    /// [ADR 0006]: ../../../../docs/adr/0006-a-publish-time-is-unique.md
    pub async fn decide(&self, upload: &Upload, verdict: Verdict) -> Result<Outcome, OutcomeError> {
        let mut transaction = self.pool.begin().await?;
        let time_ms = match &verdict {
            Verdict::Publish { .. } => next_publish_time(&mut transaction).await?,
            Verdict::Reject { .. } => sqlx::query_scalar(NOW).fetch_one(&mut *transaction).await?,
        };
        let envelope = upload.outcome_event(verdict, time_ms);
        let inserted =
            sqlx::query("INSERT IGNORE INTO media_outcomes (video_id, event, appended) VALUES (?, ?, FALSE)")
                .bind(upload.video.video_id.get())
                .bind(to_json(&envelope)?)
                .execute(&mut *transaction)
                .await?;
        if inserted.rows_affected() == 1 {
            transaction.commit().await?;
            return Ok(Outcome { envelope, appended: false });
        }
        // Rolls back the publish time too.
        transaction.rollback().await?;
        self.find(upload.video.video_id).await?.ok_or(OutcomeError::Missing)
    }

    /// Marks a video's outcome as appended.
    pub async fn mark_appended(&self, video: VideoId) -> Result<(), OutcomeError> {
        sqlx::query("UPDATE media_outcomes SET appended = TRUE WHERE video_id = ?")
            .bind(video.get())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Allocates the next publish time. The transaction locks the clock's row, so allocations are serialized.
async fn next_publish_time(transaction: &mut sqlx::MySqlConnection) -> Result<i64, sqlx::Error> {
    let (last_ms, now_ms): (i64, i64) = sqlx::query_as(LOCK_CLOCK).fetch_one(&mut *transaction).await?;
    let from_ms = if last_ms < now_ms + MAX_AHEAD_MS { now_ms.max(last_ms + 1) } else { now_ms };
    let time_ms = first_free_time(&mut *transaction, from_ms).await?;
    sqlx::query("INSERT INTO publish_times (published_ms) VALUES (?)")
        .bind(time_ms)
        .execute(&mut *transaction)
        .await?;
    sqlx::query("UPDATE publish_clock SET last_ms = ? WHERE id = 1")
        .bind(time_ms)
        .execute(transaction)
        .await?;
    Ok(time_ms)
}

/// Finds the first time that no video has. A time can be taken if a clock was ahead when it was allocated.
async fn first_free_time(connection: &mut sqlx::MySqlConnection, from_ms: i64) -> Result<i64, sqlx::Error> {
    let taken: Option<i64> =
        sqlx::query_scalar("SELECT published_ms FROM publish_times WHERE published_ms = ?")
            .bind(from_ms)
            .fetch_optional(&mut *connection)
            .await?;
    if taken.is_none() {
        return Ok(from_ms);
    }
    sqlx::query_scalar(
        "SELECT taken.published_ms + 1 FROM publish_times taken
            LEFT JOIN publish_times next ON next.published_ms = taken.published_ms + 1
            WHERE taken.published_ms >= ? AND next.published_ms IS NULL
            ORDER BY taken.published_ms LIMIT 1",
    )
    .bind(from_ms)
    .fetch_one(connection)
    .await
}
