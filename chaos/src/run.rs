//! The run of one seed: the system under test, its services, and what happened so far.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{sync::Mutex, time::sleep};

use crate::{
    bad_records::BadRecordProducer,
    fault::Process,
    ledger::Command,
    operator::Operator,
    stack::{Stack, Store},
    system::System,
};

/// A system under faults.
pub(crate) struct Run {
    /// The system under test.
    pub(crate) system: System,
    /// Its services.
    pub(crate) stack: Arc<Stack>,
    /// Appends bad records.
    pub(crate) bad_records: BadRecordProducer,
    /// The ids of the registered users, once all are registered.
    pub(crate) users: OnceLock<Vec<i64>>,
    /// One lock per store, held by the fault that kills or suspends it, so that it has one such fault at a time.
    store_locks: [Mutex<()>; Store::ALL.len()],
    journal: std::sync::Mutex<Journal>,
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Journal {
    /// What the operator did.
    pub(crate) operator: OperatorStats,
    /// The projections whose rebuild began under faults.
    pub(crate) rebuilt: BTreeSet<&'static str>,
    /// The operator commands that were refused, with the reasons.
    pub(crate) refusals: Vec<String>,
    /// The rebuilds that found differences.
    pub(crate) rebuild_differences: Vec<String>,
    /// The bad records, each as a command.
    pub(crate) bad_records: Vec<Command>,
}

/// What the operator did, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OperatorStats {
    /// Rebuilds that began or continued under faults.
    pub(crate) rebuilds: usize,
    /// Rebuilds of those that switched generations.
    pub(crate) switched: usize,
    /// Rebuilds of those that were killed.
    pub(crate) killed_rebuilds: usize,
    /// Generations of killed rebuilds that were dropped.
    pub(crate) dropped: usize,
    /// Rebuilds after the faults.
    pub(crate) fault_free_rebuilds: usize,
    /// Pauses.
    pub(crate) pauses: usize,
    /// Undecodable records that were appended.
    pub(crate) bad_records: usize,
    /// Projections that stopped because of bad records, and were resumed.
    pub(crate) stopped_projections: usize,
    /// Records that were discarded, counted once per projection.
    pub(crate) discards: usize,
    /// Discards that were killed.
    pub(crate) killed_discards: usize,
}

impl Journal {
    /// Records a refused command with the reason from its output, in one line: from the error on, if there is one.
    pub(crate) fn record_refusal(&mut self, what: &str, output: &str) {
        let reason: Vec<_> = output[output.find("Error:").unwrap_or(0)..].split_whitespace().collect();
        self.refusals.push(format!("{what}: {}", reason.join(" ")));
    }
}

impl Run {
    /// A run without events so far.
    pub(crate) fn new(system: System, stack: Arc<Stack>) -> anyhow::Result<Self> {
        let bad_records = BadRecordProducer::new(&system)?;
        let (store_locks, users, journal) = Default::default();
        Ok(Self { system, stack, bad_records, users, store_locks, journal })
    }

    /// What happened so far.
    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operator of the system.
    pub(crate) const fn operator(&self) -> &Operator {
        &self.system.operator
    }

    /// The lock of a store.
    pub(crate) fn store_lock(&self, store: Store) -> &Mutex<()> {
        &self.store_locks[store as usize]
    }

    /// Sends SIGKILL to a process, and starts it again after a while.
    pub(crate) async fn kill(&self, process: Process, downtime: Duration) -> anyhow::Result<()> {
        let Some(instance) = self.system.instance(process) else {
            return Ok(());
        };
        let _lock = instance.fault_lock.lock().await;
        instance.end(Signal::KILL).await?;
        sleep(downtime).await;
        instance.start()
    }
}

impl std::iter::Sum for OperatorStats {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, stats| Self {
            rebuilds: sum.rebuilds + stats.rebuilds,
            switched: sum.switched + stats.switched,
            killed_rebuilds: sum.killed_rebuilds + stats.killed_rebuilds,
            dropped: sum.dropped + stats.dropped,
            fault_free_rebuilds: sum.fault_free_rebuilds + stats.fault_free_rebuilds,
            pauses: sum.pauses + stats.pauses,
            bad_records: sum.bad_records + stats.bad_records,
            stopped_projections: sum.stopped_projections + stats.stopped_projections,
            discards: sum.discards + stats.discards,
            killed_discards: sum.killed_discards + stats.killed_discards,
        })
    }
}

impl fmt::Display for OperatorStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let refused = self.rebuilds - self.switched - self.killed_rebuilds;
        write!(
            f,
            "{} rebuilds under faults ({} switched, {} killed, {refused} refused; {} dropped), {} without faults; {} pauses; \
             {} undecodable records, {} projections stopped by them, {} discards ({} killed)",
            self.rebuilds,
            self.switched,
            self.killed_rebuilds,
            self.dropped,
            self.fault_free_rebuilds,
            self.pauses,
            self.bad_records,
            self.stopped_projections,
            self.discards,
            self.killed_discards,
        )
    }
}
