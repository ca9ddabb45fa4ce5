//! Takes records into a partition's view: folds those that can be folded, and diverts the others, with all that come
//! behind them, to the dead letters.

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
    letter::DeadLetterHistory,
    limits::{Limits, PARKED_KEYS},
    queue::DeadLetterQueue,
};
use crate::{
    log::{Delivery, Partition, Record, RecordKey},
    metrics::{DEAD_LETTERS, PARKED},
    store::{Batch, Change, Changes, Class, Failure, Parked, ParkedKey, Position, SharedStore, StoreError},
};

/// How long the store may take to say which keys are parked.
const PARKED_TIMEOUT: Duration = Duration::from_secs(10);
/// How old what is known of parked keys may become: someone may have retried them. All of a view are read at once.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Why records were not taken in.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The store did not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The dead letters can't be written, or read. Try again.
    #[error("the dead letters are away: {0}")]
    DeadLetters(String),
    /// So much fails that it is not for the records to wait. An operator has to look.
    #[error("{0}")]
    TooMany(String),
}

/// The applier of one partition.
pub struct BatchApplier {
    sink: SharedStore,
    dead_letters: DeadLetterQueue,
    partition: Partition,
    position: Position,
    parked: Parked,
    parked_as_of: Instant,
    past: DeadLetterHistory,
    limits: Limits,
    /// Records that the store was found not to take, and why.
    unfoldable: BTreeMap<i64, String>,
}

/// What is to be done with some records.
struct BatchPlan<'a> {
    records: Vec<Record>,
    letters: Vec<(&'a OwnedMessage, Failure)>,
    changes: Changes,
    next: i64,
    limits: Limits,
    /// Why to stop after that.
    stop: Option<String>,
}

impl fmt::Debug for BatchApplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchApplier({} of {:?})", self.partition.id(), self.sink.projection())
    }
}

impl BatchApplier {
    /// An applier that goes on from a position which the store was said to have.
    pub async fn open(
        sink: SharedStore,
        dead_letters: DeadLetterQueue,
        partition: Partition,
        position: Position,
    ) -> Result<Self, ApplyError> {
        let name = sink.projection().name();
        let past = dead_letters.past(name, partition).await.map_err(|error| dead_letter_error(&error))?;
        let (limits, unfoldable) = (Limits::default(), BTreeMap::new());
        let (parked, parked_as_of) = (Parked::new(), Instant::now());
        let mut applier =
            Self { sink, dead_letters, partition, position, parked, parked_as_of, past, limits, unfoldable };
        let too_late = |_| Err(StoreError::Retry("it does not say which keys are parked".to_owned()));
        timeout(PARKED_TIMEOUT, applier.reload()).await.unwrap_or_else(too_late)?;
        Ok(applier)
    }

    /// Where the store is known to stand.
    pub const fn position(&self) -> &Position {
        &self.position
    }

    /// Takes records in, which follow the position. An error may have taken in some of them; taking in the same again
    /// is harmless.
    pub async fn apply(&mut self, deliveries: &[Delivery]) -> Result<(), ApplyError> {
        let mut pieces = vec![deliveries];
        while let Some(piece) = pieces.pop() {
            match self.apply_slice(piece).await {
                Ok(()) => {}
                // Which one it is, is found in smaller and smaller pieces.
                Err(ApplyError::Store(StoreError::Unfoldable(why))) => {
                    if let [only] = piece {
                        self.unfoldable.insert(only.offset(), why);
                        pieces.push(piece);
                    } else {
                        let (first, second) = piece.split_at(piece.len() / 2);
                        pieces.extend([second, first]);
                    }
                }
                Err(ApplyError::Store(StoreError::ParkedKeysChanged)) => {
                    self.reload().await?;
                    pieces.push(piece);
                }
                Err(error) => return Err(error),
            }
        }
        self.unfoldable.clear();
        Ok(())
    }

    /// Brings every part of the store to the same place.
    pub async fn align(&mut self, next: i64) -> Result<(), StoreError> {
        self.sink.align(self.partition, &mut self.position, next).await
    }

    /// Sees whether keys that were parked were retried meanwhile: it is counted how many are parked, for operators.
    pub async fn refresh_parked_keys(&mut self) -> Result<(), StoreError> {
        if self.parked.is_empty() || self.parked_as_of.elapsed() < LOOK_AGAIN {
            return Ok(());
        }
        self.reload().await
    }

    async fn apply_slice(&mut self, piece: &[Delivery]) -> Result<(), ApplyError> {
        let name = self.sink.projection().name();
        let BatchPlan { records, letters, changes, next, limits, stop } = self.plan(piece);
        self.dead_letters
            .send(name, self.partition, &letters)
            .await
            .map_err(|error| dead_letter_error(&error))?;
        let batch = Batch { records: &records, next, changes: &changes };
        self.sink.write(&self.partition.into(), &mut self.position, &batch).await?;

        self.limits = limits;
        for (_, Failure { class, .. }) in letters {
            counter!(DEAD_LETTERS, "projection" => name, "class" => class.name()).increment(1);
        }
        for (key, change) in changes {
            self.remember(key, change);
        }
        stop.map_or(Ok(()), |why| Err(ApplyError::TooMany(why)))
    }

    fn plan<'a>(&self, piece: &'a [Delivery]) -> BatchPlan<'a> {
        let begun = piece.first().map_or(self.position.lowest(), Delivery::offset);
        let mut plan = BatchPlan {
            records: Vec::with_capacity(piece.len()),
            letters: Vec::new(),
            changes: Changes::new(),
            next: begun,
            limits: self.limits.clone(),
            stop: None,
        };
        for delivery in piece {
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

    /// Decides about one record; says why to stop before it.
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
                // It was diverted before: it is in the dead letters, and counted.
                return Ok(());
            }
            let change = plan.changes.entry(key).or_insert(Change::Extend { last: offset, more: 0 });
            change.extend(offset);
            plan.letters.push((&delivery.message, behind(parked.first)));
        } else if let Some(change @ Change::Park(_)) = plan.changes.get_mut(&key) {
            let first = change.extend(offset);
            plan.letters.push((&delivery.message, behind(first)));
        } else if self.past.discards.contains(&offset) {
            return Ok(());
        } else if let Some(failure) = failure {
            if let Some(parked) = self.parked.get(&key) {
                return Err(format!(
                    "it can't be folded, but of its key {key} only records from offset {} on are known to wait",
                    parked.first
                ));
            }
            let to_be_parked =
                plan.changes.values().filter(|change| matches!(change, Change::Park(_))).count();
            if self.parked.len() + to_be_parked >= PARKED_KEYS {
                return Err(format!("{PARKED_KEYS} keys are parked already"));
            }
            self.count_failure(plan, offset)?;
            plan.letters.push((&delivery.message, failure.clone()));
            plan.changes
                .insert(key, Change::Park(ParkedKey { first: offset, last: offset, waiting: 1, failure }));
            return Ok(());
        } else {
            self.plan_fold(plan, delivery);
            return Ok(());
        }
        // It waits anyway, but that it can't be read either tells something of the program.
        if delivery.decoded.is_err() { self.count_failure(plan, offset) } else { Ok(()) }
    }

    /// Says why to stop, if too much fails. What failed before was counted then: a view that is folded anew is not to stop
    /// where an operator had it go on.
    fn count_failure(&self, plan: &mut BatchPlan<'_>, offset: i64) -> Result<(), String> {
        if self.past.failed.contains(&offset) {
            return Ok(());
        }
        plan.limits.failed().map_or(Ok(()), Err)
    }

    fn plan_fold(&self, plan: &mut BatchPlan<'_>, delivery: &Delivery) {
        if !self.past.discards.contains(&delivery.offset())
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

    fn remember(&mut self, key: RecordKey, change: Change) {
        match change {
            Change::Park(parked) => {
                let ParkedKey { first, failure: Failure { class, message }, .. } = &parked;
                warn!(
                    projection = self.sink.projection().name(),
                    partition = self.partition.id(),
                    offset = first,
                    class = class.name(),
                    message,
                    "a record can't be folded; it waits in the dead letters, with all later ones of its key"
                );
                gauge!(PARKED, "projection" => self.sink.projection().name()).increment(1);
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

    /// Sees which keys are parked.
    async fn reload(&mut self) -> Result<(), StoreError> {
        let parked = self.sink.parked().await?.remove(&self.partition).unwrap_or_default();
        self.count(-1.0);
        (self.parked, self.parked_as_of) = (parked, Instant::now());
        self.count(1.0);
        Ok(())
    }

    /// Counts the parked keys in, or out.
    fn count(&self, sign: f64) {
        let keys = u32::try_from(self.parked.len()).map_or(f64::INFINITY, f64::from);
        gauge!(PARKED, "projection" => self.sink.projection().name()).increment(sign * keys);
    }
}

impl Drop for BatchApplier {
    fn drop(&mut self) {
        self.count(-1.0);
    }
}

impl Change {
    /// Has one more record wait; says behind which.
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
    Failure::new(Class::Behind, &format!("it waits behind the record at offset {first}"))
}

fn dead_letter_error(error: &anyhow::Error) -> ApplyError {
    ApplyError::DeadLetters(format!("{error:#}"))
}
