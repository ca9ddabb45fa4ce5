//! The media worker: transcodes each upload to a playable file and a cover, or rejects it, and appends the outcome.
//!
//! An upload has one outcome: a worker stores it before it appends it, and appends a stored outcome unchanged. So an
//! upload can be processed again after a crash, or by two workers concurrently.

mod config;
mod ffmpeg;
mod offsets;
pub mod outcomes;
mod probe;
mod processor;
mod temp_dir;
mod transcode;
mod worker;

use tokio::task::spawn_blocking;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

pub use self::config::{Limits, MediaConfig, MediaContext, UploadSource};
use self::{processor::UploadProcessor, worker::Worker};

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
    readiness.not_ready(worker::PART, "not started yet");
    async move {
        ffmpeg::check_tools().await?;
        spawn_blocking(temp_dir::remove_abandoned).await?;
        let processor = UploadProcessor::new(context, config.concurrency());
        Worker::new(source, processor, readiness, shutdown)?.run().await
    }
}
