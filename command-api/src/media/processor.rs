//! One try at an upload: transcodes it, stores the outcome, and appends it.

use std::{path::Path as FilePath, time::Duration};

use futures::StreamExt;
use metrics::{counter, histogram};
use object_store::{ObjectStore, path::Path};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use vidlog_events::{VideoId, VideoUploaded};

use super::{
    config::MediaContext,
    ffmpeg::{ORIGINAL, ToolError},
    jobs::Job,
    outcomes::{Outcome, OutcomeError, OutcomeStore, Upload, Verdict},
    probe::RejectReason,
    retry::{Failure, Reason},
    temp_dir,
    transcode::{self, RenderError, Rendition},
};
use crate::{
    append::append,
    commands::publish::{ORIGINALS, cover_key, play_key},
    envelope_json::from_json,
    metrics::{MEDIA_OUTCOMES, MEDIA_SECONDS},
    publisher::AppendError,
    storage::{CopyError, fetch_file, store_file},
};

/// Timeout of a statement or transaction on the worker's tables.
const MYSQL_TIMEOUT: Duration = Duration::from_secs(10);

/// Processes uploads. Clones share the dependencies.
#[derive(Clone)]
pub(super) struct UploadProcessor {
    context: MediaContext,
    outcomes: OutcomeStore,
}

/// End of a try that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processed {
    /// The broker has acknowledged the outcome.
    Finalized,
    /// Stopped before that; a worker tries again.
    Stopped,
}

impl From<OutcomeError> for Failure {
    fn from(error: OutcomeError) -> Self {
        Self::new(Reason::Unavailable, &error)
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        let reason = match error {
            AppendError::Refused(_) => Reason::Refused,
            AppendError::Busy | AppendError::Unknown(_) => Reason::Unavailable,
        };
        Self::new(reason, &error)
    }
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::new(Reason::Unavailable, &error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Reason::Unavailable, &format!("the temporary directory failed: {error}"))
    }
}

impl UploadProcessor {
    /// A processor.
    pub(super) fn new(context: MediaContext) -> Self {
        Self { outcomes: OutcomeStore::new(context.mysql.clone()), context }
    }

    /// Tries to bring the outcome of an upload into the log.
    pub(super) async fn attempt(&self, job: &Job, stop: &CancellationToken) -> Result<Processed, Failure> {
        let envelope = from_json(&job.event).map_err(|error| Failure::new(Reason::Unavailable, &error))?;
        let Some(upload) = Upload::from_envelope(envelope) else {
            return Err(Failure::new(Reason::Unavailable, "the stored event is not an upload"));
        };
        let video_id = upload.video.video_id;
        let outcome = if let Some(outcome) = with_timeout(self.outcomes.find(video_id)).await? {
            outcome
        } else {
            let verdict = if let Some(reason) = job.history.verdict(&self.context.limits) {
                warn!(%video_id, ?reason, history = ?job.history, "upload rejected after repeated failures");
                Verdict::Reject { reason: reason.for_author() }
            } else {
                // Cancellation is safe at any point before the decision: the work is repeatable.
                let transcoding = Box::pin(self.transcode(&upload.video, job.history.spent));
                let Some(verdict) = stop.run_until_cancelled(transcoding).await else {
                    return Ok(Processed::Stopped);
                };
                verdict?
            };
            with_timeout(self.outcomes.decide(&upload, verdict)).await?
        };
        self.append_outcome(video_id, &outcome).await?;
        Ok(Processed::Finalized)
    }

    /// Appends an outcome, unless it is marked as appended.
    async fn append_outcome(&self, video_id: VideoId, outcome: &Outcome) -> Result<(), Failure> {
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
    async fn transcode(&self, video: &VideoUploaded, spent: Duration) -> Result<Verdict, Failure> {
        let started = Instant::now();
        let directory = temp_dir::create()?;
        self.fetch_original(video, &directory.path().join(ORIGINAL)).await?;
        let rendering = Instant::now();
        let verdict = match transcode::render(directory.path(), &self.context.limits, spent).await {
            Ok(rendition) => self.store_rendition(video, &rendition).await?,
            Err(error) => {
                let reason = reject_reason(error, rendering.elapsed())?;
                Verdict::Reject { reason: reason.for_author() }
            }
        };
        histogram!(MEDIA_SECONDS).record(started.elapsed());
        Ok(verdict)
    }

    async fn fetch_original(&self, video: &VideoUploaded, file: &FilePath) -> Result<(), Failure> {
        let objects = self.context.objects.as_ref();
        let key = object_path(&video.original_key)?;
        match fetch_file(objects, &key, file).await {
            Err(CopyError::Store(object_store::Error::NotFound { .. })) => {
                Err(missing_original(objects).await)
            }
            fetched => Ok(fetched?),
        }
    }

    async fn store_rendition(
        &self,
        video: &VideoUploaded,
        rendition: &Rendition,
    ) -> Result<Verdict, Failure> {
        let objects = self.context.objects.as_ref();
        let (play_key, cover_key) = (play_key(video), cover_key(video));
        store_file(objects, &object_path(&play_key)?, &rendition.video).await?;
        store_file(objects, &object_path(&cover_key)?, &rendition.cover).await?;
        Ok(Verdict::Publish { play_key, cover_key })
    }
}

/// Classifies a missing original: lost, unless the store has no originals at all. Then the store is misconfigured or
/// unavailable, and no upload may be rejected.
async fn missing_original(objects: &dyn ObjectStore) -> Failure {
    match objects.list(Some(&Path::from(ORIGINALS))).next().await {
        Some(Ok(_)) => Failure::new(Reason::Missing, "the original is not in the object store"),
        Some(Err(error)) => Failure::new(Reason::Unavailable, &error),
        None => Failure::new(
            Reason::Unavailable,
            "the object store has no originals at all; is it the one that the command API writes to?",
        ),
    }
}

/// Returns the reason of a rejection, or the failure if the upload can't be rejected for it alone.
fn reject_reason(error: RenderError, spent: Duration) -> Result<RejectReason, Failure> {
    let error = match error {
        RenderError::Rejected(reason) => return Ok(reason),
        RenderError::Failed(error) => error,
    };
    match error {
        // Only the input's share counts against its budget.
        ToolError::Crashed { .. } => Err(Failure { spent, ..Failure::new(Reason::Crashed, &error) }),
        ToolError::TimedOut { .. } => Err(Failure { spent, ..Failure::new(Reason::TimedOut, &error) }),
        ToolError::Unavailable { .. } | ToolError::Refused { .. } => {
            Err(Failure::new(Reason::Unavailable, &error))
        }
    }
}

/// Runs a statement or transaction with a timeout.
pub(super) async fn with_timeout<T>(
    work: impl Future<Output = Result<T, OutcomeError>>,
) -> Result<T, Failure> {
    match timeout(MYSQL_TIMEOUT, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::new(Reason::Unavailable, "MySQL timed out")),
    }
}

fn object_path(key: &str) -> Result<Path, Failure> {
    Path::parse(key)
        .map_err(|error| Failure::new(Reason::Unavailable, &format!("invalid object key {key:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(error: ToolError) -> Failure {
        reject_reason(RenderError::Failed(error), Duration::from_secs(9)).unwrap_err()
    }

    #[test]
    fn only_failures_of_the_input_spend_its_budget() {
        let tool = "ffmpeg";
        let cause = "no space left on device".to_owned();
        let unavailable = failure(ToolError::Unavailable { tool, cause: cause.clone() });
        assert_eq!((unavailable.reason, unavailable.spent), (Reason::Unavailable, Duration::ZERO));
        let crashed = failure(ToolError::Crashed { tool, cause });
        assert_eq!((crashed.reason, crashed.spent.as_secs()), (Reason::Crashed, 9));
        let timed_out = failure(ToolError::TimedOut { tool, limit: Duration::from_secs(9) });
        assert_eq!((timed_out.reason, timed_out.spent.as_secs()), (Reason::TimedOut, 9));
    }
}
