//! Folds the log into the audit's models: from its start, and later from the end of the previous fold.

use std::{collections::BTreeSet, ops::ControlFlow};

use anyhow::{Context, bail, ensure};
use rdkafka::{Message, message::BorrowedMessage};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use vidlog_events::{DecodeError, Envelope, Stream};
use vidlog_projection_engine::{
    log::{Item, Log, Offsets, Partition, Ranges, RecordKey, Source, decode_message},
    view::Projection,
};
use vidlog_schemas::{
    Keys,
    keys::{FIRST_GENERATION, ViewKey},
};

use super::{Model, excluded::Excluded, touched};
use crate::comparison::{LineKey, Lines};

/// Bytes of touched lines that are held in memory.
const TOUCHED_MEMORY: usize = 4 << 20;

/// The fold of the log for one projection, up to some offsets.
pub(super) struct Folding {
    projection: Projection,
    /// The next offset of each of the projection's partitions.
    pub(super) at: Offsets,
    /// Records that the fold excludes.
    pub(super) excluded: Excluded,
    model: Model,
    /// The lines in Redis that the records since the last call of [`Folding::take_touched`] may have changed.
    touched: Option<Lines>,
    /// Keys of the first generation.
    keys: Keys,
}

impl Folding {
    /// Starts at the beginning of a projection's partitions.
    pub(super) fn new(projection: Projection, partitions: &[Partition], keys: &Keys, memory: usize) -> Self {
        Self {
            projection,
            at: partitions.iter().map(|partition| (*partition, 0)).collect(),
            excluded: Excluded::default(),
            model: Model::new(memory),
            touched: None,
            keys: keys.of_generation(&projection.catalogued, FIRST_GENERATION),
        }
    }

    /// Returns the lines that records may have changed since the last call; the first call starts the
    /// collection.
    pub(super) fn take_touched(&mut self) -> Lines {
        let touched = self.touched.replace(Lines::new(TOUCHED_MEMORY));
        touched.unwrap_or_else(|| Lines::new(TOUCHED_MEMORY))
    }

    /// Returns the lines that the view should have, named as in the first generation. Blocking.
    pub(super) fn into_lines(self, memory: usize) -> anyhow::Result<Lines> {
        self.model.into_lines(&[self.projection], &self.keys, memory)
    }

    fn is_own(&self, line: &LineKey) -> bool {
        let key = line.redis().and_then(|(name, _)| ViewKey::parse(&name));
        key.is_some_and(|key| key.projection == self.projection.catalogued)
    }

    /// Folds the next record of a partition.
    fn fold(
        &mut self,
        partition: Partition,
        message: &BorrowedMessage<'_>,
        decoded: &Result<Envelope, DecodeError>,
    ) -> anyhow::Result<()> {
        let offset = message.offset();
        if self.excluded.has(partition, offset, || RecordKey::of(message.key())) {
            return Ok(());
        }
        let envelope = match decoded {
            Ok(envelope) => envelope,
            Err(error) => bail!(
                "{} has passed the record at offset {offset} of {}, which can't be decoded and is not parked: {error}",
                self.projection.name(),
                partition.id()
            ),
        };
        self.model.fold(envelope)?;
        if let Some(mut lines) = self.touched.take() {
            for line in touched(&self.keys, &envelope.event) {
                if self.is_own(&line) {
                    lines.set(&line, "");
                }
            }
            lines.spill_if_full()?;
            self.touched = Some(lines);
        }
        Ok(())
    }
}

/// A fold, and the offsets up to which to continue it.
pub(super) type Step = (Folding, Offsets);

/// Continues the folds of some projections, each to its own offsets, in one pass over the log.
pub(super) async fn fold_on(log: &Log, steps: Vec<Step>) -> anyhow::Result<Vec<Folding>> {
    for (folding, until) in &steps {
        let is_back = folding.at.iter().any(|(partition, at)| until.get(partition) < Some(at));
        ensure!(
            !is_back,
            "{} went back to an earlier position: its store lost writes, or the view was replaced; run it again",
            folding.projection.name()
        );
    }
    let (log, ranges) = (log.clone(), ranges(log, &steps).await?);
    // Dropping this future drops the guard, which stops the thread.
    let cancelled = CancellationToken::new();
    let _guard = cancelled.clone().drop_guard();
    spawn_blocking(move || read_on(&log, steps, &ranges, &cancelled))
        .await
        .context("reading the log panicked")?
}

/// Blocking part of the pass over the log.
fn read_on(
    log: &Log,
    mut steps: Vec<Step>,
    ranges: &Ranges,
    cancelled: &CancellationToken,
) -> anyhow::Result<Vec<Folding>> {
    log.read(
        Source::Events,
        ranges,
        || cancelled.is_cancelled(),
        |partition, item| {
            if let Item::Record(message) = item {
                let offset = message.offset();
                let decoded = decode_message(partition.stream, message);
                for (folding, until) in &mut steps {
                    let is_next = folding.at.get(&partition).is_some_and(|at| *at <= offset);
                    if is_next && until.get(&partition).is_some_and(|until| offset < *until) {
                        folding.fold(partition, message, &decoded)?;
                    }
                }
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    ensure!(!cancelled.is_cancelled(), "the audit was cancelled");
    Ok(steps.into_iter().map(|(folding, at)| Folding { at, ..folding }).collect())
}

/// Returns the ranges of the log that any of the folds still has to read.
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
