//! The media worker: transcodes each upload to a playable file and a cover, or rejects it, and appends the outcome.
//!
//! The intake moves uploads from the log into a queue in MySQL; the scheduler claims and processes them. Any number of
//! workers share the queue.
//!
//! An upload has one outcome: a worker stores it before it appends it, and appends a stored outcome unchanged. So an
//! upload can be processed again after a crash, or by two workers concurrently.

mod config;
mod ffmpeg;
mod intake;
pub mod jobs;
pub mod outcomes;
mod probe;
mod processor;
pub mod retry;
mod scheduler;
mod temp_dir;
mod transcode;

use std::sync::Arc;

use tokio::{sync::Notify, task::spawn_blocking};
use uuid::Uuid;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

pub use self::config::{Limits, MediaConfig, MediaContext, UploadSource};
use self::{intake::Intake, jobs::JobStore, processor::UploadProcessor, scheduler::Scheduler};

/// Processes uploads until shutdown. Unfinished uploads are processed again by the next worker.
///
/// Fails if ffmpeg or its sandbox tools are not installed.
pub fn run(
    config: MediaConfig,
    source: UploadSource<'_>,
    context: MediaContext,
    readiness: Readiness,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> {
    // Set before the first poll, so that readiness is never reported before the worker runs.
    readiness.not_ready(intake::PART, "not started yet");
    async move {
        ffmpeg::check_tools().await?;
        spawn_blocking(temp_dir::remove_abandoned).await?;
        let jobs = JobStore::new(context.mysql.clone(), Uuid::new_v4().to_string(), context.limits.lease);
        let enqueued = Arc::new(Notify::new());
        let intake =
            Intake::new(source, (jobs.clone(), Arc::clone(&enqueued)), readiness.clone(), shutdown.clone())?;
        let scheduler = Scheduler {
            concurrency: config.concurrency(),
            limits: context.limits,
            processor: UploadProcessor::new(context),
            jobs,
            enqueued,
            readiness,
        };
        let stop = shutdown.clone();
        let consume = Box::pin(async move {
            let consumed = intake.run().await;
            stop.request();
            consumed
        });
        let (consumed, ()) = tokio::join!(consume, Box::pin(scheduler.run(shutdown)));
        consumed
    }
}
