//! The runner: the loop around a projection.
//!
//! One thread polls Kafka for a projection (`consumer`) and hands each assigned partition's records to a task of its
//! own (`partition`), which folds them into the store in batches. Where a partition starts is what the store says;
//! Kafka's committed offset is only a hint for lag tools.

mod assignment;
mod board;
mod client;
mod consumer;
mod partition;
mod queue;

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;
use vidlog_events::Topics;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

pub use self::board::Board;
pub(crate) use self::board::{Line, Phase};
use crate::{
    control::AllWanted,
    dead_letters::Post,
    log_identity::FirstRecords,
    projection::Projection,
    sink::{Sink, Target},
};

/// What all runners of a process share.
pub struct Settings {
    /// Kafka brokers.
    pub brokers: String,
    /// The name of this process, if it was given one: it keeps its partitions over a restart.
    pub instance: Option<String>,
    /// How long an instance may be unheard of before it loses its partitions, in milliseconds.
    pub session_timeout_ms: u32,
    /// Prefix of the consumer groups.
    pub namespace: String,
    /// The topics.
    pub topics: Topics,
    /// Tells which log it is.
    pub first_records: FirstRecords,
    /// The way to the dead letters.
    pub post: Post,
    /// What is wanted of the projections.
    pub wanted: watch::Receiver<AllWanted>,
    /// Where the runners tell how their partitions are.
    pub board: Arc<Board>,
}

/// Runs one projection.
pub struct Runner {
    projection: Projection,
    sink: Sink,
    settings: Arc<Settings>,
    readiness: Readiness,
}

impl Runner {
    /// A runner that has not started.
    pub fn new(
        projection: Projection,
        target: Target,
        settings: Arc<Settings>,
        readiness: Readiness,
    ) -> Self {
        Self { projection, sink: Sink::new(projection, target), settings, readiness }
    }

    /// Runs until shutdown is given and all that was begun is written; a broker that does not answer any more is not
    /// waited for.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let name = self.projection.name();
        let consumer = consumer::Poller::new(self, shutdown.clone(), tokio::runtime::Handle::current())
            .with_context(|| format!("failed to set up the consumer of projection {name}"))?;
        // Polling blocks, and calls back into this process when partitions come and go: it has a thread of its own.
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::Builder::new()
            .name(format!("projection-{name}"))
            .spawn(move || _ = ended.send(consumer.run()))
            .with_context(|| format!("failed to start the thread of projection {name}"))?;
        match shutdown.drain(name, end).await {
            Some(ended) => ended.with_context(|| format!("the thread of projection {name} panicked"))?,
            None => Ok(()),
        }
    }
}
