//! Applies batches of records to a partition's view: folds them, and diverts those that cannot be folded, with all
//! later records of their keys, to the dead letters.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use metrics::{counter, gauge};
use rdkafka::message::OwnedMessage;
use thiserror::Error;
use tokio::time::timeout;
use tracing::warn;

use super::{
    dead_letter::DeadLetterHistory,
    limits::{Limits, PARKED_KEYS},
    queue::DeadLetterQueue,
};
use crate::{
    log::{Delivery, Partition, Record, RecordKey},
    metrics::{DEAD_LETTERS, PARKED},
    store::{Batch, Change, Changes, Class, Failure, Parked, ParkedKey, Position, SharedStore, StoreError},
};

/// Timeout for reading the parked keys from the store.
const PARKED_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum age of the cached parked keys: an operator may have retried some. One query reads those of the whole view.
const PARKED_MAX_AGE: Duration = Duration::from_secs(15);

/// Why records were not applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The store did not write them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The dead letters cannot be written or read. Retry.
    #[error("dead-letter queue unavailable: {0}")]
    DeadLetters(String),
    /// A failure limit or the parked-key limit is exceeded: the program or the store is the likely cause, not the
    /// records. An operator has to decide.
    #[error("{0}")]
    TooMany(String),
}

impl ApplyError {
    /// The reason for `/readyz` and status: without addresses, users, and names of databases.
    pub fn reason(&self) -> String {
        match self {
            Self::Store(error) => error.reason(),
            Self::DeadLetters(_) => "the dead-letter topic is unavailable".to_owned(),
            Self::TooMany(why) => why.clone(),
        }
    }
}

/// Applies the records of one partition.
pub struct BatchApplier {
    store: SharedStore,
    dead_letters: DeadLetterQueue,
    partition: Partition,
    position: Position,
    parked: Parked,
    parked_as_of: Instant,
    history: DeadLetterHistory,
    limits: Limits,
    /// The offsets of records that the store rejects, with the reason.
    unfoldable: BTreeMap<i64, String>,
}

/// The effects of a slice of records.
struct BatchPlan<'a> {
    records: Vec<Record>,
    dead_letters: Vec<(&'a OwnedMessage, Failure)>,
    changes: Changes,
    next: i64,
    limits: Limits,
    /// Why to stop after the plan is applied.
    stop: Option<String>,
}

impl fmt::Debug for BatchApplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchApplier({} of {:?})", self.partition.id(), self.store.projection())
    }
}

impl BatchApplier {
    /// Opens an applier that continues from the store's position. Reads the parked keys and the dead-letter history.
    pub async fn open(
        store: SharedStore,
        dead_letters: DeadLetterQueue,
        partition: Partition,
        position: Position,
    ) -> Result<Self, ApplyError> {
        let name = store.projection().name();
        let history =
            dead_letters.history(name, partition).await.map_err(|error| dead_letter_error(&error))?;
        let (limits, unfoldable) = (Limits::default(), BTreeMap::new());
        let (parked, parked_as_of) = (Parked::new(), Instant::now());
        let mut applier = Self {
            store,
            dead_letters,
            partition,
            position,
            parked,
            parked_as_of,
            history,
            limits,
            unfoldable,
        };
        let timed_out = |_| Err(StoreError::retry("timed out reading the parked keys"));
        timeout(PARKED_TIMEOUT, applier.reload()).await.unwrap_or_else(timed_out)?;
        Ok(applier)
    }

    /// The last position that the store confirmed.
    pub const fn position(&self) -> &Position {
        &self.position
    }

    /// Applies records that follow the position. After an error some of them may be applied; applying the same
    /// records again is idempotent.
    pub async fn apply(&mut self, deliveries: &[Delivery]) -> Result<(), ApplyError> {
        let mut slices = vec![deliveries];
        while let Some(slice) = slices.pop() {
            match self.apply_slice(slice).await {
                Ok(()) => {}
                // Bisects to find the record.
                Err(ApplyError::Store(StoreError::Unfoldable(why))) => {
                    if let [only] = slice {
                        self.unfoldable.insert(only.offset(), why);
                        slices.push(slice);
                    } else {
                        let (first, second) = slice.split_at(slice.len() / 2);
                        slices.extend([second, first]);
                    }
                }
                Err(ApplyError::Store(StoreError::ParkedKeysChanged)) => {
                    self.reload().await?;
                    slices.push(slice);
                }
                Err(error) => return Err(error),
            }
        }
        self.unfoldable.clear();
        Ok(())
    }

    /// Moves every part of the view to the same offset.
    pub async fn align(&mut self, next: i64) -> Result<(), StoreError> {
        self.store.align(self.partition, &mut self.position, next).await
    }

    /// Reloads the parked keys if the cached ones are too old, so that the gauge of parked keys follows retries.
    pub async fn refresh_parked_keys(&mut self) -> Result<(), StoreError> {
        if self.parked.is_empty() || self.parked_as_of.elapsed() < PARKED_MAX_AGE {
            return Ok(());
        }
        self.reload().await
    }

    async fn apply_slice(&mut self, slice: &[Delivery]) -> Result<(), ApplyError> {
        let name = self.store.projection().name();
        let BatchPlan { records, dead_letters, changes, next, limits, stop } = self.plan(slice);
        self.dead_letters
            .send(name, self.partition, &dead_letters)
            .await
            .map_err(|error| dead_letter_error(&error))?;
        let batch = Batch { records: &records, next, changes: &changes };
        self.store.write(&self.partition.into(), &mut self.position, &batch).await?;

        self.limits = limits;
        for (_, Failure { class, .. }) in dead_letters {
            counter!(DEAD_LETTERS, "projection" => name, "class" => class.name()).increment(1);
        }
        for (key, change) in changes {
            self.apply_change(key, change);
        }
        stop.map_or(Ok(()), |why| Err(ApplyError::TooMany(why)))
    }

    fn plan<'a>(&self, slice: &'a [Delivery]) -> BatchPlan<'a> {
        let start = slice.first().map_or(self.position.lowest(), Delivery::offset);
        let mut plan = BatchPlan {
            records: Vec::with_capacity(slice.len()),
            dead_letters: Vec::new(),
            changes: Changes::new(),
            next: start,
            limits: self.limits.clone(),
            stop: None,
        };
        for delivery in slice {
            let offset = delivery.offset();
            if offset >= self.position.lowest()
                && let Err(why) = self.plan_one(&mut plan, delivery)
            {
                plan.stop = Some(format!("{}, up to offset {offset}: {why}", self.partition.id()));
                break;
            }
            plan.next = offset + 1;
        }
        plan
    }

    /// Adds one record to the plan. Returns why to stop before it.
    fn plan_one<'a>(&self, plan: &mut BatchPlan<'a>, delivery: &'a Delivery) -> Result<(), String> {
        let offset = delivery.offset();
        let failure = self.failure(delivery);
        if failure.is_none() && self.parked.is_empty() && plan.changes.is_empty() {
            self.plan_fold(plan, delivery);
            return Ok(());
        }
        let key = delivery.key();
        if let Some(parked) = self.parked.get(&key)
            && parked.first <= offset
        {
            if offset <= parked.last {
                // Diverted before, so the dead letters and the counts include it.
                return Ok(());
            }
            let change = plan.changes.entry(key).or_insert(Change::Extend { last: offset, more: 0 });
            change.extend(offset);
            plan.dead_letters.push((&delivery.message, behind(parked.first)));
        } else if let Some(change @ Change::Park(_)) = plan.changes.get_mut(&key) {
            let first = change.extend(offset);
            plan.dead_letters.push((&delivery.message, behind(first)));
        } else if self.history.discards.contains(&offset) {
            return Ok(());
        } else if let Some(failure) = failure {
            if let Some(parked) = self.parked.get(&key) {
                return Err(format!(
                    "the record can't be folded, but its key {key} is parked only from offset {} on",
                    parked.first
                ));
            }
            let to_be_parked =
                plan.changes.values().filter(|change| matches!(change, Change::Park(_))).count();
            if self.parked.len() + to_be_parked >= PARKED_KEYS {
                return Err(format!("limit of {PARKED_KEYS} parked keys reached"));
            }
            self.count_failure(plan, offset)?;
            plan.dead_letters.push((&delivery.message, failure.clone()));
            plan.changes
                .insert(key, Change::Park(ParkedKey { first: offset, last: offset, waiting: 1, failure }));
            return Ok(());
        } else {
            self.plan_fold(plan, delivery);
            return Ok(());
        }
        // Its key is parked anyway, but a decoding error counts towards the failure limits.
        if delivery.decoded.is_err() { self.count_failure(plan, offset) } else { Ok(()) }
    }

    /// Counts a failure. Returns why to stop if a limit is exceeded. A record in the history does not count
    /// again: otherwise a rebuild would stop where an operator resumed the projection.
    fn count_failure(&self, plan: &mut BatchPlan<'_>, offset: i64) -> Result<(), String> {
        if self.history.failed.contains(&offset) {
            return Ok(());
        }
        plan.limits.failed().map_or(Ok(()), Err)
    }

    fn plan_fold(&self, plan: &mut BatchPlan<'_>, delivery: &Delivery) {
        if !self.history.discards.contains(&delivery.offset())
            && let Some(record) = delivery.record()
        {
            plan.limits.folded();
            plan.records.push(record);
        }
    }

    fn failure(&self, delivery: &Delivery) -> Option<Failure> {
        match &delivery.decoded {
            Err(error) => Some(Failure::new(Class::Undecodable, &error.to_string())),
            Ok(_) => self.unfoldable.get(&delivery.offset()).map(|why| Failure::new(Class::Unfoldable, why)),
        }
    }

    fn apply_change(&mut self, key: RecordKey, change: Change) {
        match change {
            Change::Park(parked) => {
                let ParkedKey { first, failure: Failure { class, message }, .. } = &parked;
                warn!(
                    projection = self.store.projection().name(),
                    partition = self.partition.id(),
                    offset = first,
                    class = class.name(),
                    message,
                    "record can't be folded, key parked"
                );
                gauge!(PARKED, "projection" => self.store.projection().name()).increment(1);
                self.parked.insert(key, parked);
            }
            Change::Extend { last, more } => {
                if let Some(parked) = self.parked.get_mut(&key) {
                    parked.last = last;
                    parked.waiting += more;
                }
            }
        }
    }

    /// Reads the parked keys from the store.
    async fn reload(&mut self) -> Result<(), StoreError> {
        let parked = self.store.parked().await?.remove(&self.partition).unwrap_or_default();
        self.add_to_gauge(-1.0);
        (self.parked, self.parked_as_of) = (parked, Instant::now());
        self.add_to_gauge(1.0);
        Ok(())
    }

    /// Adds the number of parked keys, times `sign`, to the gauge.
    fn add_to_gauge(&self, sign: f64) {
        let keys = u32::try_from(self.parked.len()).map_or(f64::INFINITY, f64::from);
        gauge!(PARKED, "projection" => self.store.projection().name()).increment(sign * keys);
    }
}

impl Drop for BatchApplier {
    fn drop(&mut self) {
        self.add_to_gauge(-1.0);
    }
}

impl Change {
    /// Adds a record that waits. Returns the first offset of the parked key, or for `Extend` the record's own.
    fn extend(&mut self, offset: i64) -> i64 {
        match self {
            Self::Park(parked) => {
                parked.last = offset;
                parked.waiting += 1;
                parked.first
            }
            Self::Extend { last, more } => {
                *last = offset;
                *more += 1;
                offset
            }
        }
    }
}

fn behind(first: i64) -> Failure {
    Failure::new(Class::Behind, &format!("waits behind the record at offset {first}"))
}

fn dead_letter_error(error: &anyhow::Error) -> ApplyError {
    ApplyError::DeadLetters(format!("{error:#}"))
}
