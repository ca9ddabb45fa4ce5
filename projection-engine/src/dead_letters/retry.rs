//! Folds what waits of a parked key, in order, and then parks it no longer.
//!
//! What waits is folded as a partition of its own (`sink::ParkedKeyStore`), while the runner goes on with the others and diverts
//! what comes of the key. The key is unparked only if nothing was diverted since what was folded; else what came is folded
//! as well. The runner finds that a key is not parked any more when it is about to divert one of its records.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, ensure};
use thiserror::Error;
use tokio::{task::spawn_blocking, time::Instant, time::sleep};
use tracing::info;
use vidlog_service_kit::failpoint;

use super::{
    letter::{self, DeadLetter, Discards},
    queue::DeadLetterQueue,
};
use crate::{
    desired_state,
    log::{Partition, Record, RecordKey, decode_message},
    store::{Class, Failure, ParkedKey, Position, SharedStore, StoreError, parked_key::ParkedKeyStore},
};

/// Letters that are folded at once.
const BATCH: usize = 500;
/// How long the view may take to settle behind the last record that waits.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// A key of which records come faster than they are folded gets a moment of stillness after so many rounds.
const ROUNDS: u32 = 5;
/// That moment: shorter than a reader waits for its own write.
const HOLD: Duration = Duration::from_secs(1);
/// Attempts to write to a store, with a pause between them that grows.
const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);

/// What became of a parked key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is folded, and the key is parked no longer.
    Folded,
    /// It waits on, from a record that still can't be folded.
    Waits(ParkedKey),
    /// It waits on, as the dead letters have only so many of its records.
    Lost {
        /// How it is parked.
        parked: ParkedKey,
        /// How many of its records are there.
        found: i64,
    },
}

/// Nothing is there that could be passed over.
#[derive(Debug, Error)]
#[error("no key of {partition} waits because of the record at offset {offset}")]
pub struct NotParked {
    partition: String,
    offset: i64,
}

/// Retries the parked keys of a projection.
pub struct Retry {
    sink: SharedStore,
    dead_letters: DeadLetterQueue,
}

/// How far a round came.
enum Reached {
    /// To the end of what it knew of.
    End,
    /// To a record that can't be folded, after some that were, or were passed over.
    Failure { offset: i64, passed: i64, failure: Failure },
}

impl Retry {
    /// A retry with this program.
    pub const fn new(sink: SharedStore, dead_letters: DeadLetterQueue) -> Self {
        Self { sink, dead_letters }
    }

    /// Folds what waits of a key, until all is folded or a record can't be.
    pub async fn key(&self, partition: Partition, key: &RecordKey) -> anyhow::Result<Outcome> {
        let store = ParkedKeyStore::new(self.sink.clone(), partition, key.clone());
        let mut round = 0;
        loop {
            let Some(parked) = self.parked(partition, key).await? else {
                return Ok(Outcome::Folded);
            };
            self.wait_for_view(partition, parked.last).await?;
            let (letters, discards) = self.letters(partition, key, &parked).await?;
            let found = i64::try_from(letters.len()).unwrap_or(i64::MAX);
            if found < parked.waiting {
                return Ok(Outcome::Lost { parked, found });
            }
            let Some(mut position) = persist(async || store.begin(&parked).await).await? else {
                continue;
            };
            match fold(&store, &mut position, partition, &letters, &discards).await? {
                Reached::End => {
                    failpoint::pass("unpark-before");
                    if persist(async || store.unpark(&parked).await).await? {
                        failpoint::pass("unpark-after");
                        info!(
                            projection = self.sink.projection().name(),
                            partition = partition.id(),
                            key = key.as_str(),
                            records = parked.waiting,
                            "what waited is folded"
                        );
                        return Ok(Outcome::Folded);
                    }
                }
                Reached::Failure { offset, passed, failure } => {
                    let to = ParkedKey { first: offset, waiting: parked.waiting - passed, failure, ..parked };
                    if persist(async || store.repark(&parked, &to).await).await? {
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

    /// Decides that the first record which waits of a key is to be passed over for good, and goes on with the rest.
    pub async fn discard(&self, partition: Partition, offset: i64) -> anyhow::Result<(RecordKey, Outcome)> {
        let parked = self.sink.parked().await?.remove(&partition).unwrap_or_default();
        let found = parked.into_iter().find(|(_, parked)| parked.first == offset);
        let (key, parked) = found.ok_or_else(|| NotParked { partition: partition.id(), offset })?;
        let (mut letters, _) = self.letters(partition, &key, &parked).await?;
        let letter = letters.remove(&offset).context("the dead letters lack the record")?;
        let failure = Failure::new(Class::Discarded, &letter.failure.message);
        let name = self.sink.projection().name();
        let origin = letter.message.clone().set_offset(offset);
        self.dead_letters.send(name, partition, &[(&origin, failure)]).await?;
        failpoint::pass("discard-after");
        let outcome = self.key(partition, &key).await?;
        Ok((key, outcome))
    }

    /// How the key is parked.
    async fn parked(&self, partition: Partition, key: &RecordKey) -> anyhow::Result<Option<ParkedKey>> {
        let mut all = persist(async || self.sink.parked().await).await?;
        Ok(all.remove(&partition).and_then(|mut parked| parked.remove(key)))
    }

    /// Waits until every part of the view has passed a record: then no earlier one of the key is still to be folded.
    async fn wait_for_view(&self, partition: Partition, last: i64) -> anyhow::Result<()> {
        let deadline = Instant::now() + SETTLE_TIMEOUT;
        loop {
            let positions = persist(async || self.sink.positions(&[partition]).await).await?;
            let stands = positions.first().map_or(0, Position::lowest);
            if stands > last {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the view stands at {stands} of {}, before the last record that waits, {last}: is the projection \
                 running?",
                partition.id()
            );
            sleep(SETTLE_LOOK).await;
        }
    }

    /// What the dead letters have of what waits of a key, as it is known to be parked.
    async fn letters(
        &self,
        partition: Partition,
        key: &RecordKey,
        parked: &ParkedKey,
    ) -> anyhow::Result<(BTreeMap<i64, DeadLetter>, Discards)> {
        let (log, name) = (self.dead_letters.log().clone(), self.sink.projection().name());
        let (wanted, waits) = (key.clone(), parked.first..=parked.last);
        let read = move || {
            letter::waiting(&log, name, partition, |letter| {
                waits.contains(&letter.offset) && letter.key() == wanted
            })
        };
        spawn_blocking(read).await.context("reading the dead letters panicked")?
    }

    /// Asks for a moment of stillness, so that what waits does not grow while it is folded.
    async fn hold(&self) -> anyhow::Result<()> {
        let (pool, projection) = (&self.sink.stores().mysql, self.sink.projection());
        let wanted = desired_state::read(pool).await?.remove(projection.name()).unwrap_or_default();
        if wanted.run_state == desired_state::RunState::Run {
            desired_state::hold(pool, projection, HOLD).await?;
        }
        Ok(())
    }
}

/// Folds letters in order, up to one that can't be folded.
async fn fold(
    store: &ParkedKeyStore,
    position: &mut Position,
    partition: Partition,
    letters: &BTreeMap<i64, DeadLetter>,
    discards: &Discards,
) -> anyhow::Result<Reached> {
    let (mut batch, mut passed) = (Vec::new(), 0);
    for (offset, letter) in letters {
        if !discards.contains(offset) {
            match decode_message(partition.stream, &letter.message) {
                Ok(envelope) => batch.push(Record { offset: *offset, envelope }),
                Err(error) => {
                    if let Some(reached) = flush(store, position, &mut batch, letters).await? {
                        return Ok(reached);
                    }
                    let failure = Failure::new(Class::Undecodable, &error.to_string());
                    return Ok(Reached::Failure { offset: *offset, passed, failure });
                }
            }
        }
        passed += 1;
        if batch.len() >= BATCH
            && let Some(reached) = flush(store, position, &mut batch, letters).await?
        {
            return Ok(reached);
        }
    }
    Ok(flush(store, position, &mut batch, letters).await?.unwrap_or(Reached::End))
}

/// Folds a batch, one by one if a record of it can't be folded; says which that is.
async fn flush(
    store: &ParkedKeyStore,
    position: &mut Position,
    batch: &mut Vec<Record>,
    letters: &BTreeMap<i64, DeadLetter>,
) -> anyhow::Result<Option<Reached>> {
    let batch = std::mem::take(batch);
    if apply(store, position, &batch).await?.is_none() {
        return Ok(None);
    }
    for record in batch {
        if let Some(why) = apply(store, position, std::slice::from_ref(&record)).await? {
            let offset = record.offset;
            let passed = i64::try_from(letters.range(..offset).count()).unwrap_or(i64::MAX);
            let failure = Failure::new(Class::Unfoldable, &why);
            return Ok(Some(Reached::Failure { offset, passed, failure }));
        }
    }
    Ok(None)
}

/// Folds records; says why the store can't take one of them.
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
            Err(error) => return Err(error).context("failed to fold what waits"),
        }
    }
    Ok(None)
}

/// Asks a store again while it is away.
async fn persist<T>(ask: impl AsyncFn() -> Result<T, StoreError>) -> anyhow::Result<T> {
    let mut attempt = 0;
    loop {
        match ask().await {
            Err(StoreError::Retry(_)) if attempt < ATTEMPTS => {
                sleep(PAUSE * (1 << attempt)).await;
                attempt += 1;
            }
            answered => return Ok(answered?),
        }
    }
}
