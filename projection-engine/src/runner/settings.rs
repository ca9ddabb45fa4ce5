//! The settings that all runners of a process share.

use std::sync::Arc;

use tokio::sync::watch;

use super::status::PartitionStatusRegistry;
use crate::{
    dead_letters::DeadLetterQueue,
    desired_state::DesiredStates,
    log::{Log, identity::FirstRecords},
};

/// The settings that all runners of a process share.
pub struct Settings {
    /// The name of this process. A process with a name keeps its partitions across a restart.
    pub instance: Option<String>,
    /// How long an instance may not send heartbeats before it loses its partitions, in milliseconds.
    pub session_timeout_ms: u32,
    /// Prefix of the consumer groups.
    pub namespace: String,
    /// The log.
    pub log: Log,
    /// The first records of partitions, which identify the log.
    pub first_records: FirstRecords,
    /// The dead-letter queue.
    pub dead_letters: DeadLetterQueue,
    /// The desired states of the projections.
    pub desired_states: watch::Receiver<DesiredStates>,
    /// The statuses of the partitions.
    pub statuses: Arc<PartitionStatusRegistry>,
}
