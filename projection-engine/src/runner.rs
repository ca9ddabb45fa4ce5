//! The runner: the loop around a projection.
//!
//! One thread polls Kafka for a projection (`consumer`) and passes the records of each assigned partition to a task of its
//! own (`partition`), which folds them into the store in batches. A partition starts at the store's position; the committed
//! offset of the consumer group only serves lag tools.

mod assignment;
mod client;
mod consumer;
mod partition;
mod queue;
mod settings;
mod status;

use std::sync::Arc;

use anyhow::Context;
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use self::consumer::Poller;
pub use self::{
    settings::Settings,
    status::{PartitionStatus, PartitionStatusRegistry, Phase},
};
use crate::store::SharedStore;

/// Runs one projection.
pub struct Runner {
    store: SharedStore,
    settings: Arc<Settings>,
    readiness: Readiness,
}

impl Runner {
    /// A runner of a view, not started yet.
    pub const fn new(store: SharedStore, settings: Arc<Settings>, readiness: Readiness) -> Self {
        Self { store, settings, readiness }
    }

    /// Runs until shutdown, and finishes the batches in progress. Does not wait for a broker that does not answer.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let Self { store, settings, readiness } = self;
        let name = store.projection().name();
        let consumer =
            Poller::new(store, settings, readiness, shutdown.clone(), tokio::runtime::Handle::current())
                .with_context(|| format!("failed to set up the consumer of projection {name}"))?;
        // Polling and the rebalance callbacks block, so they have a thread of their own.
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
