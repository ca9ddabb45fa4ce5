//! The idle connections of a server, in the order in which they became idle.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// Connections without a request, by the order in which they became idle. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct IdleConnections(Arc<Mutex<Entries>>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    closers: BTreeMap<u64, CancellationToken>,
}

/// A connection's entry, present while it is idle.
#[derive(Debug)]
pub(super) struct IdleEntry {
    connections: IdleConnections,
    closer: CancellationToken,
    number: Option<u64>,
}

impl IdleConnections {
    /// Returns the entry of a connection that is not idle, and that `closer` closes.
    pub(super) fn entry(&self, closer: CancellationToken) -> IdleEntry {
        IdleEntry { connections: self.clone(), closer, number: None }
    }

    /// Closes the connection that has been idle for the longest time. Returns false if none is idle.
    pub(super) fn close_longest(&self) -> bool {
        let first = self.entries().closers.pop_first();
        first.inspect(|(_, closer)| closer.cancel()).is_some()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IdleEntry {
    /// Adds the connection as the one that became idle last.
    pub(super) fn add(&mut self) {
        self.remove();
        let mut entries = self.connections.entries();
        let number = entries.next;
        entries.next += 1;
        entries.closers.insert(number, self.closer.clone());
        self.number = Some(number);
    }

    /// Removes the connection, which is no longer idle.
    pub(super) fn remove(&mut self) {
        if let Some(number) = self.number.take() {
            self.connections.entries().closers.remove(&number);
        }
    }
}

impl Drop for IdleEntry {
    fn drop(&mut self) {
        self.remove();
    }
}
