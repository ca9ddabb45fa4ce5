//! Folds the waiting records of a parked key in order, and then unparks the key.
//!
//! They have a checkpoint of their own ([`ParkedKeyStore`]). Meanwhile the runner folds the other keys, and diverts
//! new records of this one. The key is unparked only if no record was diverted since the last one that the retry
//! read; otherwise another round folds the new ones. The runner detects that a key is unparked when it diverts its
//! next record.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use rdkafka::message::OwnedMessage;
use thiserror::Error;
use tokio::{task::spawn_blocking, time::Instant, time::sleep};
use tracing::info;
use vidlog_events::Envelope;
use vidlog_service_kit::failpoint;

use super::{
    dead_letter::{self, DeadLetter, Discards},
    queue::DeadLetterQueue,
};
use crate::{
    desired_state,
    log::{Log, Partition, Record, RecordKey, decode_message},
    store::{Class, Failure, ParkedKey, Position, SharedStore, StoreError, parked_key::ParkedKeyStore},
};

/// Records in a batch.
const BATCH: usize = 500;
/// Timeout for the view to pass the last waiting record.
const VIEW_TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two reads of the view's position.
const VIEW_POLL: Duration = Duration::from_millis(50);
/// Rounds without a hold. If records of the key arrive faster than the retry folds them, further rounds hold the
/// projection.
const ROUNDS: u32 = 5;
/// The length of that hold: shorter than the wait of a reader for its own write.
const HOLD: Duration = Duration::from_secs(1);
/// Retries of a store operation, and the first pause between them, which doubles.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

/// The result of a retry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All records are folded, and the key is unparked.
    Folded,
    /// The key stays parked from a record that still cannot be folded.
    Waits(ParkedKey),
    /// The key stays parked, because the dead letters lack some of its records.
    Lost {
        /// How it is parked.
        parked: ParkedKey,
        /// The number of its records in the dead letters.
        found: i64,
    },
}

/// No parked key has its first record at the offset to discard.
#[derive(Debug, Error)]
#[error("no key of {partition} is parked at offset {offset}")]
pub struct NotParked {
    partition: String,
    offset: i64,
}

/// Retries the parked keys of a projection.
pub struct Retry {
    store: SharedStore,
    dead_letters: DeadLetterQueue,
}

/// The end of a round.
enum Reached {
    /// All records that the round read are folded or skipped.
    End,
    /// A record cannot be folded, after `passed` records that were folded or skipped.
    Failure { offset: i64, passed: i64, failure: Failure },
}

impl Retry {
    /// A retry with the folds of this program.
    pub const fn new(store: SharedStore, dead_letters: DeadLetterQueue) -> Self {
        Self { store, dead_letters }
    }

    /// Folds the waiting records of a key, until none is left or one cannot be folded.
    pub async fn key(&self, partition: Partition, key: &RecordKey) -> anyhow::Result<Outcome> {
        let store = ParkedKeyStore::new(self.store.clone(), partition, key.clone());
        let mut round = 0;
        loop {
            let Some(parked) = self.parked(partition, key).await? else {
                return Ok(Outcome::Folded);
            };
            self.wait_for_view(partition, parked.last).await?;
            let (dead_letters, discards) = self.dead_letters(partition, key, &parked).await?;
            let found = i64::try_from(dead_letters.len()).unwrap_or(i64::MAX);
            if found < parked.waiting {
                return Ok(Outcome::Lost { parked, found });
            }
            let Some(mut position) = retry_while_unavailable(async || store.begin(&parked).await).await?
            else {
                continue;
            };
            let log = self.dead_letters.log();
            let waiting = WaitingRecords {
                log,
                store: &store,
                partition,
                dead_letters: &dead_letters,
                discards: &discards,
            };
            match waiting.fold(&mut position).await? {
                Reached::End => {
                    failpoint::pass("unpark-before");
                    if retry_while_unavailable(async || store.unpark(&parked).await).await? {
                        failpoint::pass("unpark-after");
                        info!(
                            projection = self.store.projection().name(),
                            partition = partition.id(),
                            key = key.as_str(),
                            records = parked.waiting,
                            "parked records folded"
                        );
                        return Ok(Outcome::Folded);
                    }
                }
                Reached::Failure { offset, passed, failure } => {
                    let to = ParkedKey { first: offset, waiting: parked.waiting - passed, failure, ..parked };
                    if retry_while_unavailable(async || store.repark(&parked, &to).await).await? {
                        return Ok(Outcome::Waits(to));
                    }
                }
            }
            round += 1;
            if round >= ROUNDS {
                self.hold().await?;
            }
        }
    }

    /// Discards the first waiting record of a key permanently, and retries the rest.
    pub async fn discard(&self, partition: Partition, offset: i64) -> anyhow::Result<(RecordKey, Outcome)> {
        let parked = self.store.parked().await?.remove(&partition).unwrap_or_default();
        let found = parked.into_iter().find(|(_, parked)| parked.first == offset);
        let (key, parked) = found.ok_or_else(|| NotParked { partition: partition.id(), offset })?;
        let (mut dead_letters, _) = self.dead_letters(partition, &key, &parked).await?;
        let dead_letter = dead_letters.remove(&offset).context("the dead-letter topic lacks the record")?;
        let failure = Failure::new(Class::Discarded, &dead_letter.failure.message);
        let name = self.store.projection().name();
        let origin = dead_letter.message.clone().set_offset(offset);
        self.dead_letters.send(name, partition, &[(&origin, failure)]).await?;
        failpoint::pass("discard-after");
        let outcome = self.key(partition, &key).await?;
        Ok((key, outcome))
    }

    /// Returns the parked state of a key, if it is parked.
    async fn parked(&self, partition: Partition, key: &RecordKey) -> anyhow::Result<Option<ParkedKey>> {
        let mut all = retry_while_unavailable(async || self.store.parked().await).await?;
        Ok(all.remove(&partition).and_then(|mut parked| parked.remove(key)))
    }

    /// Waits until every part of the view has passed a record, so that no earlier record of the key is unfolded.
    async fn wait_for_view(&self, partition: Partition, last: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + VIEW_TIMEOUT;
        loop {
            let positions =
                retry_while_unavailable(async || self.store.positions(&[partition]).await).await?;
            let next = positions.first().map_or(0, Position::lowest);
            if next > last {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the view is at offset {next} of {}, but the last parked record is at {last}; start the projection, then \
                 run this again",
                partition.id()
            );
            sleep(VIEW_POLL).await;
        }
    }

    /// Returns the dead letters of a parked key in its range of offsets, and the discards.
    async fn dead_letters(
        &self,
        partition: Partition,
        key: &RecordKey,
        parked: &ParkedKey,
    ) -> anyhow::Result<(BTreeMap<i64, DeadLetter>, Discards)> {
        let (log, name) = (self.dead_letters.log().clone(), self.store.projection().name());
        let (key, range) = (key.clone(), parked.first..=parked.last);
        let read = move || {
            dead_letter::waiting(&log, name, partition, |dead_letter| {
                range.contains(&dead_letter.offset) && dead_letter.key() == key
            })
        };
        spawn_blocking(read).await.context("reading the dead letters panicked")?
    }

    /// Holds a running projection, so that no new records of the key are diverted during the next round.
    async fn hold(&self) -> anyhow::Result<()> {
        let (pool, projection) = (&self.store.stores().mysql, self.store.projection());
        let desired = desired_state::read(pool).await?.remove(projection.name()).unwrap_or_default();
        if desired.run_state == desired_state::RunState::Run {
            desired_state::hold(pool, projection, HOLD).await?;
        }
        Ok(())
    }
}

/// The waiting records of a key.
struct WaitingRecords<'a> {
    log: &'a Log,
    store: &'a ParkedKeyStore,
    partition: Partition,
    dead_letters: &'a BTreeMap<i64, DeadLetter>,
    discards: &'a Discards,
}

impl WaitingRecords<'_> {
    /// Folds the records in order, up to one that cannot be folded.
    async fn fold(&self, position: &mut Position) -> anyhow::Result<Reached> {
        let (mut batch, mut passed) = (Vec::new(), 0);
        for (offset, dead_letter) in self.dead_letters {
            if !self.discards.contains(offset) {
                match self.decode(dead_letter).await? {
                    Ok(envelope) => batch.push(Record { offset: *offset, envelope }),
                    Err(message) => {
                        if let Some(reached) = self.flush(position, &mut batch).await? {
                            return Ok(reached);
                        }
                        let failure = Failure::new(Class::Undecodable, &message);
                        return Ok(Reached::Failure { offset: *offset, passed, failure });
                    }
                }
            }
            passed += 1;
            // A record that its dead letter refers to is large.
            if (batch.len() >= BATCH || dead_letter.is_reference())
                && let Some(reached) = self.flush(position, &mut batch).await?
            {
                return Ok(reached);
            }
        }
        Ok(self.flush(position, &mut batch).await?.unwrap_or(Reached::End))
    }

    /// Decodes the record of a dead letter. Returns the reason if it cannot be decoded.
    async fn decode(&self, dead_letter: &DeadLetter) -> anyhow::Result<Result<Envelope, String>> {
        let decode = |message: &OwnedMessage| {
            decode_message(self.partition.stream, message).map_err(|error| error.to_string())
        };
        if !dead_letter.is_reference() {
            return Ok(decode(&dead_letter.message));
        }
        let (log, partition, origin) = (self.log.clone(), self.partition, dead_letter.origin());
        let loaded = spawn_blocking(move || origin.load(&log, partition)).await;
        match loaded.context("reading the log panicked")?? {
            Ok(message) => Ok(decode(&message)),
            Err(deleted) => Ok(Err(deleted.to_string())),
        }
    }

    /// Folds a batch, record by record if one of them cannot be folded. Returns which one.
    async fn flush(
        &self,
        position: &mut Position,
        batch: &mut Vec<Record>,
    ) -> anyhow::Result<Option<Reached>> {
        let batch = std::mem::take(batch);
        if apply(self.store, position, &batch).await?.is_none() {
            return Ok(None);
        }
        for record in batch {
            if let Some(why) = apply(self.store, position, std::slice::from_ref(&record)).await? {
                let offset = record.offset;
                let passed = i64::try_from(self.dead_letters.range(..offset).count()).unwrap_or(i64::MAX);
                let failure = Failure::new(Class::Unfoldable, &why);
                return Ok(Some(Reached::Failure { offset, passed, failure }));
            }
        }
        Ok(None)
    }
}

/// Folds records, with retries. Returns why the store rejects one of them, if it does.
async fn apply(
    store: &ParkedKeyStore,
    position: &mut Position,
    records: &[Record],
) -> anyhow::Result<Option<String>> {
    for attempt in 0.. {
        match store.apply(position, records).await {
            Ok(()) => return Ok(None),
            Err(StoreError::Unfoldable(why)) => return Ok(Some(why)),
            Err(StoreError::Retry(_)) if attempt < ATTEMPTS => sleep(PAUSE * (1 << attempt)).await,
            Err(error) => return Err(error).context("failed to fold parked records"),
        }
    }
    Ok(None)
}

/// Retries a store operation while the store is unavailable.
async fn retry_while_unavailable<T>(operation: impl AsyncFn() -> Result<T, StoreError>) -> anyhow::Result<T> {
    let mut attempt = 0;
    loop {
        match operation().await {
            Err(StoreError::Retry(_)) if attempt < ATTEMPTS => {
                sleep(PAUSE * (1 << attempt)).await;
                attempt += 1;
            }
            result => return Ok(result?),
        }
    }
}
