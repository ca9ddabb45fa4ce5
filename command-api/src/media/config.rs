//! Settings, limits and dependencies of the media worker.

use std::{num::NonZeroUsize, sync::Arc, thread::available_parallelism, time::Duration};

use clap::Args;
use object_store::ObjectStore;
use sqlx::MySqlPool;
use vidlog_read_models::Freshness;
use vidlog_service_kit::{clock::Clock, config::Kafka};

use crate::{publisher::EventLog, state::CommandState};

/// Settings of the media worker.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct MediaConfig {
    /// Maximum number of uploads processed concurrently; by default one per two cores.
    #[arg(long, env = "VIDLOG_MEDIA_CONCURRENCY")]
    pub media_concurrency: Option<NonZeroUsize>,
}

impl MediaConfig {
    pub(super) fn concurrency(self) -> usize {
        self.media_concurrency.map_or_else(
            || (available_parallelism().map_or(1, NonZeroUsize::get) / 2).max(1),
            NonZeroUsize::get,
        )
    }
}

/// The log and namespace from which uploads are consumed.
#[derive(Clone, Copy, Debug)]
pub struct UploadSource<'a> {
    /// Connection settings of the log.
    pub log: &'a Kafka,
    /// Prefix of the topic and of the consumer group.
    pub namespace: &'a str,
}

/// Dependencies of the media worker. Clones share them.
#[derive(Clone)]
pub struct MediaContext {
    /// The log.
    pub log: Arc<dyn EventLog>,
    /// Stores originals and published media.
    pub objects: Arc<dyn ObjectStore>,
    /// The command side's own tables.
    pub mysql: MySqlPool,
    /// Records the positions of outcomes for read-your-writes.
    pub freshness: Freshness,
    /// The clock.
    pub clock: Clock,
    /// Limits on uploads and retries.
    pub limits: Limits,
}

impl MediaContext {
    /// A context that shares the command API's connections.
    pub fn from_state(state: &CommandState) -> Self {
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

/// Limits on uploads and retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of a video.
    pub max_length: Duration,
    /// Timeout of ffmpeg, in addition to four times the video's length.
    pub base_timeout: Duration,
    /// Number of crashes or timeouts of ffmpeg after which an upload is rejected.
    pub max_crashes: u32,
    /// Number of times that an upload may be missing from the object store before it is rejected as lost. The default
    /// takes an hour: the store may be misconfigured, and a rejection is final.
    pub max_missing: u32,
    /// Delay after the first failure. Doubles with each further failure, up to 30 s.
    pub initial_backoff: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_length: Duration::from_mins(15),
            base_timeout: Duration::from_mins(1),
            max_crashes: 3,
            max_missing: 120,
            initial_backoff: Duration::from_secs(1),
        }
    }
}
