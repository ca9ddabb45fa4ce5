//! The media worker: makes of every upload a playable file and a cover, or finds out why that can't be, and appends
//! the outcome.
//!
//! An upload is decided once: the outcome is stored before it is appended, and whoever finds it stored appends it as
//! it is. So an upload can be worked on again after any crash, or by two workers at once, and there is one outcome.

mod ffmpeg;
mod folder;
mod job;
mod offsets;
pub mod outcomes;
mod probe;
mod transcode;
mod worker;

use std::{num::NonZeroUsize, sync::Arc, thread::available_parallelism, time::Duration};

use clap::Args;
use object_store::ObjectStore;
use sqlx::MySqlPool;
use tokio::task::spawn_blocking;
use vidlog_read_models::Freshness;
use vidlog_service_kit::{clock::Clock, config::Log, ops::Readiness, shutdown::Shutdown};

use crate::{publisher::EventLog, state::CommandState};

/// Settings of the media worker.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct MediaConfig {
    /// Uploads that are worked on at once; by default one for every two cores.
    #[arg(long, env = "VIDLOG_MEDIA_CONCURRENCY")]
    pub media_concurrency: Option<NonZeroUsize>,
}

impl MediaConfig {
    fn concurrency(self) -> usize {
        self.media_concurrency.map_or_else(
            || (available_parallelism().map_or(1, NonZeroUsize::get) / 2).max(1),
            NonZeroUsize::get,
        )
    }
}

/// Where uploads are announced.
#[derive(Clone, Copy, Debug)]
pub struct Uploads<'a> {
    /// Where the log is.
    pub log: &'a Log,
    /// Prefix of the topic and of the consumer group.
    pub namespace: &'a str,
}

/// What the media worker works with. Clones share all of it.
#[derive(Clone)]
pub struct Media {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Media, as they were uploaded and as they are served.
    pub objects: Arc<dyn ObjectStore>,
    /// The command side's own tables.
    pub mysql: MySqlPool,
    /// Marks outcomes for those who must see them.
    pub freshness: Freshness,
    /// The time.
    pub clock: Clock,
    /// What is published, and how hard is tried.
    pub limits: Limits,
}

impl Media {
    /// A worker of what the command API works with.
    pub fn of(state: &CommandState) -> Self {
        Self {
            log: Arc::clone(&state.log),
            objects: Arc::clone(&state.objects),
            mysql: state.mysql.clone(),
            freshness: state.read_models.freshness.clone(),
            clock: state.clock.clone(),
            limits: Limits::default(),
        }
    }
}

/// What is published, and how hard is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest video.
    pub longest: Duration,
    /// How long ffmpeg may work on any video, beside four times its length.
    pub patience: Duration,
    /// How often an upload may bring ffmpeg down, or let it run out of time, before that counts as the upload's fault.
    pub crashes: u32,
    /// How often an upload is looked for that is not in the store, before it counts as lost. By default that takes an
    /// hour: it may be the wrong store, and a rejection is for ever.
    pub searches: u32,
    /// The pause after the first failure. It doubles with each, up to half a minute.
    pub first_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            longest: Duration::from_mins(15),
            patience: Duration::from_mins(1),
            crashes: 3,
            searches: 120,
            first_pause: Duration::from_secs(1),
        }
    }
}

/// Works on uploads until shutdown is given. What was not finished by then is done again by whoever comes next.
///
/// It fails if its tools are not installed.
pub fn run(
    config: MediaConfig,
    uploads: Uploads<'_>,
    media: Media,
    readiness: Readiness,
    shutdown: Shutdown,
) -> impl Future<Output = anyhow::Result<()>> {
    // At once, not when it is first polled: whoever asks before that must not be told that all is ready.
    readiness.not_ready(worker::PART, "not started yet");
    async move {
        ffmpeg::check_tools().await?;
        spawn_blocking(folder::remove_abandoned).await?;
        let settler = job::Settler::new(media, config.concurrency());
        worker::Worker::new(uploads, settler, readiness, shutdown)?.run().await
    }
}
