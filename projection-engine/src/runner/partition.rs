//! The task of one partition: takes the records that have come, folds them into the store, again and again.

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
    status::Place,
};
use crate::{
    dead_letters::{Intake, IntakeError, Post},
    desired_state::{self, Wanted, Wish},
    log::{Delivery, Partition, identity::identity},
    metrics::{BATCH_SECONDS, FAILURES, RECORDS},
    store::{Position, SharedStore, StoreError},
};

/// Batches between two times that every part of the store is brought to the same position: what a restart reads
/// again is bounded by it.
const SETTLE_EVERY: u32 = 32;
/// The same in time: whoever waits for the lowest position, as keepers and audits do, waits for so long.
const SETTLE_AFTER: Duration = Duration::from_secs(1);
/// A partition that got nothing for so long settles.
const IDLE: Duration = Duration::from_millis(500);
/// Between attempts to write to a store that does not take it: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long the store may take for a batch. One that it takes longer for is written again, which is harmless.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often readers are told how far a view in MySQL is when nothing comes: Redis may have lost that, and who waits for a
/// write of before would wait in vain.
const PUBLISH_EVERY: Duration = Duration::from_secs(2);
/// How long telling readers may take: a Redis that hangs must not hold up views in MySQL.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(250);

/// What a partition's task asks of the poller.
#[derive(Debug)]
pub(super) enum Request {
    /// Start the partition again where the store stands: the task has ended.
    Restart(Partition),
    /// The partition's queue has room again.
    Resume(Partition),
}

/// What the task is known to have written, for the check that the store still has it.
pub(super) type Confirmed = Arc<Mutex<Position>>;

/// The task.
pub(super) struct Worker {
    pub(super) name: &'static str,
    pub(super) partition: Partition,
    pub(super) sink: SharedStore,
    pub(super) post: Post,
    pub(super) position: Position,
    /// The offset from which records come: the position's, or the log's first if the view has nothing.
    pub(super) from: i64,
    pub(super) confirmed: Confirmed,
    pub(super) records: Receiver,
    pub(super) requests: std::sync::mpsc::Sender<Request>,
    pub(super) stop: CancellationToken,
    pub(super) place: Place,
    /// Called with the position after each batch: the hint for lag tools.
    pub(super) hint: Box<dyn Fn(i64) + Send + Sync>,
}

/// Why the task ended a batch early.
enum Ended {
    Stopped,
    Lost,
}

impl Worker {
    /// Runs until it is told to stop, or the store is found to stand elsewhere.
    pub(super) async fn run(mut self) {
        match self.fold_all().await {
            Ended::Stopped => {}
            Ended::Lost => _ = self.requests.send(Request::Restart(self.partition)),
        }
    }

    async fn fold_all(&mut self) -> Ended {
        let mut next = self.from;
        let mut intake = match self.open().await {
            Ok(intake) => intake,
            Err(ended) => return ended,
        };
        let mut publish_at = Some(Instant::now());
        let mut settled_at = Instant::now();
        let mut unsettled = u32::from(self.position.lowest() < next);
        // Of a log that begins at 0, the first record tells which log it is.
        let mut is_start = next == 0;
        loop {
            if publish_at.is_some_and(|at| at <= Instant::now()) && self.publish(next).await.is_ok() {
                publish_at = self.publish_again();
            }
            let mut deliveries = Vec::with_capacity(BATCH_RECORDS);
            match timeout(IDLE, self.take(&mut deliveries)).await {
                Ok(Some(passed)) => {
                    if let Err(ended) = self.fold(&mut intake, &deliveries).await {
                        return ended;
                    }
                    if let Some(first) = deliveries.first().filter(|_| std::mem::take(&mut is_start))
                        && let Err(ended) = self.remember_log(first).await
                    {
                        return ended;
                    }
                    next = passed;
                    (self.hint)(next);
                }
                Ok(None) => return self.finish(&mut intake, next).await,
                Err(_idle) => {
                    if unsettled > 0
                        && let Err(ended) = self.settle(&mut intake, next).await
                    {
                        return ended;
                    }
                    (unsettled, settled_at) = (0, Instant::now());
                    self.look_again(&mut intake).await;
                    continue;
                }
            }
            publish_at = Some(Instant::now());
            unsettled += 1;
            if unsettled >= SETTLE_EVERY || settled_at.elapsed() >= SETTLE_AFTER {
                if let Err(ended) = self.settle(&mut intake, next).await {
                    return ended;
                }
                (unsettled, settled_at) = (0, Instant::now());
                self.look_again(&mut intake).await;
            }
        }
    }

    /// Finds out which keys are parked.
    async fn open(&self) -> Result<Intake, Ended> {
        let mut pause = RETRY.0;
        loop {
            let (sink, post) = (self.sink.clone(), self.post.clone());
            let opened = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Err(Ended::Stopped),
                // It takes as long as there are dead letters, and gives up by itself when nothing comes.
                opened = Intake::open(sink, post, self.partition, self.position.clone()) => opened,
            };
            match opened {
                Ok(intake) => return Ok(intake),
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
    }

    /// Takes what is there, at least one; returns the offset after it, or `None` once there will be no more.
    async fn take(&mut self, deliveries: &mut Vec<Delivery>) -> Option<i64> {
        let taken = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            taken = self.records.take(deliveries) => taken,
        };
        if taken.is_some() && self.records.is_empty() {
            _ = self.requests.send(Request::Resume(self.partition));
        }
        taken
    }

    async fn fold(&self, intake: &mut Intake, deliveries: &[Delivery]) -> Result<(), Ended> {
        if deliveries.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut pause = RETRY.0;
        loop {
            match bounded(intake.take(deliveries)).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm(intake);
        histogram!(BATCH_SECONDS, "projection" => self.name).record(begun.elapsed());
        counter!(RECORDS, "projection" => self.name).increment(deliveries.len() as u64);
        Ok(())
    }

    /// Remembers which log it is by its first record, of which there was none perhaps when the task was started. If
    /// that fails it is remembered when the task is started again.
    async fn remember_log(&self, first: &Delivery) -> Result<(), Ended> {
        let first = (self.partition, identity(&first.message));
        let remembered =
            bounded(async { Ok(self.sink.log_identities(slice::from_ref(&first)).await?) }).await;
        match remembered {
            Ok(remembered) if remembered.contains(&first.1) => Ok(()),
            // What starts the task again sees that, and says so.
            Ok(_) => Err(Ended::Lost),
            Err(error) => {
                let partition = self.partition.id();
                warn!(projection = self.name, partition, %error, "failed to remember which log it is");
                Ok(())
            }
        }
    }

    async fn settle(&self, intake: &mut Intake, next: i64) -> Result<(), Ended> {
        let mut pause = RETRY.0;
        loop {
            match bounded(async { Ok(intake.settle(next).await?) }).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm(intake);
        Ok(())
    }

    /// Of no account but for what is counted: if it fails, it is done later.
    async fn look_again(&self, intake: &mut Intake) {
        if let Err(error) = bounded(async { Ok(intake.look_again().await?) }).await {
            debug!(projection = self.name, partition = self.partition.id(), %error, "not seen what is parked");
        }
    }

    /// After a failed write: waits before the next attempt, or says why there is none.
    async fn recover(&self, error: IntakeError, pause: &mut Duration) -> Result<(), Ended> {
        counter!(FAILURES, "projection" => self.name).increment(1);
        self.place.fail(error.to_string());
        let partition = self.partition.id();
        match error {
            IntakeError::TooMany(why) => {
                error!(projection = self.name, partition, why, "stopping, as too much can't be folded");
                Err(self.stop_all(&why).await)
            }
            IntakeError::Store(StoreError::Behind { stored }) => {
                // Readers have to know before the view is filled up again.
                if let Err(error) = bounded(async { Ok(self.sink.mark_incomplete().await?) }).await {
                    return self.wait(&error, pause).await;
                }
                // Once told it is told: what starts the task again has to tell no more than what is lost besides.
                self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).cap_at(stored);
                warn!(
                    projection = self.name,
                    partition, stored, "the store lost writes; reading them again from its position"
                );
                Err(Ended::Lost)
            }
            IntakeError::Store(StoreError::Moved { stored }) => {
                warn!(projection = self.name, partition, stored, "another writer was here; beginning anew");
                Err(Ended::Lost)
            }
            error => self.wait(&error, pause).await,
        }
    }

    /// Waits before the next attempt.
    async fn wait(&self, error: &IntakeError, pause: &mut Duration) -> Result<(), Ended> {
        warn!(projection = self.name, partition = self.partition.id(), %error, "trying again");
        let stopped = timeout(*pause, self.stop.cancelled()).await.is_ok();
        *pause = RETRY.1.min(*pause * 2);
        if stopped { Err(Ended::Stopped) } else { Ok(()) }
    }

    /// Has all of the projection stand still until an operator resumes it, and waits for that to be followed.
    async fn stop_all(&self, why: &str) -> Ended {
        let (pool, projection) = (&self.sink.stores().mysql, self.sink.projection());
        while let Err(error) = desired_state::stop(pool, projection, why).await {
            warn!(projection = self.name, %error, "failed to keep that the projection is to stand still");
            if timeout(RETRY.1, self.stop.cancelled()).await.is_ok() {
                break;
            }
        }
        while timeout(RETRY.1, self.stop.cancelled()).await.is_err() {
            // An operator may resume it before the poller has heard that it stopped.
            let wanted = desired_state::read(pool).await.ok().map(|mut wanted| wanted.remove(self.name));
            let is_stopped = |wanted: Option<Wanted>| {
                matches!(wanted, Some(Wanted { wish: Wish::Stopped(_) | Wish::Pause, .. }))
            };
            if wanted.is_some_and(|wanted| !is_stopped(wanted)) {
                return Ended::Lost;
            }
        }
        Ended::Stopped
    }

    /// A reader may wait for this; that it failed is not worth more than another try after the next batch.
    async fn publish(&self, next: i64) -> Result<(), StoreError> {
        timeout(PUBLISH_TIMEOUT, self.sink.publish_progress(self.partition, next))
            .await
            .unwrap_or_else(|_| Err(StoreError::Retry("Redis does not answer".to_owned())))
    }

    /// When to publish again if no records arrive.
    fn publish_again(&self) -> Option<Instant> {
        self.sink.survives_redis().then(|| Instant::now() + PUBLISH_EVERY)
    }

    /// Settles before the partition goes, so that the next owner reads nothing twice; if it fails it reads twice.
    async fn finish(&self, intake: &mut Intake, next: i64) -> Ended {
        if bounded(async { Ok(intake.settle(next).await?) }).await.is_ok() {
            info!(projection = self.name, partition = self.partition.id(), next, "stopped");
        }
        Ended::Stopped
    }

    fn confirm(&self, intake: &Intake) {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(intake.position());
    }
}

async fn bounded<T>(write: impl Future<Output = Result<T, IntakeError>>) -> Result<T, IntakeError> {
    let too_late = |_| Err(StoreError::Retry(format!("no answer in {} s", WRITE_TIMEOUT.as_secs())).into());
    timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(too_late)
}
