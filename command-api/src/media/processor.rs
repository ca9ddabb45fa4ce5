//! Processes one upload: transcodes it, stores the outcome, and appends it.

use std::{path::Path as FilePath, sync::Arc, time::Duration};

use futures::StreamExt;
use metrics::{counter, histogram};
use object_store::{ObjectStore, path::Path};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use vidlog_events::{VideoId, VideoUploaded};

use super::{
    config::{Limits, MediaContext},
    ffmpeg::{ORIGINAL, ToolError},
    outcomes::{Outcome, OutcomeError, OutcomeStore, Upload, Verdict},
    probe::RejectReason,
    temp_dir,
    transcode::{self, RenderError, Rendition},
};
use crate::{
    append::append,
    commands::publish::{ORIGINALS, cover_key, play_key},
    metrics::{MEDIA_FAULTS, MEDIA_OUTCOMES, MEDIA_SECONDS},
    publisher::AppendError,
    storage::{CopyError, fetch_file, store_file},
};

const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Timeout of a statement on `media_outcomes`.
const MYSQL_TIMEOUT: Duration = Duration::from_secs(10);

/// Processes uploads. Clones share the dependencies and the bound on concurrency.
#[derive(Clone)]
pub(super) struct UploadProcessor {
    context: MediaContext,
    outcomes: OutcomeStore,
    permits: Arc<Semaphore>,
}

/// Result of processing an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processed {
    /// The broker has acknowledged the outcome.
    Finalized,
    /// Stopped before that; another worker processes the upload again.
    Stopped,
}

/// Error of an attempt to process an upload.
#[derive(Debug, Error)]
enum AttemptError {
    /// A dependency is unavailable. Retried without limit.
    #[error("{0}")]
    Unavailable(String),
    /// The upload may be the cause. Retried a few times, then the upload is rejected.
    #[error("{cause}")]
    PossiblyBadInput {
        cause: String,
        /// Number of such errors after which the upload is rejected.
        max_attempts: u32,
        /// Reason of the rejection.
        reason: RejectReason,
    },
}

impl From<OutcomeError> for AttemptError {
    fn from(error: OutcomeError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<AppendError> for AttemptError {
    fn from(error: AppendError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<CopyError> for AttemptError {
    fn from(error: CopyError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<std::io::Error> for AttemptError {
    fn from(error: std::io::Error) -> Self {
        Self::Unavailable(format!("the temporary directory failed: {error}"))
    }
}

impl UploadProcessor {
    /// A processor that transcodes up to `concurrency` uploads at a time.
    pub(super) fn new(context: MediaContext, concurrency: usize) -> Self {
        let outcomes = OutcomeStore::new(context.mysql.clone());
        Self { context, outcomes, permits: Arc::new(Semaphore::new(concurrency)) }
    }

    /// Processes an upload, with retries, until its outcome is in the log.
    pub(super) async fn finalize(&self, upload: &Upload, stop: &CancellationToken) -> Processed {
        let video_id = upload.video.video_id;
        let (mut failures, mut backoff) = (Vec::new(), self.context.limits.initial_backoff);
        loop {
            let error = match self.attempt(upload, &failures, stop).await {
                Ok(processed) => return processed,
                Err(error) => error,
            };
            if let AttemptError::PossiblyBadInput { reason, .. } = error {
                failures.push(reason);
            }
            counter!(MEDIA_FAULTS).increment(1);
            warn!(%video_id, %error, failures = failures.len(), backoff_s = backoff.as_secs(), "failed to process upload; retrying");
            if stop.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                return Processed::Stopped;
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn attempt(
        &self,
        upload: &Upload,
        failures: &[RejectReason],
        stop: &CancellationToken,
    ) -> Result<Processed, AttemptError> {
        let stored = with_timeout(self.outcomes.find(upload.video.video_id)).await?;
        let outcome = if let Some(outcome) = stored {
            outcome
        } else {
            // Cancellation is safe at any point before the decision: the work is repeatable.
            let transcoding = Box::pin(self.transcode(&upload.video));
            let Some(verdict) = stop.run_until_cancelled(transcoding).await else {
                return Ok(Processed::Stopped);
            };
            let verdict = reject_after_max_attempts(failures, verdict)?;
            with_timeout(self.outcomes.decide(upload, verdict, self.context.clock.now_ms())).await?
        };
        self.append_outcome(upload.video.video_id, &outcome).await?;
        Ok(Processed::Finalized)
    }

    /// Appends an outcome, unless it is marked as appended.
    async fn append_outcome(&self, video_id: VideoId, outcome: &Outcome) -> Result<(), AttemptError> {
        if outcome.appended {
            return Ok(());
        }
        let name = outcome.envelope.event.type_name();
        append(self.context.log.as_ref(), &self.context.freshness, &outcome.envelope).await?;
        counter!(MEDIA_OUTCOMES, "outcome" => name).increment(1);
        info!(%video_id, outcome = name, "upload finalized");
        if let Err(error) = with_timeout(self.outcomes.mark_appended(video_id)).await {
            // Best effort: otherwise the outcome may be appended again, which folds ignore.
            warn!(%video_id, %error, "failed to mark outcome as appended");
        }
        Ok(())
    }

    /// Transcodes an upload and stores the published files; returns the verdict.
    async fn transcode(&self, video: &VideoUploaded) -> Result<Verdict, AttemptError> {
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(AttemptError::Unavailable("the worker is closed".to_owned()));
        };
        let started = Instant::now();
        let directory = temp_dir::create()?;
        self.fetch_original(video, &directory.path().join(ORIGINAL)).await?;
        let verdict = match transcode::render(directory.path(), self.context.limits).await {
            Ok(rendition) => self.store_rendition(video, &rendition).await?,
            Err(error) => Verdict::Reject { reason: reject_reason(error, self.context.limits)?.for_author() },
        };
        histogram!(MEDIA_SECONDS).record(started.elapsed());
        Ok(verdict)
    }

    async fn fetch_original(&self, video: &VideoUploaded, file: &FilePath) -> Result<(), AttemptError> {
        let objects = self.context.objects.as_ref();
        let key = object_path(&video.original_key)?;
        match fetch_file(objects, &key, file).await {
            Err(CopyError::Store(object_store::Error::NotFound { .. })) => {
                Err(missing_original(objects, self.context.limits).await)
            }
            fetched => Ok(fetched?),
        }
    }

    async fn store_rendition(
        &self,
        video: &VideoUploaded,
        rendition: &Rendition,
    ) -> Result<Verdict, AttemptError> {
        let objects = self.context.objects.as_ref();
        let (play_key, cover_key) = (play_key(video), cover_key(video));
        store_file(objects, &object_path(&play_key)?, &rendition.video).await?;
        store_file(objects, &object_path(&cover_key)?, &rendition.cover).await?;
        Ok(Verdict::Publish { play_key, cover_key })
    }
}

/// Classifies a missing original: lost, unless the store has no originals at all. Then the store is misconfigured or
/// unavailable, and no upload may be rejected.
async fn missing_original(objects: &dyn ObjectStore, limits: Limits) -> AttemptError {
    match objects.list(Some(&Path::from(ORIGINALS))).next().await {
        Some(Ok(_)) => AttemptError::PossiblyBadInput {
            cause: "the original is not in the object store".to_owned(),
            max_attempts: limits.max_missing,
            reason: RejectReason::Lost,
        },
        Some(Err(error)) => AttemptError::Unavailable(error.to_string()),
        None => AttemptError::Unavailable(
            "the object store has no originals at all; is it the one that the command API writes to?"
                .to_owned(),
        ),
    }
}

/// Returns the reason of a rejection, or the error if the upload can't be rejected yet.
fn reject_reason(error: RenderError, limits: Limits) -> Result<RejectReason, AttemptError> {
    match error {
        RenderError::Rejected(reason) => Ok(reason),
        RenderError::Failed(error @ ToolError::Crashed { .. }) => Err(AttemptError::PossiblyBadInput {
            cause: error.to_string(),
            max_attempts: limits.max_crashes,
            reason: RejectReason::Unprocessable,
        }),
        RenderError::Failed(error) => Err(AttemptError::Unavailable(error.to_string())),
    }
}

/// Turns an error into a rejection once it has occurred too often for the same reason.
fn reject_after_max_attempts(
    failures: &[RejectReason],
    result: Result<Verdict, AttemptError>,
) -> Result<Verdict, AttemptError> {
    match result {
        Err(AttemptError::PossiblyBadInput { cause, max_attempts, reason })
            if count(failures, reason) + 1 >= max_attempts =>
        {
            warn!(error = cause, failures = failures.len(), "upload rejected after repeated failures");
            Ok(Verdict::Reject { reason: reason.for_author() })
        }
        result => result,
    }
}

fn count(failures: &[RejectReason], reason: RejectReason) -> u32 {
    failures.iter().filter(|failure| **failure == reason).map(|_| 1).sum()
}

async fn with_timeout<T>(work: impl Future<Output = Result<T, OutcomeError>>) -> Result<T, AttemptError> {
    match timeout(MYSQL_TIMEOUT, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(AttemptError::Unavailable("MySQL timed out".to_owned())),
    }
}

fn object_path(key: &str) -> Result<Path, AttemptError> {
    Path::parse(key)
        .map_err(|error| AttemptError::Unavailable(format!("invalid object key {key:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash() -> Result<Verdict, AttemptError> {
        let error = ToolError::Crashed { tool: "ffmpeg", cause: "was killed by signal 9".to_owned() };
        Err(reject_reason(RenderError::Failed(error), Limits::default()).unwrap_err())
    }

    fn is_retried(result: &Result<Verdict, AttemptError>) -> bool {
        matches!(result, Err(AttemptError::PossiblyBadInput { .. }))
    }

    #[test]
    fn crashing_upload_is_rejected_after_max_crashes() {
        assert!(is_retried(&reject_after_max_attempts(&[], crash())));
        assert!(is_retried(&reject_after_max_attempts(&[RejectReason::Unprocessable], crash())));
        assert!(
            is_retried(&reject_after_max_attempts(&[RejectReason::Lost; 9], crash())),
            "failures for another reason do not count"
        );
        let verdict = reject_after_max_attempts(&[RejectReason::Unprocessable; 2], crash()).unwrap();
        assert_eq!(verdict, Verdict::Reject { reason: RejectReason::Unprocessable.for_author() });
    }

    #[test]
    fn unavailable_tool_never_rejects_an_upload() {
        let error = ToolError::Unavailable { tool: "ffmpeg", cause: "no space left on device".to_owned() };
        let error = reject_reason(RenderError::Failed(error), Limits::default()).unwrap_err();
        let failures = [RejectReason::Unprocessable; 99];
        assert!(matches!(
            reject_after_max_attempts(&failures, Err(error)),
            Err(AttemptError::Unavailable(_))
        ));
    }
}
