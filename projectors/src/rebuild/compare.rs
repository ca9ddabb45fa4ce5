//! Compares two generations of a view at one position, in bounded memory.
//!
//! Both are read in chunks and merged in order. Held in memory are some pages of each, the members that were written to
//! while a stretch was read, and the lines that differ: the comparison stops at [`ENOUGH`] of them.

mod keys;
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
use vidlog_projection_engine::{
    log::{Log, Offsets, Partition},
    replay::{Tally, replay},
    store::{Position, SharedStore, Stores},
    view::Projection,
};
use vidlog_schemas::{keys::ViewKey, projections::View};

use super::{NEARLY_THERE, Progress, TELL_EVERY};
use crate::comparison::{Difference, LineKey, combine};

/// Differing lines at which a comparison stops: enough to see what is wrong.
pub const ENOUGH: usize = 1000;
/// How long the live generation may take to align its parts to the furthest of them.
const ALIGN_TIMEOUT: Duration = Duration::from_mins(1);
/// Between two readings of its position.
const LOOK: Duration = Duration::from_millis(50);

/// The live and the next generation of a view.
pub(super) struct Pair {
    pub(super) projection: Projection,
    /// The partitions of its streams.
    pub(super) partitions: Vec<Partition>,
    pub(super) live: Stores,
    pub(super) next: Stores,
}

/// Lines that differ: what the next generation has, and what the live one has.
type Differing = BTreeMap<LineKey, (Option<String>, Option<String>)>;

/// The state of a comparison of two generations.
pub(super) struct Comparison {
    /// Keys or rows of the next generation that were compared.
    pub(super) lines: usize,
    /// Lines that differ at one position.
    certain: Differing,
    /// Lines that differed while the live generation moved, which may be the only reason.
    unconfirmed: Differing,
    /// The sizes of Redis keys that differ, in the next and in the live generation.
    sizes: BTreeMap<String, (usize, usize)>,
    /// What was folded since the comparison began, with the members that it wrote to.
    pub(super) since: Arc<Tally>,
    progress: watch::Sender<Progress>,
    published: Instant,
}

impl Comparison {
    fn new(progress: &watch::Sender<Progress>) -> Self {
        Self {
            lines: 0,
            certain: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            sizes: BTreeMap::new(),
            since: Arc::new(Tally { touched: Some(Mutex::default()), ..Tally::default() }),
            progress: progress.clone(),
            published: Instant::now(),
        }
    }

    /// Whether the generations differ.
    pub(super) fn has_differences(&self) -> bool {
        !self.certain.is_empty()
    }

    /// Whether the whole view was compared.
    pub(super) fn is_complete(&self) -> bool {
        !self.is_enough()
    }

    /// The differences, those of one Redis key combined.
    pub(super) fn differences(&self) -> Vec<Difference> {
        combine(&self.certain, &self.sizes)
    }

    /// Whether enough lines differ. It stays so, as the rest of the view is not compared then.
    fn is_enough(&self) -> bool {
        self.certain.len() >= ENOUGH
    }

    /// Counts keys or rows that were compared.
    fn count(&mut self, lines: usize) {
        self.lines += lines;
        if self.published.elapsed() >= TELL_EVERY {
            self.published = Instant::now();
            self.progress.send_replace(Progress::Comparing { lines: self.lines });
        }
    }

    fn add(&mut self, key: LineKey, expected: Option<String>, found: Option<String>) {
        if !self.is_enough() {
            self.certain.insert(key, (expected, found));
        }
    }

    /// The lines that were written to since the last call.
    fn take_touched(&self) -> BTreeSet<LineKey> {
        let touched = self
            .since
            .touched
            .as_ref()
            .map(|touched| std::mem::take(&mut *touched.lock().unwrap_or_else(PoisonError::into_inner)));
        let members = touched.unwrap_or_default();
        let line = |(key, member): (vidlog_schemas::keys::Key, String)| {
            Some(LineKey::member(&ViewKey::read(&key.name)?.name, member))
        };
        members.into_iter().filter_map(line).collect()
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

    /// Compares the whole view.
    ///
    /// MySQL shows the live view at one position, to which the next one is brought. Redis does not: there the live view
    /// moves while it is read. A line that nothing writes to meanwhile is compared at one position all the same; which
    /// lines were written to is determined by folding what arrived meanwhile ([`Pair::compare_again`]).
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

    /// Folds what the live generation has by now, and compares again the lines that this wrote to: only they are
    /// unconfirmed afterwards. A line that was unconfirmed before and was not written to is a difference. Lines of MySQL
    /// are never unconfirmed.
    pub(super) async fn compare_again(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        // The furthest position of the live generation at which a line can have been read.
        let read_at: Offsets =
            self.live_positions().await?.into_iter().map(|(at, position)| (at, position.highest())).collect();
        let deadline = Instant::now() + ALIGN_TIMEOUT;
        loop {
            let reached = super::lowest(&self.live_positions().await?);
            if reached.iter().all(|(partition, next)| read_at.get(partition).is_none_or(|at| at <= next)) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the shards of the live view of {} were not aligned within a minute; if its process was killed, start \
                 one, then run this again",
                self.projection.name()
            );
            sleep(LOOK).await;
        }
        // Comparing rows takes long, and the records since then must not be left to the hold.
        loop {
            let until = super::lowest(&self.live_positions().await?);
            let left = self.left(&until).await?;
            replay(log, &self.next_sink(), &until, &comparison.since).await?;
            if left < NEARLY_THERE {
                break;
            }
        }
        self.confirm(comparison).await
    }

    /// Compares the unconfirmed lines of two generations that are at one position.
    pub(super) async fn compare_rest(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        self.confirm(comparison).await?;
        for (key, (expected, found)) in std::mem::take(&mut comparison.unconfirmed) {
            comparison.add(key, expected, found);
        }
        Ok(())
    }

    /// Compares again the lines that were written to. Other unconfirmed lines become differences.
    async fn confirm(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut touched = comparison.take_touched();
        if comparison.is_enough() {
            return Ok(());
        }
        // A difference that was written to since is not certain any more.
        let again: Vec<_> =
            touched.iter().filter(|key| comparison.certain.contains_key(key)).cloned().collect();
        for key in again {
            comparison.certain.remove(&key);
        }
        for (key, (expected, found)) in std::mem::take(&mut comparison.unconfirmed) {
            if !touched.contains(&key) {
                comparison.add(key, expected, found);
            }
        }
        self.look_up(std::mem::take(&mut touched), comparison).await
    }
}
