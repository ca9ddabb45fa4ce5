//! What became of each upload, in the MySQL table `media_outcomes`: decided once, appended until acknowledged.

use sqlx::MySqlPool;
use thiserror::Error;
use uuid::Uuid;
use vidlog_events::{Envelope, Event, VideoEvent, VideoId, VideoPublished, VideoRejected, VideoUploaded};

use crate::{
    origin::Stamp,
    stored::{StoredError, from_text, to_text},
};

/// `ce_source` of outcomes.
const SOURCE: &str = "/vidlog/media-worker";

/// An upload as its event tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The video.
    pub video: VideoUploaded,
    /// The `ce_id` of the upload, which causes its outcome.
    pub event_id: Uuid,
    /// The trace of the request that uploaded it.
    pub traceparent: Option<String>,
    /// The id of that request.
    pub correlation_id: Option<String>,
}

/// What was found out about an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It can be seen.
    Publish {
        /// The object key of the playable file.
        play_key: String,
        /// The object key of the cover.
        cover_key: String,
    },
    /// It can't be.
    Reject {
        /// Why, in words for the author.
        reason: String,
    },
}

/// An outcome that is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its event, always the same.
    pub envelope: Envelope,
    /// Whether that was acknowledged by the log.
    pub appended: bool,
}

/// Why outcomes can't be read or written. Trying again is right in each case.
#[derive(Debug, Error)]
pub enum OutcomeError {
    /// MySQL did not do it.
    #[error("failed to store or read an outcome: {0}")]
    MySql(#[from] sqlx::Error),
    /// What is stored can't be read, or what is to be stored can't be written.
    #[error("an outcome can't be read or written: {0}")]
    Stored(#[from] StoredError),
    /// What was just found to be stored is not there.
    #[error("an outcome vanished")]
    Vanished,
}

/// The outcomes. Clones share the pool.
#[derive(Clone, Debug)]
pub struct Outcomes {
    pool: MySqlPool,
}

impl Upload {
    /// The upload of an event, if it is one.
    pub fn of(envelope: Envelope) -> Option<Self> {
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

    /// The event of its outcome.
    fn outcome(&self, verdict: Verdict, time_ms: i64) -> Envelope {
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
        let stamp = Stamp::new(time_ms);
        Envelope {
            id: stamp.event_id,
            source: SOURCE.to_owned(),
            time_ms: stamp.time_ms,
            traceparent: self.traceparent.clone(),
            correlation_id: self.correlation_id.clone(),
            causation_id: Some(self.event_id.to_string()),
            event: Event::Video(event),
        }
    }
}

impl Outcomes {
    /// The outcomes in a database.
    pub const fn new(pool: MySqlPool) -> Self {
        Self { pool }
    }

    /// What was decided about a video.
    pub async fn find(&self, video: VideoId) -> Result<Option<Outcome>, OutcomeError> {
        let row: Option<(String, bool)> =
            sqlx::query_as("SELECT event, appended FROM media_outcomes WHERE video_id = ?")
                .bind(video.get())
                .fetch_optional(&self.pool)
                .await?;
        row.map(|(event, appended)| Ok(Outcome { envelope: from_text(&event)?, appended })).transpose()
    }

    /// Decides about an upload, unless that was done before: the first decision stands, and is returned.
    ///
    /// A video that is published gets a publish time of its own, now or later, after all that were given out before.
    pub async fn decide(
        &self,
        upload: &Upload,
        verdict: Verdict,
        now_ms: i64,
    ) -> Result<Outcome, OutcomeError> {
        let mut transaction = self.pool.begin().await?;
        let time_ms = match &verdict {
            Verdict::Publish { .. } => take_publish_time(&mut transaction, now_ms).await?,
            Verdict::Reject { .. } => now_ms,
        };
        let envelope = upload.outcome(verdict, time_ms);
        let inserted =
            sqlx::query("INSERT IGNORE INTO media_outcomes (video_id, event, appended) VALUES (?, ?, FALSE)")
                .bind(upload.video.video_id.get())
                .bind(to_text(&envelope)?)
                .execute(&mut *transaction)
                .await?;
        if inserted.rows_affected() == 1 {
            transaction.commit().await?;
            return Ok(Outcome { envelope, appended: false });
        }
        // The time that was taken goes back with the transaction.
        transaction.rollback().await?;
        self.find(upload.video.video_id).await?.ok_or(OutcomeError::Vanished)
    }

    /// Notes that the log has the event of a video's outcome.
    pub async fn mark_appended(&self, video: VideoId) -> Result<(), OutcomeError> {
        sqlx::query("UPDATE media_outcomes SET appended = TRUE WHERE video_id = ?")
            .bind(video.get())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// The next publish time. Its row is locked until the transaction ends, so that two workers never get the same.
async fn take_publish_time(transaction: &mut sqlx::MySqlConnection, now_ms: i64) -> Result<i64, sqlx::Error> {
    sqlx::query("UPDATE publish_clock SET last_ms = GREATEST(last_ms + 1, ?) WHERE id = 1")
        .bind(now_ms)
        .execute(&mut *transaction)
        .await?;
    sqlx::query_scalar("SELECT last_ms FROM publish_clock WHERE id = 1").fetch_one(transaction).await
}
