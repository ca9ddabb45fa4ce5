//! Folds the log into the audit's models: from its start, and on from where that ended.

use std::{collections::BTreeSet, ops::ControlFlow};

use anyhow::{Context, bail, ensure};
use rdkafka::{Message, message::BorrowedMessage};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use vidlog_events::{DecodeError, Envelope, Stream};
use vidlog_schemas::{
    Keys,
    keys::{FIRST_GENERATION, ViewKey},
    projections::View,
};

use super::{Lines, Model, excluded::Excluded, touched};
use vidlog_projection_engine::{
    log::{Item, Log, Offsets, Partition, Ranges, RecordKey, Source, decode_message},
    view::Projection,
};

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
                partition.id()
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
    let (log, ranges) = (log.clone(), ranges(log, &steps).await?);
    // Dropped when this future is, which ends the reading.
    let wanted = CancellationToken::new();
    let ended = wanted.child_token();
    let _guard = wanted.drop_guard();
    spawn_blocking(move || read_on(&log, steps, &ranges, &ended)).await.context("reading the log panicked")?
}

/// It blocks.
fn read_on(
    log: &Log,
    mut steps: Vec<Step>,
    ranges: &Ranges,
    ended: &CancellationToken,
) -> anyhow::Result<Vec<Folding>> {
    log.read(
        Source::Events,
        ranges,
        || ended.is_cancelled(),
        |partition, item| {
            if let Item::Record(message) = item {
                let offset = message.offset();
                let decoded = decode_message(partition.stream, message);
                for (folding, until) in &mut steps {
                    let is_next = folding.at.get(&partition).is_some_and(|at| *at <= offset);
                    if is_next && until.get(&partition).is_some_and(|until| offset < *until) {
                        folding.take(partition, message, &decoded)?;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    ensure!(!ended.is_cancelled(), "the audit was ended");
    Ok(steps.into_iter().map(|(folding, at)| Folding { at, ..folding }).collect())
}

/// What is to be read of each partition: all that any of the foldings lacks and the log has.
async fn ranges(log: &Log, steps: &[Step]) -> anyhow::Result<Ranges> {
    let mut ranges = Ranges::new();
    for (folding, until) in steps {
        for (partition, at) in &folding.at {
            let end = until.get(partition).copied().unwrap_or_default();
            if *at < end {
                let range = ranges.entry(*partition).or_insert(*at..end);
                *range = range.start.min(*at)..range.end.max(end);
            }
        }
    }
    let from_start = ranges.iter().filter(|(_, range)| range.start == 0);
    let streams: BTreeSet<Stream> = from_start.map(|(partition, _)| partition.stream).collect();
    if !streams.is_empty() {
        let extents = log.extents(streams.into_iter().collect()).await?;
        for (partition, range) in &mut ranges {
            let start = extents.get(partition).filter(|_| range.start == 0).map(|extent| extent.start);
            range.start = start.unwrap_or(range.start);
        }
    }
    Ok(ranges)
}
