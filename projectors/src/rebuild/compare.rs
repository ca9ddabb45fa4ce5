//! Compares two generations of a view at one position.
//!
//! What is held in memory is a page of each, the keys that were written to while a stretch was compared, and what differs:
//! the comparison ends with [`ENOUGH`] differences.

mod difference;
mod keys;
mod merge;
mod rows;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use vidlog_schemas::{keys::ViewKey, projections::View};

use self::difference::shortened;
use super::{NEARLY_THERE, Progress, TELL_EVERY};
use crate::audit::Difference;
use vidlog_projection_engine::{
    log::{Log, Offsets, Partition},
    replay::{Tally, replay},
    store::{Position, SharedStore, Stores},
    view::Projection,
};

/// Differences with which a comparison ends: the two are not equal, and whoever looks into it has enough to look at.
pub const ENOUGH: usize = 1000;
/// How long the live generation may take to bring all its parts to where its furthest is.
const SETTLES_IN: Duration = Duration::from_mins(1);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// The live and the next generation of a view.
pub(super) struct Pair {
    pub(super) projection: Projection,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
    pub(super) live: Stores,
    pub(super) next: Stores,
}

/// What is known of the differences between two generations.
pub(super) struct Comparison {
    /// Keys or rows of the next generation that were compared. A key that Redis names twice, which it may do when many
    /// come or go meanwhile, is counted twice.
    pub(super) lines: usize,
    /// What differs at one position.
    pub(super) differences: Vec<Difference>,
    /// Keys that differed while the live generation went on, which may be all that it was.
    doubtful: BTreeMap<String, Difference>,
    /// What was folded since, with the keys that it wrote to.
    pub(super) since: Arc<Tally>,
    progress: watch::Sender<Progress>,
    told: Instant,
}

impl Comparison {
    fn new(progress: &watch::Sender<Progress>) -> Self {
        Self {
            lines: 0,
            differences: Vec::new(),
            doubtful: BTreeMap::new(),
            since: Arc::new(Tally { touched: Some(Mutex::default()), ..Tally::default() }),
            progress: progress.clone(),
            told: Instant::now(),
        }
    }

    /// Whether so much differs that it is of no use to compare on. This stays so: what was compared by then is not all.
    const fn is_enough(&self) -> bool {
        self.differences.len() >= ENOUGH
    }

    /// Counts lines that are being compared.
    fn count(&mut self, lines: usize) {
        self.lines += lines;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.progress.send_replace(Progress::Comparing { lines: self.lines });
        }
    }

    fn add(&mut self, difference: Difference) {
        if !self.is_enough() {
            self.differences.push(shortened(difference));
        }
    }

    fn doubt(&mut self, difference: Difference) {
        self.doubtful.insert(difference.name.clone(), shortened(difference));
    }

    /// The keys that were written to since this was asked last.
    fn take_touched(&self) -> BTreeSet<String> {
        let touched = self
            .since
            .touched
            .as_ref()
            .map(|touched| std::mem::take(&mut *touched.lock().unwrap_or_else(PoisonError::into_inner)));
        let names = touched.unwrap_or_default();
        names.iter().filter_map(|(key, _)| ViewKey::read(&key.name)).map(|key| key.name).collect()
    }
}

impl Pair {
    pub(super) fn next_sink(&self) -> SharedStore {
        self.next.view(self.projection)
    }

    /// Where the live generation stands in every partition.
    pub(super) async fn live_positions(&self) -> anyhow::Result<BTreeMap<Partition, Position>> {
        let sink = self.live.view(self.projection);
        let positions =
            sink.positions(&self.partitions).await.context("the store does not say where it stands")?;
        Ok(self.partitions.iter().copied().zip(positions).collect())
    }

    /// How many records are left to some places.
    pub(super) async fn left(&self, until: &Offsets) -> anyhow::Result<i64> {
        let partitions: Vec<Partition> = until.keys().copied().collect();
        let positions = self.next_sink().positions(&partitions).await?;
        Ok(positions.iter().zip(until.values()).map(|(at, end)| (end - at.lowest()).max(0)).sum())
    }

    /// Tells readers how far the next generation is, before it is theirs. Those of a view in MySQL do not tell generations
    /// apart, and the two are at one position.
    pub(super) async fn publish_progress(&self, places: &Offsets) -> anyhow::Result<()> {
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
    pub(super) async fn compare_all(
        &self,
        log: &Log,
        progress: &watch::Sender<Progress>,
    ) -> anyhow::Result<Comparison> {
        let mut comparison = Comparison::new(progress);
        match self.projection.catalogued.view {
            View::MySql(_) => self.compare_rows(log, &mut comparison).await?,
            View::Redis(_) => self.compare_keys(log, &mut comparison).await?,
        }
        Ok(comparison)
    }

    /// Folds what the live generation has by now, and looks again at what it has written to since the last look: that
    /// alone is in doubt after it. What was in doubt before and was not written to is a difference. Of a view in MySQL
    /// nothing is in doubt.
    pub(super) async fn compare_again(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        // All that the last look can have seen of the live generation.
        let seen: Offsets =
            self.live_positions().await?.into_iter().map(|(at, position)| (at, position.highest())).collect();
        let deadline = Instant::now() + SETTLES_IN;
        loop {
            let stands = super::lowest(&self.live_positions().await?);
            if stands.iter().all(|(partition, next)| seen.get(partition).is_none_or(|seen| seen <= next)) {
                break;
            }
            ensure!(Instant::now() < deadline, "the live view of {} does not go on", self.projection.name());
            sleep(LOOK).await;
        }
        // A comparison of all rows takes its time, and what came meanwhile must not be left to the moment of the switch.
        loop {
            let stands = super::lowest(&self.live_positions().await?);
            let left = self.left(&stands).await?;
            replay(log, &self.next_sink(), &stands, &comparison.since).await?;
            if left < NEARLY_THERE {
                break;
            }
        }
        self.look_again(comparison).await
    }

    /// Compares what is in doubt, of two generations that are at one position.
    pub(super) async fn compare_rest(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        self.look_again(comparison).await?;
        for difference in std::mem::take(&mut comparison.doubtful).into_values() {
            comparison.add(difference);
        }
        Ok(())
    }

    async fn look_again(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut names = comparison.take_touched();
        if comparison.is_enough() {
            return Ok(());
        }
        // A difference that was written to since has to be looked at anew.
        let known = std::mem::take(&mut comparison.differences);
        let (again, certain) = known.into_iter().partition(|difference| names.contains(&difference.name));
        comparison.differences = certain;
        names.extend(Vec::into_iter(again).map(|difference| difference.name));
        for (name, difference) in std::mem::take(&mut comparison.doubtful) {
            if !names.contains(&name) {
                comparison.add(difference);
            }
        }
        self.doubt_again(names, comparison).await
    }
}
