//! Compares two generations of a view at one position, in bounded memory.
//!
//! Reads both in chunks and merges them in order. Memory holds some pages of each, the members that were
//! written to while a stretch was read, and the differing lines: the comparison stops at [`MAX_DIFFERENCES`] of them.

mod state;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use vidlog_projection_engine::{
    log::{Log, Offsets},
    replay::replay,
};
use vidlog_schemas::{keys::ViewKey, projections::View};

pub(super) use self::state::Comparison;
pub use self::state::MAX_DIFFERENCES;
use super::{
    pair::{CATCH_UP_THRESHOLD, Pair, lowest},
    progress::Progress,
};
use crate::comparison::{
    LineKey, Lines, Merge, PAGE, key_sizes, open_snapshot, read_keys, read_lines, rows, snapshot_connection,
};

/// Timeout for the live generation to align its shards to one position.
const ALIGN_TIMEOUT: Duration = Duration::from_mins(1);
/// Interval between two reads of the live position.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Number of lines that are read before the lines written to meanwhile are compared again. Bounds the touched
/// members in memory, and the records that are left to fold at the end.
const STRETCH: usize = 100_000;
/// Number of differing lines that are collected before they are confirmed.
const MAX_UNCONFIRMED: usize = 2000;
/// Bytes of lines per generation that are held in memory.
const MEMORY: usize = 32 << 20;

/// Names of keys, without the generation.
#[derive(Default)]
struct Names {
    live: BTreeSet<String>,
    next: BTreeSet<String>,
}

impl Pair {
    /// Compares the whole view.
    ///
    /// A snapshot in MySQL shows the live view at one position, to which the next one is folded. Redis has no
    /// such snapshot, so the live view moves while it is read. A line that no record changes meanwhile is
    /// compared at one position nevertheless; folding the records that arrived meanwhile determines which
    /// lines changed ([`Pair::compare_again`]).
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

    /// Compares all rows: those of a snapshot of the live generation with those of the next one, which is
    /// folded to the snapshot's position.
    async fn compare_rows(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut live = snapshot_connection(&self.live.mysql).await?;
        let (offsets, mut snapshot) = open_snapshot(&mut live, &self.projection).await?;
        replay(log, &self.next_store(), &offsets, &comparison.since).await?;
        let mut next = self.next.mysql.acquire().await.context("failed to reach MySQL")?;
        {
            let next = pin!(rows(&self.projection, &mut next));
            let live = pin!(rows(&self.projection, &mut snapshot));
            let mut merge = Merge::new(next, live);
            while !comparison.is_enough()
                && let Some((key, expected, found)) = merge.next().await?
            {
                comparison.count(usize::from(expected.is_some()));
                if expected != found {
                    comparison.add(key, expected, found);
                }
            }
        }
        snapshot.commit().await?;
        Ok(())
    }

    /// Compares all keys.
    ///
    /// The live generation changes meanwhile, so a line that differs is unconfirmed. A scan may miss lines
    /// that are added or removed during it. In either generation, the record that does so is beyond the
    /// position of the next generation at the start. The next generation folds every such record before this
    /// function returns, or right after it in [`Pair::compare_again`], and each line that such a record
    /// writes to is looked up again, whether it was found or not.
    async fn compare_keys(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let (mut next, mut live) = (Lines::new(MEMORY), Lines::new(MEMORY));
        let mut scan = self.live.redis.scan(&self.live.keys.pattern(), PAGE);
        let mut read = 0;
        while let Some(names) = scan.next().await? {
            let names = self.of_view(&names);
            read += read_keys(&self.next, names.next, &mut next).await?;
            read += read_keys(&self.live, names.live, &mut live).await?;
            if read >= STRETCH {
                read = 0;
                self.compare_again(log, comparison).await?;
            }
        }

        let (next, live) = (pin!(next.into_stream()), pin!(live.into_stream()));
        let mut merge = Merge::new(next, live);
        let (mut last, mut differing) = (None::<LineKey>, BTreeSet::new());
        while let Some((key, expected, found)) = merge.next().await? {
            if expected.is_some() && last.as_ref().is_none_or(|last| !last.is_of_same_name(&key)) {
                comparison.count(1);
                last = Some(key.clone());
            }
            if expected != found {
                differing.insert(key);
            }
            if differing.len() >= MAX_UNCONFIRMED {
                self.look_up(std::mem::take(&mut differing), comparison).await?;
                self.compare_again(log, comparison).await?;
                if comparison.is_enough() {
                    break;
                }
            }
        }
        self.look_up(differing, comparison).await
    }

    /// Selects the keys of the view's two generations.
    fn of_view(&self, names: &[String]) -> Names {
        let mut found = Names::default();
        let catalogued = &self.projection.catalogued;
        let (live, next) = (self.live.keys.generation(catalogued), self.next.keys.generation(catalogued));
        for key in names.iter().filter_map(|name| ViewKey::parse(name)) {
            if key.projection != *catalogued {
                continue;
            }
            if key.generation == live {
                found.live.insert(key.name);
            } else if key.generation == next {
                found.next.insert(key.name);
            }
        }
        found
    }

    /// Looks up some lines in both generations. Those that differ become unconfirmed.
    async fn look_up(&self, lines: BTreeSet<LineKey>, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut lines = lines.into_iter();
        loop {
            let page: BTreeSet<LineKey> = lines.by_ref().take(PAGE).collect();
            if page.is_empty() {
                return Ok(());
            }
            let mut expected = read_lines(&self.next, &page).await?;
            let mut found = read_lines(&self.live, &page).await?;
            for key in page {
                let (expected, found) = (expected.remove(&key), found.remove(&key));
                if expected != found {
                    comparison.unconfirmed.insert(key, (expected, found));
                }
            }
        }
    }

    /// Reads the sizes of the differing Redis keys.
    pub(super) async fn read_sizes(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let names = comparison.certain.keys().filter_map(LineKey::redis).map(|(name, _)| name.into_owned());
        let names: BTreeSet<String> = names.collect();
        let next = key_sizes(&self.next, names.clone()).await?;
        let live = key_sizes(&self.live, names.clone()).await?;
        let size = |of: &BTreeMap<String, usize>, name: &String| of.get(name).copied().unwrap_or(0);
        let sizes = |name: String| (name.clone(), (size(&next, &name), size(&live, &name)));
        comparison.sizes = names.into_iter().map(sizes).collect();
        Ok(())
    }

    /// Folds to the live generation's position and compares the lines again that this wrote to; only these
    /// are unconfirmed afterwards. An unconfirmed line that was not written to becomes a difference. Lines in
    /// MySQL are never unconfirmed.
    pub(super) async fn compare_again(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        // The highest position of the live generation at which a line can have been read.
        let read_at: Offsets =
            self.live_positions().await?.into_iter().map(|(at, position)| (at, position.highest())).collect();
        let deadline = Instant::now() + ALIGN_TIMEOUT;
        loop {
            let reached = lowest(&self.live_positions().await?);
            if reached.iter().all(|(partition, next)| read_at.get(partition).is_none_or(|at| at <= next)) {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "the shards of the live view of {} were not aligned within a minute; if its process was killed, start \
                 one, then run this again",
                self.projection.name()
            );
            sleep(POLL_INTERVAL).await;
        }
        // Comparing rows takes long; the records since then must not be left to the hold.
        loop {
            let until = lowest(&self.live_positions().await?);
            let left = self.left(&until).await?;
            replay(log, &self.next_store(), &until, &comparison.since).await?;
            if left < CATCH_UP_THRESHOLD {
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

    /// Compares the lines again that were written to. Other unconfirmed lines become differences.
    async fn confirm(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut touched = comparison.take_touched();
        if comparison.is_enough() {
            return Ok(());
        }
        // A differing line that was written to since may not differ any more.
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
