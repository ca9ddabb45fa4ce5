//! The task of one partition: folds batches of records into the store.

use std::{
    slice,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    queue::{BATCH_RECORDS, Receiver},
    status::{Operation, StatusHandle},
};
use crate::{
    dead_letters::{ApplyError, BatchApplier, DeadLetterQueue},
    desired_state::{self, DesiredState, RunState},
    log::{Delivery, Partition, identity::identity},
    metrics::{BATCH_SECONDS, FAILURES, RECORDS},
    store::{Position, SharedStore, StoreError},
};

/// Batches between two alignments of the store's parts: a bound on the records that a restart reads again.
const ALIGN_EVERY: u32 = 32;
/// The same in time: the completeness controller and audits wait this long for the lowest position.
const ALIGN_AFTER: Duration = Duration::from_secs(1);
/// A partition without records for this long aligns.
const IDLE: Duration = Duration::from_millis(500);
/// Interval between attempts to write to an unavailable store: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Timeout for a write of the store. The retry is idempotent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval between two publications of the progress of a view in MySQL when no records arrive: Redis may have lost
/// it, and readers of earlier writes would wait in vain.
const PUBLISH_EVERY: Duration = Duration::from_secs(2);
/// Timeout for a publication: a Redis that hangs must not delay views in MySQL.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(250);

/// A request of a partition's task to the poller.
#[derive(Debug)]
pub(super) enum Request {
    /// Restart the partition at the store's position: the task has ended.
    Restart(Partition),
    /// Resume the partition: its queue has room again.
    Resume(Partition),
}

/// The last written position of a task, for the check that the store still has it.
pub(super) type Confirmed = Arc<Mutex<Position>>;

/// The task.
pub(super) struct Worker {
    pub(super) name: &'static str,
    pub(super) partition: Partition,
    pub(super) store: SharedStore,
    pub(super) dead_letters: DeadLetterQueue,
    pub(super) position: Position,
    /// The offset of the first record to read: the position, or the log start offset if the view is empty.
    pub(super) from: i64,
    pub(super) confirmed: Confirmed,
    pub(super) records: Receiver,
    pub(super) requests: std::sync::mpsc::Sender<Request>,
    pub(super) stop: CancellationToken,
    pub(super) status: StatusHandle,
    /// Called with the position after each batch.
    pub(super) offset_committer: Box<dyn Fn(i64) + Send + Sync>,
}

/// Why the task ends.
enum Ended {
    Stopped,
    Lost,
}

impl Worker {
    /// Runs until it is stopped, or until the store has another position than expected.
    pub(super) async fn run(mut self) {
        match self.fold_all().await {
            Ended::Stopped => {}
            Ended::Lost => _ = self.requests.send(Request::Restart(self.partition)),
        }
    }

    async fn fold_all(&mut self) -> Ended {
        let mut next = self.from;
        let mut applier = match self.open().await {
            Ok(applier) => applier,
            Err(ended) => return ended,
        };
        let mut publish_at = Some(Instant::now());
        let mut aligned_at = Instant::now();
        let mut unaligned = u32::from(self.position.lowest() < next);
        // The first record of a log that begins at 0 is the log's identity.
        let mut is_start = next == 0;
        loop {
            if publish_at.is_some_and(|at| at <= Instant::now()) && self.publish(next).await.is_ok() {
                publish_at = self.next_publication();
            }
            let mut deliveries = Vec::with_capacity(BATCH_RECORDS);
            match timeout(IDLE, self.receive(&mut deliveries)).await {
                Ok(Some(passed)) => {
                    if let Err(ended) = self.fold(&mut applier, &deliveries).await {
                        return ended;
                    }
                    if let Some(first) = deliveries.first().filter(|_| std::mem::take(&mut is_start))
                        && let Err(ended) = self.store_log_identity(first).await
                    {
                        return ended;
                    }
                    next = passed;
                    (self.offset_committer)(next);
                    self.status.record_batch();
                }
                Ok(None) => return self.finish(&mut applier, next).await,
                Err(_idle) => {
                    if unaligned > 0
                        && let Err(ended) = self.align(&mut applier, next).await
                    {
                        return ended;
                    }
                    (unaligned, aligned_at) = (0, Instant::now());
                    self.refresh_parked_keys(&mut applier).await;
                    self.status.record_idle();
                    continue;
                }
            }
            publish_at = Some(Instant::now());
            unaligned += 1;
            if unaligned >= ALIGN_EVERY || aligned_at.elapsed() >= ALIGN_AFTER {
                if let Err(ended) = self.align(&mut applier, next).await {
                    return ended;
                }
                (unaligned, aligned_at) = (0, Instant::now());
                self.refresh_parked_keys(&mut applier).await;
            }
        }
    }

    /// Opens the applier, which reads the parked keys.
    async fn open(&self) -> Result<BatchApplier, Ended> {
        let mut pause = RETRY.0;
        self.status.begin(Operation::Open);
        loop {
            let (store, dead_letters) = (self.store.clone(), self.dead_letters.clone());
            let opened = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Ended::Stopped),
                // Its duration grows with the number of dead letters, and it has its own timeouts.
                opened = BatchApplier::open(store, dead_letters, self.partition, self.position.clone()) => opened,
            };
            match opened {
                Ok(applier) => {
                    self.status.record_response();
                    return Ok(applier);
                }
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
    }

    /// Receives at least one record. Returns the offset after them, or `None` once the queue is closed.
    async fn receive(&mut self, deliveries: &mut Vec<Delivery>) -> Option<i64> {
        let received = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            received = self.records.receive(deliveries) => received,
        };
        if received.is_some() && self.records.is_empty() {
            _ = self.requests.send(Request::Resume(self.partition));
        }
        received
    }

    async fn fold(&self, applier: &mut BatchApplier, deliveries: &[Delivery]) -> Result<(), Ended> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let mut pause = RETRY.0;
        self.status.begin(Operation::Batch);
        loop {
            match bounded(applier.apply(deliveries)).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm(applier);
        histogram!(BATCH_SECONDS, "projection" => self.name).record(start.elapsed());
        counter!(RECORDS, "projection" => self.name).increment(deliveries.len() as u64);
        Ok(())
    }

    /// Stores the identity of the log, which may have had no first record when the task started. If it fails, the next start
    /// of the task stores it.
    async fn store_log_identity(&self, first: &Delivery) -> Result<(), Ended> {
        let (offset, first) = (first.offset(), (self.partition, identity(&first.message)));
        let stored = bounded(async { Ok(self.store.log_identities(slice::from_ref(&first)).await?) }).await;
        match stored {
            Ok(stored) if stored.contains(&first.1) => Ok(()),
            // The restart detects and reports it.
            Ok(_) => {
                self.status.record_restart("the log is not the one that the view was folded from", offset);
                Err(Ended::Lost)
            }
            Err(error) => {
                let partition = self.partition.id();
                warn!(projection = self.name, partition, %error, "failed to store the identity of the log");
                Ok(())
            }
        }
    }

    async fn align(&self, applier: &mut BatchApplier, next: i64) -> Result<(), Ended> {
        let mut pause = RETRY.0;
        self.status.begin(Operation::Align);
        loop {
            match bounded(async { Ok(applier.align(next).await?) }).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm(applier);
        self.status.record_response();
        Ok(())
    }

    /// Reloads outdated parked keys. Best effort: it only updates a gauge; the next alignment or idle tick retries.
    async fn refresh_parked_keys(&self, applier: &mut BatchApplier) {
        self.status.begin(Operation::Refresh);
        if let Err(error) = bounded(async { Ok(applier.refresh_parked_keys().await?) }).await {
            debug!(projection = self.name, partition = self.partition.id(), %error, "failed to refresh parked keys");
        }
        self.status.record_response();
    }

    /// Handles a failed write: waits before the next attempt, or returns why the task ends.
    async fn recover(&self, error: ApplyError, pause: &mut Duration) -> Result<(), Ended> {
        counter!(FAILURES, "projection" => self.name).increment(1);
        self.status.record_error(error.to_string());
        let partition = self.partition.id();
        match error {
            ApplyError::TooMany(why) => {
                error!(projection = self.name, partition, why, "failure limit exceeded, stopping projection");
                Err(self.stop_projection(&why).await)
            }
            ApplyError::Store(StoreError::Behind { stored }) => {
                // First: readers must not use the view while it is refilled.
                if let Err(error) = bounded(async { Ok(self.store.mark_incomplete().await?) }).await {
                    return self.wait(&error, pause).await;
                }
                self.status.record_restart("the store lost writes", stored + 1);
                // The loss is reported now, so the restart reports a further loss only.
                self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).cap_at(stored);
                warn!(
                    projection = self.name,
                    partition, stored, "store lost writes, reading again from its position"
                );
                Err(Ended::Lost)
            }
            ApplyError::Store(StoreError::Moved { stored }) => {
                self.status.record_restart("another writer moves the store", stored);
                warn!(
                    projection = self.name,
                    partition, stored, "concurrent writer detected, restarting partition"
                );
                Err(Ended::Lost)
            }
            error => self.wait(&error, pause).await,
        }
    }

    /// Waits before the next attempt.
    async fn wait(&self, error: &ApplyError, pause: &mut Duration) -> Result<(), Ended> {
        self.status.record_failure(&error.reason());
        warn!(projection = self.name, partition = self.partition.id(), %error, "write failed, retrying");
        let stopped = timeout(*pause, self.stop.cancelled()).await.is_ok();
        *pause = RETRY.1.min(*pause * 2);
        if stopped { Err(Ended::Stopped) } else { Ok(()) }
    }

    /// Stops the projection until an operator resumes it, and waits until this task is stopped.
    async fn stop_projection(&self, why: &str) -> Ended {
        let (pool, projection) = (&self.store.stores().mysql, self.store.projection());
        while let Err(error) = desired_state::stop(pool, projection, why).await {
            warn!(projection = self.name, %error, "failed to store the stopped state");
            self.status.record_failure(why);
            if timeout(RETRY.1, self.stop.cancelled()).await.is_ok() {
                break;
            }
        }
        while timeout(RETRY.1, self.stop.cancelled()).await.is_err() {
            // An operator may resume it before the poller has read that it stopped.
            let desired = desired_state::read(pool).await.ok().map(|mut desired| desired.remove(self.name));
            let is_stopped = |desired: Option<DesiredState>| {
                matches!(
                    desired,
                    Some(DesiredState { run_state: RunState::Stopped(_) | RunState::Pause, .. })
                )
            };
            if desired.is_some_and(|desired| !is_stopped(desired)) {
                return Ended::Lost;
            }
        }
        Ended::Stopped
    }

    /// Publishes the progress to waiting readers. A failure is retried after the next batch.
    async fn publish(&self, next: i64) -> Result<(), StoreError> {
        timeout(PUBLISH_TIMEOUT, self.store.publish_progress(self.partition, next))
            .await
            .unwrap_or_else(|_| Err(StoreError::retry("Redis timed out")))
    }

    /// When to publish again if no records arrive.
    fn next_publication(&self) -> Option<Instant> {
        self.store.survives_redis().then(|| Instant::now() + PUBLISH_EVERY)
    }

    /// Aligns before the partition is revoked, so that its next owner reads no record twice.
    async fn finish(&self, applier: &mut BatchApplier, next: i64) -> Ended {
        if bounded(async { Ok(applier.align(next).await?) }).await.is_ok() {
            info!(projection = self.name, partition = self.partition.id(), next, "partition stopped");
        }
        Ended::Stopped
    }

    fn confirm(&self, applier: &BatchApplier) {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(applier.position());
    }
}

async fn bounded<T>(write: impl Future<Output = Result<T, ApplyError>>) -> Result<T, ApplyError> {
    let timed_out =
        |_| Err(StoreError::retry(format!("no response within {} s", WRITE_TIMEOUT.as_secs())).into());
    timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(timed_out)
}
