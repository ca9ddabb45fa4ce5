//! Brings one upload to its outcome, and the outcome into the log.

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
    Limits, Media,
    ffmpeg::{ORIGINAL, ToolError},
    folder,
    outcomes::{Outcome, OutcomeError, Outcomes, Upload, Verdict},
    probe::Reason,
    transcode::{self, Rendition, Unmade},
};
use crate::{
    append::append,
    commands::publish::{ORIGINALS, cover_key, play_key},
    metrics::{MEDIA_FAULTS, MEDIA_OUTCOMES, MEDIA_SECONDS},
    publisher::AppendError,
    storage::{CopyError, fetch_file, store_file},
};

const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a question to MySQL may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// Settles uploads. Clones share what it works with, and the bound on how many are worked on at once.
#[derive(Clone)]
pub(super) struct Settler {
    media: Media,
    outcomes: Outcomes,
    slots: Arc<Semaphore>,
}

/// Whether an upload came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Its outcome is acknowledged by the log.
    Yes,
    /// Asked to stop before that.
    Stopped,
}

/// Why an attempt at an upload failed.
#[derive(Debug, Error)]
enum Fault {
    /// Something that is needed is away. It is tried again for as long as it takes.
    #[error("{0}")]
    Away(String),
    /// It may be the upload's own fault. It is tried again a few times, then rejected.
    #[error("{what}")]
    Suspect {
        /// What happened.
        what: String,
        /// How often it may.
        tries: u32,
        /// What the author is told in the end.
        reason: Reason,
    },
}

impl From<OutcomeError> for Fault {
    fn from(error: OutcomeError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<AppendError> for Fault {
    fn from(error: AppendError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<CopyError> for Fault {
    fn from(error: CopyError) -> Self {
        Self::Away(error.to_string())
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Away(format!("the folder for temporary files failed: {error}"))
    }
}

impl Settler {
    /// A settler that works on a number of uploads at once.
    pub(super) fn new(media: Media, concurrency: usize) -> Self {
        let outcomes = Outcomes::new(media.mysql.clone());
        Self { media, outcomes, slots: Arc::new(Semaphore::new(concurrency)) }
    }

    /// Works on an upload until its outcome is in the log; tries again what fails.
    pub(super) async fn settle(&self, upload: &Upload, stop: &CancellationToken) -> Settled {
        let video_id = upload.video.video_id;
        let (mut failures, mut pause) = (Vec::new(), self.media.limits.first_pause);
        loop {
            let fault = match self.attempt(upload, &failures, stop).await {
                Ok(settled) => return settled,
                Err(fault) => fault,
            };
            // Only what may be the upload's fault counts against it.
            if let Fault::Suspect { reason, .. } = fault {
                failures.push(reason);
            }
            counter!(MEDIA_FAULTS).increment(1);
            warn!(%video_id, error = %fault, failures = failures.len(), pause_s = pause.as_secs(), "failed to process an upload; trying again");
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Settled::Stopped;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(
        &self,
        upload: &Upload,
        failures: &[Reason],
        stop: &CancellationToken,
    ) -> Result<Settled, Fault> {
        let known = bounded(self.outcomes.find(upload.video.video_id)).await?;
        let outcome = if let Some(outcome) = known {
            outcome
        } else {
            // Everything up to the decision can be left at any point, and done again.
            let judging = Box::pin(self.judge(&upload.video));
            let Some(judged) = stop.run_until_cancelled(judging).await else {
                return Ok(Settled::Stopped);
            };
            let verdict = give_up_after(failures, judged)?;
            bounded(self.outcomes.decide(upload, verdict, self.media.clock.now_ms())).await?
        };
        self.announce(upload.video.video_id, &outcome).await?;
        Ok(Settled::Yes)
    }

    /// Appends an outcome, unless the log is known to have it.
    async fn announce(&self, video_id: VideoId, outcome: &Outcome) -> Result<(), Fault> {
        if outcome.appended {
            return Ok(());
        }
        let name = outcome.envelope.event.type_name();
        append(self.media.log.as_ref(), &self.media.freshness, &outcome.envelope).await?;
        counter!(MEDIA_OUTCOMES, "outcome" => name).increment(1);
        info!(%video_id, outcome = name, "settled an upload");
        if let Err(error) = bounded(self.outcomes.mark_appended(video_id)).await {
            // Then it is appended again if the upload is ever seen again, which changes nothing.
            warn!(%video_id, %error, "failed to note that an outcome is in the log");
        }
        Ok(())
    }

    /// Finds out what becomes of an upload, and stores what is published of it.
    async fn judge(&self, video: &VideoUploaded) -> Result<Verdict, Fault> {
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(Fault::Away("the worker is closed".to_owned()));
        };
        let started = Instant::now();
        let folder = folder::make()?;
        self.fetch(video, &folder.path().join(ORIGINAL)).await?;
        let verdict = match transcode::render(folder.path(), self.media.limits).await {
            Ok(rendition) => self.store(video, &rendition).await?,
            Err(unmade) => Verdict::Reject { reason: rejected(unmade, self.media.limits)?.for_author() },
        };
        histogram!(MEDIA_SECONDS).record(started.elapsed());
        Ok(verdict)
    }

    async fn fetch(&self, video: &VideoUploaded, file: &FilePath) -> Result<(), Fault> {
        let objects = self.media.objects.as_ref();
        let key = key(&video.original_key)?;
        match fetch_file(objects, &key, file).await {
            Err(CopyError::Store(object_store::Error::NotFound { .. })) => {
                Err(lost(objects, self.media.limits).await)
            }
            fetched => Ok(fetched?),
        }
    }

    async fn store(&self, video: &VideoUploaded, rendition: &Rendition) -> Result<Verdict, Fault> {
        let objects = self.media.objects.as_ref();
        let (play_key, cover_key) = (play_key(video), cover_key(video));
        store_file(objects, &key(&play_key)?, &rendition.video).await?;
        store_file(objects, &key(&cover_key)?, &rendition.cover).await?;
        Ok(Verdict::Publish { play_key, cover_key })
    }
}

/// An original that is not there is lost, unless none is: then this is not the store that uploads go to, and nothing
/// may be concluded from it.
async fn lost(objects: &dyn ObjectStore, limits: Limits) -> Fault {
    match objects.list(Some(&Path::from(ORIGINALS))).next().await {
        Some(Ok(_)) => Fault::Suspect {
            what: "the original is not in the object store".to_owned(),
            tries: limits.searches,
            reason: Reason::Lost,
        },
        Some(Err(error)) => Fault::Away(error.to_string()),
        None => Fault::Away(
            "the object store has no originals at all; is it the one that the command API writes to?"
                .to_owned(),
        ),
    }
}

/// The reason of a rejection; an error if it can't be known yet.
fn rejected(unmade: Unmade, limits: Limits) -> Result<Reason, Fault> {
    match unmade {
        Unmade::Rejected(reason) => Ok(reason),
        Unmade::Failed(error @ ToolError::Crashed { .. }) => {
            Err(Fault::Suspect { what: error.to_string(), tries: limits.crashes, reason: Reason::Unworkable })
        }
        Unmade::Failed(error) => Err(Fault::Away(error.to_string())),
    }
}

/// Rejects what failed too often already for the same reason.
fn give_up_after(failures: &[Reason], judged: Result<Verdict, Fault>) -> Result<Verdict, Fault> {
    match judged {
        Err(Fault::Suspect { what, tries, reason }) if times(failures, reason) + 1 >= tries => {
            warn!(error = what, failures = failures.len(), "gave up on an upload");
            Ok(Verdict::Reject { reason: reason.for_author() })
        }
        judged => judged,
    }
}

fn times(failures: &[Reason], reason: Reason) -> u32 {
    failures.iter().filter(|failure| **failure == reason).map(|_| 1).sum()
}

async fn bounded<T>(question: impl Future<Output = Result<T, OutcomeError>>) -> Result<T, Fault> {
    match timeout(STORE_TIMEOUT, question).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Fault::Away("MySQL did not answer in time".to_owned())),
    }
}

fn key(text: &str) -> Result<Path, Fault> {
    Path::parse(text).map_err(|error| Fault::Away(format!("{text:?} is no object key: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash() -> Result<Verdict, Fault> {
        let error = ToolError::Crashed { tool: "ffmpeg", what: "was killed by signal 9".to_owned() };
        Err(rejected(Unmade::Failed(error), Limits::default()).unwrap_err())
    }

    fn is_suspect(judged: &Result<Verdict, Fault>) -> bool {
        matches!(judged, Err(Fault::Suspect { .. }))
    }

    #[test]
    fn what_brings_the_tools_down_is_tried_a_few_times_and_then_rejected() {
        assert!(is_suspect(&give_up_after(&[], crash())));
        assert!(is_suspect(&give_up_after(&[Reason::Unworkable], crash())));
        assert!(
            is_suspect(&give_up_after(&[Reason::Lost; 9], crash())),
            "another kind of failure does not count"
        );
        let verdict = give_up_after(&[Reason::Unworkable; 2], crash()).unwrap();
        assert_eq!(verdict, Verdict::Reject { reason: Reason::Unworkable.for_author() });
    }

    #[test]
    fn what_the_machine_lacks_is_never_held_against_an_upload() {
        let error = ToolError::Hindered { tool: "ffmpeg", what: "no space left on device".to_owned() };
        let fault = rejected(Unmade::Failed(error), Limits::default()).unwrap_err();
        assert!(matches!(give_up_after(&[Reason::Unworkable; 99], Err(fault)), Err(Fault::Away(_))));
    }
}
