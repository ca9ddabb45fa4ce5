//! Folds the log into the audit's models: from its start, and on from where that ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::BorrowedMessage,
};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use vidlog_events::{DecodeError, Envelope};
use vidlog_schemas::{
    Keys,
    keys::{FIRST_GENERATION, ViewKey},
    projections::View,
};

use super::{Lines, Model, excluded::Excluded, touched};
use vidlog_projection_engine::{
    log::{Log, Offsets, Partition, RecordKey, decode_message},
    view::Projection,
};

/// How long the broker may take to answer, or to send the next record.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

/// What the log says about one projection.
pub(super) struct Folding {
    projection: Projection,
    /// How far it is: the next offset of each of the projection's partitions.
    pub(super) at: Offsets,
    /// What was passed over, and is to be.
    pub(super) excluded: Excluded,
    pub(super) model: Model,
    /// The names, as in the first generation, of the Redis keys that may have been written to since someone wished to know.
    pub(super) touched: Option<BTreeSet<String>>,
    /// Of the first generation.
    keys: Keys,
}

impl Folding {
    /// Nothing of a projection's partitions.
    pub(super) fn new(projection: Projection, partitions: &[Partition], keys: &Keys) -> Self {
        Self {
            projection,
            at: partitions.iter().map(|partition| (*partition, 0)).collect(),
            excluded: Excluded::default(),
            model: Model::default(),
            touched: None,
            keys: keys.of_generation(&projection.catalogued, FIRST_GENERATION),
        }
    }

    /// The lines that the view should have, named as in the first generation.
    pub(super) fn lines(&self) -> Lines {
        let mut lines = self.model.lines(&self.keys);
        lines.retain(|name, _| match self.projection.catalogued.view {
            View::Redis(_) => self.is_own(name),
            View::MySql(tables) => name.split_once('/').is_some_and(|(table, _)| tables.contains(&table)),
        });
        lines
    }

    fn is_own(&self, name: &str) -> bool {
        ViewKey::read(name).is_some_and(|key| key.projection == self.projection.catalogued)
    }

    /// Takes the next record of a partition.
    fn take(
        &mut self,
        partition: Partition,
        message: &BorrowedMessage<'_>,
        decoded: &Result<Envelope, DecodeError>,
    ) -> anyhow::Result<()> {
        let offset = message.offset();
        if self.excluded.has(partition, offset, || RecordKey::of(message.key())) {
            return Ok(());
        }
        match decoded {
            Ok(envelope) => {
                self.model.fold(envelope);
                if self.touched.is_some() {
                    let names = touched(&self.keys, &envelope.event).into_iter().map(|key| key.name);
                    let own: Vec<_> = names.filter(|name| self.is_own(name)).collect();
                    self.touched.get_or_insert_default().extend(own);
                }
            }
            Err(error) => bail!(
                "{} has passed the record at offset {offset} of {}, which can't be decoded and does not wait: {error}",
                self.projection.name(),
                partition.field()
            ),
        }
        Ok(())
    }
}

/// Where a folding is to get to.
pub(super) type Step = (Folding, Offsets);

/// Folds on for some projections, each to its own places, in one reading of the log.
pub(super) async fn fold_on(log: &Log, steps: Vec<Step>) -> anyhow::Result<Vec<Folding>> {
    for (folding, until) in &steps {
        let is_back = folding.at.iter().any(|(partition, at)| until.get(partition) < Some(at));
        ensure!(!is_back, "{} lost what it had, or was replaced; run it again", folding.projection.name());
    }
    let log = log.clone();
    // Dropped when this future is, which ends the reading.
    let wanted = CancellationToken::new();
    let ended = wanted.child_token();
    let _guard = wanted.drop_guard();
    spawn_blocking(move || read_on(&log, steps, &ended)).await.context("reading the log panicked")?
}

/// It blocks.
fn read_on(log: &Log, mut steps: Vec<Step>, ended: &CancellationToken) -> anyhow::Result<Vec<Folding>> {
    let mut left = stretches(&steps);
    let consumer = reader(log, &left)?;
    let mut heard = Instant::now();
    while !left.is_empty() {
        ensure!(!ended.is_cancelled(), "the audit was ended");
        let Some(message) = consumer.poll(POLL) else {
            if heard.elapsed() > BROKER_TIMEOUT {
                bail!("the log could not be read on: nothing came for {} s", BROKER_TIMEOUT.as_secs());
            }
            continue;
        };
        let message = message.context("failed to read the log")?;
        heard = Instant::now();
        let Some(stream) = log.topics.stream(message.topic()) else {
            continue;
        };
        let partition = Partition { stream, number: message.partition() };
        let offset = message.offset();
        let Some(end) = left.get(&partition).map(|stretch| stretch.end).filter(|end| offset < *end) else {
            continue;
        };
        let decoded = decode_message(stream, &message);
        for (folding, until) in &mut steps {
            let is_next = folding.at.get(&partition).is_some_and(|at| *at <= offset);
            if is_next && until.get(&partition).is_some_and(|until| offset < *until) {
                folding.take(partition, &message, &decoded)?;
            }
        }
        if offset + 1 == end {
            left.remove(&partition);
        }
    }
    Ok(steps.into_iter().map(|(folding, at)| Folding { at, ..folding }).collect())
}

/// What is to be read of each partition: all that any of the foldings lacks.
fn stretches(steps: &[Step]) -> BTreeMap<Partition, Range<i64>> {
    let mut stretches: BTreeMap<Partition, Range<i64>> = BTreeMap::new();
    for (folding, until) in steps {
        for (partition, at) in &folding.at {
            let end = until.get(partition).copied().unwrap_or_default();
            if *at < end {
                let stretch = stretches.entry(*partition).or_insert(*at..end);
                *stretch = stretch.start.min(*at)..stretch.end.max(end);
            }
        }
    }
    stretches
}

fn reader(log: &Log, stretches: &BTreeMap<Partition, Range<i64>>) -> anyhow::Result<BaseConsumer> {
    let consumer = log.consumer()?;
    let mut list = TopicPartitionList::new();
    for (partition, stretch) in stretches {
        let from = if stretch.start == 0 { Offset::Beginning } else { Offset::Offset(stretch.start) };
        list.add_partition_offset(&log.topics.name(partition.stream), partition.number, from)?;
    }
    consumer.assign(&list).context("failed to read the log")?;
    Ok(consumer)
}
