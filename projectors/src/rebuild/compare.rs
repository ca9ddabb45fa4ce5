//! Compares two generations of a view at one position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use vidlog_schemas::{keys::ViewKey, projections::View};

use crate::{
    audit::{Difference, Lines, compare, key_lines, live_lines, snapshot},
    projection::Projection,
    replay::{Log, Places, Tally, replay},
    sink::{Partition, Position, Sink, Target},
};

/// The live and the next generation of a view.
pub(super) struct Pair {
    pub(super) projection: Projection,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
    pub(super) live: Target,
    pub(super) next: Target,
}

/// What is known of the differences between two generations.
pub(super) struct Comparison {
    /// Keys or rows that were compared.
    pub(super) lines: usize,
    /// What differs at one position.
    pub(super) differences: Vec<Difference>,
    /// Keys that differed while the live generation went on, which may be all that it was.
    suspects: BTreeSet<String>,
    /// What was folded since, with the keys that it wrote to.
    pub(super) since: Arc<Tally>,
}

impl Pair {
    pub(super) fn next_sink(&self) -> Sink {
        Sink::new(self.projection, self.next.clone())
    }

    /// Where the live generation stands in every partition.
    pub(super) async fn live_positions(&self) -> anyhow::Result<BTreeMap<Partition, Position>> {
        let sink = Sink::new(self.projection, self.live.clone());
        let positions =
            sink.positions(&self.partitions).await.context("the store does not say where it stands")?;
        Ok(self.partitions.iter().copied().zip(positions).collect())
    }

    /// How many records are left to some places.
    pub(super) async fn left(&self, until: &Places) -> anyhow::Result<i64> {
        let partitions: Vec<Partition> = until.keys().copied().collect();
        let positions = self.next_sink().positions(&partitions).await?;
        Ok(positions.iter().zip(until.values()).map(|(at, end)| (end - at.lowest()).max(0)).sum())
    }

    /// Tells readers how far the next generation is, before it is theirs.
    pub(super) async fn publish_progress(&self, places: &Places) -> anyhow::Result<()> {
        for (partition, next) in places {
            self.next_sink().publish_progress(*partition, *next).await?;
        }
        Ok(())
    }

    /// Compares all there is.
    ///
    /// MySQL shows the live view as it is at one position, to which the next one is brought. Redis does not: there the
    /// live view goes on while it is read. A key that nothing was written to meanwhile is compared at one position all
    /// the same; those others are known by what is folded until [`Pair::compare_rest`], which looks at them again.
    pub(super) async fn compare_all(&self, log: &Log) -> anyhow::Result<Comparison> {
        let since = Arc::new(Tally { touched: Some(Mutex::default()), ..Tally::default() });
        let projections = [self.projection];
        match self.projection.catalogued.view {
            View::MySql(_) => {
                let (places, live) = snapshot(&self.live.mysql, &self.projection).await?;
                replay(log, &self.next_sink(), &places, &since).await?;
                let next = live_lines(&self.next, &projections).await?;
                let lines = next.len();
                let differences = compare(next, live);
                Ok(Comparison { lines, differences, suspects: BTreeSet::new(), since })
            }
            View::Redis(_) => {
                let next = live_lines(&self.next, &projections).await?;
                let live = live_lines(&self.live, &projections).await?;
                let lines = next.len();
                let suspects = compare(next, live).into_iter().map(|difference| difference.name).collect();
                Ok(Comparison { lines, differences: Vec::new(), suspects, since })
            }
        }
    }

    /// Compares what may differ because the live generation went on, once that is held and both are at one position.
    pub(super) async fn compare_rest(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let View::Redis(_) = self.projection.catalogued.view else {
            return Ok(());
        };
        let mut names = comparison.suspects.clone();
        if let Some(touched) = &comparison.since.touched {
            let touched = touched.lock().unwrap_or_else(PoisonError::into_inner);
            names.extend(touched.iter().filter_map(|key| ViewKey::read(&key.name)).map(|key| key.name));
        }
        let next: Lines = key_lines(&self.next, &names).await?;
        comparison.differences = compare(next, key_lines(&self.live, &names).await?);
        Ok(())
    }
}
