//! Queries of the store on the poller's thread: positions, lost writes, identity of the log.

use std::{collections::BTreeMap, sync::mpsc::sync_channel, time::Duration};

use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use super::{Assignment, lock};
use crate::{
    log::Partition,
    store::{Position, SharedStore, StoreError},
};

/// Timeout for a query of the store. The poller does not poll meanwhile.
const QUERY_TIMEOUT: Duration = Duration::from_secs(5);

/// The positions of partitions in the store, and the partitions of which it lost writes.
struct Compared {
    stored: Vec<Position>,
    lost: Vec<Partition>,
}

/// Why it is unknown whether the store lost writes.
#[derive(Debug, Error)]
enum Unknown {
    #[error("failed to read the view's position from the store: {0}")]
    Store(String),
    #[error("the store lost writes, but the view is not marked incomplete yet")]
    NotMarked,
    #[error("{0}")]
    ShardCount(StoreError),
}

impl Assignment {
    /// Returns the positions at which the tasks of partitions start, or why they cannot.
    pub(in crate::runner) fn starts(&self, partitions: &[Partition]) -> Result<Vec<Position>, String> {
        self.compare(partitions).map(|compared| compared.stored).map_err(|why| why.to_string())
    }

    /// Returns the partitions of which the store lost writes, after a failover, a flush or a restore of Redis. The view is
    /// marked incomplete by then. Returns none if marking fails: the next check finds the same loss. Returns all if a process
    /// with another number of shards prepared an emptied Redis first: no partition may be written.
    pub(in crate::runner) fn lost(&self) -> Vec<Partition> {
        let partitions: Vec<_> = self.partitions().keys().copied().collect();
        match self.compare(&partitions) {
            Ok(compared) => compared.lost,
            Err(Unknown::ShardCount(_)) => partitions,
            Err(Unknown::Store(_) | Unknown::NotMarked) => Vec::new(),
        }
    }

    /// Compares the store's positions with the written ones. If the store lost writes, the view is marked incomplete when
    /// this returns.
    fn compare(&self, partitions: &[Partition]) -> Result<Compared, Unknown> {
        // Read before the store, as tasks write meanwhile.
        let confirmed = self.confirmed(partitions);
        let stored = self.stored(partitions)?;
        let lost: Vec<_> = partitions
            .iter()
            .zip(&stored)
            .filter(|(partition, stored)| match confirmed.get(*partition) {
                Some(confirmed) => stored.is_behind(confirmed),
                // The last writer was another process.
                None => stored.has_unwritten_parts(),
            })
            .collect();
        for (partition, stored) in &lost {
            warn!(
                projection = self.name,
                partition = partition.id(),
                stored = stored.lowest(),
                "store lost writes, reading again from its position"
            );
            self.status_of(**partition).record_error("the store lost writes");
        }
        if !lost.is_empty() && !self.mark_incomplete() {
            return Err(Unknown::NotMarked);
        }
        for (partition, stored) in &lost {
            // Marking it again would restart the refill.
            if let Some(state) = self.partitions().get_mut(*partition) {
                state.set_confirmed(stored);
            }
        }
        let lost = lost.into_iter().map(|(partition, _)| *partition).collect();
        Ok(Compared { stored, lost })
    }

    /// The last written positions of partitions.
    fn confirmed(&self, partitions: &[Partition]) -> BTreeMap<Partition, Position> {
        let states = self.partitions();
        let confirmed = |partition: &Partition| {
            let confirmed = states.get(partition)?.confirmed()?;
            Some((*partition, lock(confirmed).clone()))
        };
        partitions.iter().filter_map(confirmed).collect()
    }

    /// Reads the store's positions of partitions.
    fn stored(&self, partitions: &[Partition]) -> Result<Vec<Position>, Unknown> {
        let partitions = partitions.to_vec();
        match self.query(|store| async move { store.positions(&partitions).await }) {
            Some(Ok(positions)) => Ok(positions),
            Some(Err(error @ StoreError::ShardCountMismatch { .. })) => Err(Unknown::ShardCount(error)),
            Some(Err(error)) => {
                warn!(projection = self.name, %error, "store unavailable");
                Err(Unknown::Store(error.reason()))
            }
            None => {
                warn!(projection = self.name, "store unavailable, query timed out");
                Err(Unknown::Store("query timed out".to_owned()))
            }
        }
    }

    /// Returns the partitions whose log is not, or may not be, the one that the view was folded from, with the
    /// reason.
    pub(in crate::runner) fn check_log_identity(
        &self,
        firsts: &[(Partition, String)],
    ) -> BTreeMap<Partition, String> {
        let queried = firsts.to_vec();
        let Some(Ok(stored)) = self.query(|store| async move { store.log_identities(&queried).await }) else {
            let why = "failed to read the identity of the log from the store";
            return firsts.iter().map(|(partition, _)| (*partition, why.to_owned())).collect();
        };
        let others = firsts.iter().zip(stored).filter(|((_, first), stored)| first != stored);
        let why = |((partition, first), stored): (&(Partition, String), String)| {
            let why = format!(
                "this log is not the one that the view was folded from: the first record of {} is {first}, expected \
                 {stored}. Wrong cluster, or re-created topic. The view is not changed",
                partition.id()
            );
            (*partition, why)
        };
        others.map(why).collect()
    }

    /// Marks the view incomplete. Returns false if that fails.
    fn mark_incomplete(&self) -> bool {
        match self.query(|store| async move { store.mark_incomplete().await }) {
            Some(Ok(())) => return true,
            Some(Err(error)) => warn!(projection = self.name, %error, "failed to mark the view incomplete"),
            None => warn!(projection = self.name, "failed to mark the view incomplete, query timed out"),
        }
        false
    }

    /// Queries the store. Returns `None` after a timeout, or while the runtime shuts down: blocking on a future would panic
    /// then.
    fn query<T: Send + 'static, Query>(&self, query: impl FnOnce(SharedStore) -> Query) -> Option<T>
    where
        Query: Future<Output = T> + Send + 'static,
    {
        let query = query(self.store.clone());
        let (result, received) = sync_channel(1);
        self.runtime.spawn(async move { _ = result.send(timeout(QUERY_TIMEOUT, query).await) });
        received.recv().ok()?.ok()
    }
}
