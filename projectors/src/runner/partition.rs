//! The task of one partition: takes the records that have come, folds them into the store, again and again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use metrics::{counter, gauge, histogram};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use vidlog_events::DecodeError;
use vidlog_service_kit::ops::Readiness;

use super::{
    board::Place,
    queue::{BATCH_RECORDS, Receiver},
};
use crate::{
    Record,
    metrics::{BATCH_SECONDS, BLOCKED, FAILURES, RECORDS},
    sink::{Partition, Position, Sink, SinkError},
};

/// Batches between two times that every part of the store is brought to the same position: what a restart reads
/// again is bounded by it.
const SETTLE_EVERY: u32 = 32;
/// A partition that got nothing for so long settles.
const IDLE: Duration = Duration::from_millis(500);
/// Between attempts to write to a store that does not take it: doubled from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long the store may take for a batch. One that it takes longer for is written again, which is harmless.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long telling readers may take: a Redis that hangs must not hold up views in MySQL.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(250);

/// A record as the poller hands it over.
pub(super) enum Delivery {
    /// An event.
    Record(Record),
    /// What can't be decoded.
    Poison {
        /// Where it is.
        offset: i64,
        /// Why.
        error: DecodeError,
    },
}

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
    pub(super) sink: Sink,
    pub(super) position: Position,
    pub(super) confirmed: Confirmed,
    pub(super) records: Receiver,
    pub(super) requests: std::sync::mpsc::Sender<Request>,
    pub(super) readiness: Readiness,
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
        let mut next = self.position.lowest();
        let mut unpublished = true;
        let mut unsettled = 0;
        loop {
            if unpublished {
                unpublished = self.publish(next).await.is_err();
            }
            let mut deliveries = Vec::with_capacity(BATCH_RECORDS);
            match timeout(IDLE, self.take(&mut deliveries)).await {
                Ok(true) => {}
                Ok(false) => return self.finish(next).await,
                Err(_idle) => {
                    if unsettled > 0
                        && let Err(ended) = self.settle(next).await
                    {
                        return ended;
                    }
                    unsettled = 0;
                    continue;
                }
            }
            let (records, poison) = split(deliveries);
            if let Some(last) = records.last() {
                next = last.offset + 1;
                if let Err(ended) = self.apply(&records, next).await {
                    return ended;
                }
                unpublished = true;
                unsettled += 1;
            }
            if let Some((offset, error)) = poison {
                _ = self.publish(next).await;
                return self.block(offset, &error).await;
            }
            if unsettled >= SETTLE_EVERY {
                if let Err(ended) = self.settle(next).await {
                    return ended;
                }
                unsettled = 0;
            }
        }
    }

    /// Takes what is there, at least one; false once there will be no more.
    async fn take(&mut self, deliveries: &mut Vec<Delivery>) -> bool {
        let taken = tokio::select! {
            biased;
            () = self.stop.cancelled() => 0,
            taken = self.records.take(deliveries) => taken,
        };
        if taken > 0 && self.records.is_empty() {
            _ = self.requests.send(Request::Resume(self.partition));
        }
        taken > 0
    }

    async fn apply(&mut self, records: &[Record], next: i64) -> Result<(), Ended> {
        let begun = Instant::now();
        let mut pause = RETRY.0;
        loop {
            let written = self.sink.apply(self.partition, &mut self.position, records, next);
            match bounded(written).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm();
        (self.hint)(next);
        histogram!(BATCH_SECONDS, "projection" => self.name).record(begun.elapsed());
        counter!(RECORDS, "projection" => self.name).increment(records.len() as u64);
        Ok(())
    }

    async fn settle(&mut self, next: i64) -> Result<(), Ended> {
        let mut pause = RETRY.0;
        loop {
            match bounded(self.sink.settle(self.partition, &mut self.position, next)).await {
                Ok(()) => break,
                Err(error) => self.recover(error, &mut pause).await?,
            }
        }
        self.confirm();
        Ok(())
    }

    /// After a failed write: waits before the next attempt, or says why there is none.
    async fn recover(&self, error: SinkError, pause: &mut Duration) -> Result<(), Ended> {
        counter!(FAILURES, "projection" => self.name).increment(1);
        self.place.fail(error.to_string());
        let error = match error {
            // Readers have to know before the view is filled up again.
            SinkError::Behind { stored } => match bounded(self.sink.forget_complete()).await {
                Ok(()) => {
                    warn!(
                        projection = self.name,
                        partition = self.partition.field(),
                        stored,
                        "the store lost writes; reading them again from its position"
                    );
                    return Err(Ended::Lost);
                }
                Err(error) => error,
            },
            SinkError::Retry(_) => error,
        };
        warn!(projection = self.name, partition = self.partition.field(), %error, "trying again");
        let stopped = timeout(*pause, self.stop.cancelled()).await.is_ok();
        *pause = RETRY.1.min(*pause * 2);
        if stopped { Err(Ended::Stopped) } else { Ok(()) }
    }

    /// A reader may wait for this; that it failed is not worth more than another try after the next batch.
    async fn publish(&self, next: i64) -> Result<(), SinkError> {
        timeout(PUBLISH_TIMEOUT, self.sink.publish_progress(self.partition, next))
            .await
            .unwrap_or_else(|_| Err(SinkError::Retry("Redis does not answer".to_owned())))
    }

    /// Settles before the partition goes, so that the next owner reads nothing twice; if it fails it reads twice.
    async fn finish(&mut self, next: i64) -> Ended {
        if bounded(self.sink.settle(self.partition, &mut self.position, next)).await.is_ok() {
            info!(projection = self.name, partition = self.partition.field(), next, "stopped");
        }
        Ended::Stopped
    }

    /// Waits, with the partition, for someone who can read the record: later records must not overtake it.
    async fn block(&self, offset: i64, error: &DecodeError) -> Ended {
        let partition = self.partition.field();
        error!(
            projection = self.name,
            partition,
            offset,
            %error,
            "this record can't be read, and nothing behind it is folded; deploy a version that reads it"
        );
        let why = format!("partition {partition} is blocked by the record at offset {offset}: {error}");
        self.readiness.not_ready(&format!("{}/{partition}", self.name), why);
        gauge!(BLOCKED, "projection" => self.name).increment(1);
        self.stop.cancelled().await;
        gauge!(BLOCKED, "projection" => self.name).decrement(1);
        Ended::Stopped
    }

    fn confirm(&self) {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.position);
    }
}

async fn bounded(write: impl Future<Output = Result<(), SinkError>>) -> Result<(), SinkError> {
    timeout(WRITE_TIMEOUT, write)
        .await
        .unwrap_or_else(|_| Err(SinkError::Retry(format!("no answer in {} s", WRITE_TIMEOUT.as_secs()))))
}

/// The records before the first that can't be decoded, and that one.
fn split(deliveries: Vec<Delivery>) -> (Vec<Record>, Option<(i64, DecodeError)>) {
    let mut records = Vec::with_capacity(deliveries.len());
    for delivery in deliveries {
        match delivery {
            Delivery::Record(record) => records.push(record),
            Delivery::Poison { offset, error } => return (records, Some((offset, error))),
        }
    }
    (records, None)
}
