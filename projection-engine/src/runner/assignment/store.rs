//! What is asked of the store, and told to it, on the poller's thread.

use std::{collections::BTreeMap, time::Duration};

use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use super::{Assignment, lock};
use crate::{
    log::Partition,
    store::{Position, StoreError},
};

/// How long the store may take to say where it stands. It is asked on the poller's thread, which has to go on polling.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the store stands in partitions, and in which of them it no longer has what was written to it.
struct Compared {
    stored: Vec<Position>,
    lost: Vec<Partition>,
}

/// Why it can't be said whether the store has what was written to it.
#[derive(Debug, Error)]
enum Unknown {
    #[error("the store does not say where the view stands")]
    Store,
    #[error("readers can't be told that the store lost writes")]
    Readers,
    #[error("{0}")]
    OtherShards(StoreError),
}

impl Assignment {
    /// Where the store stands in partitions, for their tasks to be started there; or why they can't be.
    pub(in crate::runner) fn starts(&self, partitions: &[Partition]) -> Result<Vec<Position>, String> {
        self.compare(partitions).map(|compared| compared.stored).map_err(|why| why.to_string())
    }

    /// The partitions of which the store no longer has what was written to it: a Redis that failed over, was flushed
    /// or restored. Readers know by then. None if they can't be told: then the next check finds the same. All, if a process
    /// with another number of shards was the first after such a loss: none must be written to.
    pub(in crate::runner) fn lost(&self) -> Vec<Partition> {
        let partitions: Vec<_> = self.partitions().keys().copied().collect();
        match self.compare(&partitions) {
            Ok(compared) => compared.lost,
            Err(Unknown::OtherShards(_)) => partitions,
            Err(Unknown::Store | Unknown::Readers) => Vec::new(),
        }
    }

    /// Sees where the store stands, and whether it is behind what was written to it. If so, readers know when this
    /// returns.
    fn compare(&self, partitions: &[Partition]) -> Result<Compared, Unknown> {
        // First, as tasks go on meanwhile.
        let confirmed = self.confirmed(partitions);
        let stored = self.stored(partitions)?;
        let lost: Vec<_> = partitions
            .iter()
            .zip(&stored)
            .filter(|(partition, stored)| match confirmed.get(*partition) {
                Some(confirmed) => stored.is_behind(confirmed),
                // Whoever wrote to it is gone.
                None => stored.has_unwritten_parts(),
            })
            .collect();
        for (partition, stored) in &lost {
            warn!(
                projection = self.name,
                partition = partition.id(),
                stored = stored.lowest(),
                "the store lost writes; reading them again from its position"
            );
            self.place(**partition).fail("the store lost writes");
        }
        if !lost.is_empty() && !self.mark_incomplete() {
            return Err(Unknown::Readers);
        }
        for (partition, stored) in &lost {
            // Once told it is told: telling it again would have the keepers begin again.
            if let Some(state) = self.partitions().get_mut(*partition) {
                state.set_confirmed(stored);
            }
        }
        let lost = lost.into_iter().map(|(partition, _)| *partition).collect();
        Ok(Compared { stored, lost })
    }

    /// What is known to have been written in partitions.
    fn confirmed(&self, partitions: &[Partition]) -> BTreeMap<Partition, Position> {
        let states = self.partitions();
        let confirmed = |partition: &Partition| {
            let confirmed = states.get(partition)?.confirmed()?;
            Some((*partition, lock(confirmed).clone()))
        };
        partitions.iter().filter_map(confirmed).collect()
    }

    /// Where the store stands in partitions, if it says so in time.
    fn stored(&self, partitions: &[Partition]) -> Result<Vec<Position>, Unknown> {
        let asked = async { timeout(ASK_TIMEOUT, self.sink.positions(partitions)).await };
        match self.runtime.block_on(asked) {
            Ok(Ok(positions)) => Ok(positions),
            Ok(Err(error @ StoreError::ShardCountMismatch { .. })) => Err(Unknown::OtherShards(error)),
            Ok(Err(error)) => {
                warn!(projection = self.name, %error, "waiting for the store");
                Err(Unknown::Store)
            }
            Err(_) => {
                warn!(projection = self.name, "waiting for the store, which does not answer");
                Err(Unknown::Store)
            }
        }
    }

    /// Of which partitions the store says that it folded them from a log with another first record, or does not say.
    pub(in crate::runner) fn folded_from_others(
        &self,
        firsts: &[(Partition, String)],
    ) -> BTreeMap<Partition, String> {
        let asked = async { timeout(ASK_TIMEOUT, self.sink.log_identities(firsts)).await };
        let Ok(Ok(remembered)) = self.runtime.block_on(asked) else {
            let why = "the store does not say which log the view was folded from";
            return firsts.iter().map(|(partition, _)| (*partition, why.to_owned())).collect();
        };
        let others = firsts.iter().zip(remembered).filter(|((_, first), remembered)| first != remembered);
        let why = |((partition, first), remembered): (&(Partition, String), String)| {
            let why = format!(
                "this is another log than the one that the view was folded from: {} begins with the record {first} here, \
                 with {remembered} there. Is this another cluster, or was the topic made again? The view stays as it is",
                partition.id()
            );
            (*partition, why)
        };
        others.map(why).collect()
    }

    /// Has readers take the view as incomplete; false if that fails.
    fn mark_incomplete(&self) -> bool {
        let forgotten = async { timeout(ASK_TIMEOUT, self.sink.mark_incomplete()).await };
        match self.runtime.block_on(forgotten) {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => warn!(projection = self.name, %error, "readers can't be told of the loss yet"),
            Err(_) => warn!(projection = self.name, "readers can't be told of the loss yet"),
        }
        false
    }
}
