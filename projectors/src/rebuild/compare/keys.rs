//! Compares a view in Redis: reads the lines of both generations while the live one is written to, then merges them.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};

use vidlog_projection_engine::log::Log;
use vidlog_schemas::keys::ViewKey;

use super::{Comparison, Pair};
use crate::comparison::{LineKey, Lines, Merge, PAGE, key_sizes, read_keys, read_lines};

/// Lines that are read before what was written to meanwhile is compared again. Bounds the touched members, which are held
/// in memory, and the records that are left to fold at the end.
const STRETCH: usize = 100_000;
/// Lines that differ before they are confirmed.
const MAX_UNCONFIRMED: usize = 2000;
/// Bytes of the lines of each generation that are held in memory.
const MEMORY: usize = 32 << 20;

/// Names of keys, without the generation.
#[derive(Default)]
struct Names {
    live: BTreeSet<String>,
    next: BTreeSet<String>,
}

impl Pair {
    /// Compares all keys.
    ///
    /// The live generation is written to meanwhile, so a line that differs is unconfirmed. A scan may miss lines that come
    /// or go during it. In either generation they do so by a record beyond the position of the next generation at the
    /// start. The next one folds every such record before this ends or, those of the live one's last moments, right after
    /// ([`Pair::compare_again`]), and each line that it writes to is looked up again, whether it was found or not.
    pub(super) async fn compare_keys(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
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

    /// The keys that are of the view's two generations.
    fn of_view(&self, names: &[String]) -> Names {
        let mut found = Names::default();
        let catalogued = &self.projection.catalogued;
        let (live, next) = (self.live.keys.generation(catalogued), self.next.keys.generation(catalogued));
        for key in names.iter().filter_map(|name| ViewKey::read(name)) {
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

    /// Compares some lines by looking them up in both generations. Those that differ are unconfirmed.
    pub(super) async fn look_up(
        &self,
        lines: BTreeSet<LineKey>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<()> {
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

    /// Reads the sizes of the Redis keys that differ.
    pub(in crate::rebuild) async fn read_sizes(&self, comparison: &mut Comparison) -> anyhow::Result<()> {
        let names = comparison.certain.keys().filter_map(LineKey::redis).map(|(name, _)| name.into_owned());
        let names: BTreeSet<String> = names.collect();
        let next = key_sizes(&self.next, names.clone()).await?;
        let live = key_sizes(&self.live, names.clone()).await?;
        let size = |of: &BTreeMap<String, usize>, name: &String| of.get(name).copied().unwrap_or(0);
        let sizes = |name: String| (name.clone(), (size(&next, &name), size(&live, &name)));
        comparison.sizes = names.into_iter().map(sizes).collect();
        Ok(())
    }
}
