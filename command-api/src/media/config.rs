//! Settings, limits and dependencies of the media worker.

use std::{num::NonZeroUsize, sync::Arc, thread::available_parallelism, time::Duration};

use clap::Args;
use object_store::ObjectStore;
use sqlx::MySqlPool;
use vidlog_read_models::Freshness;
use vidlog_service_kit::config::Kafka;

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
            limits: Limits::default(),
        }
    }
}

/// Limits on uploads and retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum length of a video.
    pub max_length: Duration,
    /// Time that ffmpeg may use to transcode an upload over all tries, in addition to four times the video's length.
    /// One try may use half of the total. Probes and covers have fixed limits.
    pub base_budget: Duration,
    /// Number of timeouts after which an upload is rejected. At two it has used its budget.
    pub max_timeouts: u32,
    /// Number of crashes of ffmpeg after which an upload is rejected.
    pub max_crashes: u32,
    /// Number of workers that may vanish while they process an upload, before it is rejected. Higher than the number of
    /// crashes: a machine that fails, or a worker that loses MySQL for longer than its lease, is not the upload's fault.
    pub max_interruptions: u32,
    /// Number of times that an upload may be missing from the object store before it is rejected as lost. The default
    /// takes an hour: the store may be misconfigured, and a rejection is final.
    pub max_missing: u32,
    /// Delay after the first failure. Doubles with each further failure, up to 30 s.
    pub initial_backoff: Duration,
    /// Interval at which a worker renews its leases, and looks for uploads that are due or that another worker has
    /// enqueued.
    pub poll_interval: Duration,
    /// Duration of a worker's claim to an upload unless it renews it.
    pub lease: Duration,
}

impl Limits {
    /// Time that ffmpeg may use for an upload of a length over all tries.
    pub(super) fn budget(&self, length: Option<Duration>) -> Duration {
        self.base_budget + 4 * length.unwrap_or(self.max_length).min(self.max_length)
    }

    /// Time that ffmpeg may use in one try, after earlier ones have spent a part of the budget.
    pub(super) fn try_timeout(&self, length: Option<Duration>, spent: Duration) -> Duration {
        let budget = self.budget(length);
        (budget / 2).min(budget.saturating_sub(spent))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_length: Duration::from_mins(15),
            base_budget: Duration::from_mins(2),
            max_timeouts: 2,
            max_crashes: 3,
            max_interruptions: 5,
            max_missing: 120,
            initial_backoff: Duration::from_secs(1),
            poll_interval: Duration::from_secs(1),
            lease: Duration::from_secs(45),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tries_share_one_budget() {
        let limits = Limits::default();
        let timeout =
            |spent_s| limits.try_timeout(Some(Duration::from_mins(15)), Duration::from_secs(spent_s));
        assert_eq!(
            [0, 31 * 60, 40 * 60, 99 * 60].map(|spent_s| timeout(spent_s).as_secs() / 60),
            [31, 31, 22, 0]
        );
        assert_eq!(limits.budget(None), Duration::from_mins(62), "of an unknown length");
    }
}
