//! What all runners of a process share.

use std::sync::Arc;

use tokio::sync::watch;

use super::status::Board;
use crate::{
    dead_letters::Post,
    desired_state::AllWanted,
    log::{Log, identity::FirstRecords},
};

/// What all runners of a process share.
pub struct Settings {
    /// The name of this process, if it was given one: it keeps its partitions over a restart.
    pub instance: Option<String>,
    /// How long an instance may be unheard of before it loses its partitions, in milliseconds.
    pub session_timeout_ms: u32,
    /// Prefix of the consumer groups.
    pub namespace: String,
    /// The log.
    pub log: Log,
    /// Tells which log it is.
    pub first_records: FirstRecords,
    /// The way to the dead letters.
    pub post: Post,
    /// What is wanted of the projections.
    pub wanted: watch::Receiver<AllWanted>,
    /// Where the runners tell how their partitions are.
    pub board: Arc<Board>,
}
