//! A view in Redis: page after page of its keys, of both generations, while the live one goes on.

use std::collections::BTreeSet;

use redis::{cmd, from_redis_value};
use vidlog_schemas::keys::ViewKey;

use super::{Comparison, Pair};
use crate::audit::{Difference, Lines, compare, key_lines};
use vidlog_projection_engine::log::Log;

/// Keys looked for in one round trip.
const PAGE: usize = 1000;
/// Keys that are compared before the doubts about them are settled. What bounds the keys that are written to meanwhile,
/// which are held in memory, and the records that are left to fold at the end.
const STRETCH: usize = 100_000;
/// Keys that are found to differ before the doubts about them are settled. Not what is in doubt in all: of a busy view
/// some always is.
const DOUBTS: usize = 2000;

/// The names of some keys, without the generation.
#[derive(Default)]
struct Found {
    live: BTreeSet<String>,
    next: BTreeSet<String>,
}

impl Pair {
    /// Compares all keys.
    ///
    /// One walk finds the keys of both generations. Under the name of a live key both are read and compared; of a name
    /// in the next generation it is enough to see that the live one has that key too, because then the walk finds it
    /// there. What differs is in doubt, as the live generation goes on.
    ///
    /// The walk may miss keys that come or go while it goes on. In either generation that is by a record beyond the place
    /// at which the next one stood when the walk began. The next one folds every such record before this ends or, those of
    /// the live one's last moments, right after ([`Pair::compare_again`]), and each key that it writes to is looked at
    /// again, found or not.
    pub(super) async fn compare_keys(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut scan = self.live.redis.scan(&self.live.keys.pattern(), PAGE);
        let (mut compared, mut doubts) = (0, 0);
        while let Some(names) = scan.next().await? {
            let found = self.of_view(&names);
            comparison.count(found.next.len());
            compared += found.live.len() + found.next.len();
            for difference in self.differing(found).await? {
                doubts += 1;
                comparison.doubt(difference);
            }
            if compared >= STRETCH || doubts >= DOUBTS {
                (compared, doubts) = (0, 0);
                self.compare_again(log, comparison).await?;
                if comparison.is_enough() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Those of some keys that are of the view's two generations.
    fn of_view(&self, names: &[String]) -> Found {
        let mut found = Found::default();
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

    async fn differing(&self, found: Found) -> anyhow::Result<Vec<Difference>> {
        let Found { live, next } = found;
        let mut differing = self.compare_page(&live).await?;
        let others: Vec<String> = next.difference(&live).cloned().collect();
        let lacking = self.lacking_in_live(others).await?;
        differing.extend(compare(key_lines(&self.next, &lacking).await?, Lines::new()));
        Ok(differing)
    }

    /// Compares some keys, all at once.
    async fn compare_page(&self, names: &BTreeSet<String>) -> anyhow::Result<Vec<Difference>> {
        let next = key_lines(&self.next, names).await?;
        Ok(compare(next, key_lines(&self.live, names).await?))
    }

    async fn lacking_in_live(&self, names: Vec<String>) -> anyhow::Result<BTreeSet<String>> {
        let asked: Vec<_> = names
            .iter()
            .map(|name| cmd("EXISTS").arg(self.live.keys.in_own_generation(name)).take())
            .collect();
        let answers = self.live.redis.all(&asked).await?;
        let mut lacking = BTreeSet::new();
        for (name, answer) in names.into_iter().zip(answers) {
            if !from_redis_value::<bool>(answer)? {
                lacking.insert(name);
            }
        }
        Ok(lacking)
    }

    /// Compares some keys again. What differs is in doubt.
    pub(super) async fn doubt_again(
        &self,
        names: BTreeSet<String>,
        comparison: &mut Comparison,
    ) -> anyhow::Result<()> {
        let mut names = names.into_iter();
        loop {
            let page: BTreeSet<String> = names.by_ref().take(PAGE).collect();
            if page.is_empty() {
                return Ok(());
            }
            for difference in self.compare_page(&page).await? {
                comparison.doubt(difference);
            }
        }
    }
}
