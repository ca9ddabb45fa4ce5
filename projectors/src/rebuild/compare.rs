//! Compares two generations of a view at one position.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::time::{Instant, sleep};
use vidlog_schemas::{keys::ViewKey, projections::View};

use crate::{
    audit::{Difference, Lines, compare, key_lines, live_lines, snapshot},
    projection::Projection,
    replay::{Log, Places, Tally, replay},
    sink::{Partition, Position, Sink, Target},
};

/// How long the live generation may take to bring all its parts to where its furthest is.
const SETTLES_IN: Duration = Duration::from_mins(1);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(50);

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
    doubtful: BTreeMap<String, Difference>,
    /// What was folded since, with the keys that it wrote to.
    pub(super) since: Arc<Tally>,
}

impl Comparison {
    /// The keys that were written to since this was asked last.
    fn take_touched(&self) -> BTreeSet<String> {
        let touched = self
            .since
            .touched
            .as_ref()
            .map(|touched| std::mem::take(&mut *touched.lock().unwrap_or_else(PoisonError::into_inner)));
        let names = touched.unwrap_or_default();
        names.iter().filter_map(|key| ViewKey::read(&key.name)).map(|key| key.name).collect()
    }
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

    /// Tells readers how far the next generation is, before it is theirs. Those of a view in MySQL do not tell generations
    /// apart, and the two are at one position.
    pub(super) async fn publish_progress(&self, places: &Places) -> anyhow::Result<()> {
        if let View::Redis(_) = self.projection.catalogued.view {
            for (partition, next) in places {
                self.next_sink().publish_progress(*partition, *next).await?;
            }
        }
        Ok(())
    }

    /// Compares all there is.
    ///
    /// MySQL shows the live view as it is at one position, to which the next one is brought. Redis does not: there the
    /// live view goes on while it is read. A key that nothing was written to meanwhile is compared at one position all
    /// the same; which those are is known once what came meanwhile is folded ([`Pair::compare_again`]).
    pub(super) async fn compare_all(&self, log: &Log) -> anyhow::Result<Comparison> {
        let since = Arc::new(Tally { touched: Some(Mutex::default()), ..Tally::default() });
        let projections = [self.projection];
        let (lines, differences, doubtful) = match self.projection.catalogued.view {
            View::MySql(_) => {
                let (places, live) = snapshot(&self.live.mysql, &self.projection).await?;
                replay(log, &self.next_sink(), &places, &since).await?;
                let next = live_lines(&self.next, &projections).await?;
                (next.len(), compare(next, live), BTreeMap::new())
            }
            View::Redis(_) => {
                let next = live_lines(&self.next, &projections).await?;
                let live = live_lines(&self.live, &projections).await?;
                (next.len(), Vec::new(), by_name(compare(next, live)))
            }
        };
        Ok(Comparison { lines, differences, doubtful, since })
    }

    /// Folds what the live generation has by now, and looks again at what it has written to since the last look: that
    /// alone is in doubt after it. What was in doubt before and was not written to is a difference.
    pub(super) async fn compare_again(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let View::Redis(_) = self.projection.catalogued.view else {
            return Ok(());
        };
        // All that the last look can have seen of the live generation.
        let seen: Places =
            self.live_positions().await?.into_iter().map(|(at, position)| (at, position.highest())).collect();
        let deadline = Instant::now() + SETTLES_IN;
        loop {
            let stands = super::lowest(&self.live_positions().await?);
            if stands.iter().all(|(partition, next)| seen.get(partition).is_none_or(|seen| seen <= next)) {
                replay(log, &self.next_sink(), &stands, &comparison.since).await?;
                break;
            }
            ensure!(Instant::now() < deadline, "the live view of {} does not go on", self.projection.name());
            sleep(LOOK).await;
        }
        self.look_again(comparison).await
    }

    /// Compares what is in doubt, of two generations that are at one position.
    pub(super) async fn compare_rest(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let View::Redis(_) = self.projection.catalogued.view else {
            return Ok(());
        };
        self.look_again(comparison).await?;
        comparison.differences.extend(std::mem::take(&mut comparison.doubtful).into_values());
        Ok(())
    }

    async fn look_again(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut names = comparison.take_touched();
        // A difference that was written to since has to be looked at anew.
        let known = std::mem::take(&mut comparison.differences);
        let (again, certain) = known.into_iter().partition(|difference| names.contains(&difference.name));
        comparison.differences = certain;
        names.extend(Vec::into_iter(again).map(|difference| difference.name));
        let doubtful = std::mem::take(&mut comparison.doubtful).into_iter();
        let (_, untouched): (Vec<_>, Vec<_>) = doubtful.partition(|(name, _)| names.contains(name));
        comparison.differences.extend(untouched.into_iter().map(|(_, difference)| difference));
        let next: Lines = key_lines(&self.next, &names).await?;
        comparison.doubtful = by_name(compare(next, key_lines(&self.live, &names).await?));
        Ok(())
    }
}

fn by_name(differences: Vec<Difference>) -> BTreeMap<String, Difference> {
    differences.into_iter().map(|difference| (difference.name.clone(), difference)).collect()
}
