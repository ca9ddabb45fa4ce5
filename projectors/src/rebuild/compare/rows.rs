//! Compares a view in MySQL: both generations side by side, in the order of their primary keys.

use std::pin::pin;

use anyhow::Context;
use vidlog_projection_engine::{log::Log, replay::replay};

use super::{Comparison, Pair};
use crate::comparison::{Merge, open_snapshot, rows, snapshot_connection};

impl Pair {
    /// Compares all rows: the live ones as a snapshot shows them, and those of the next generation, which is brought to
    /// the position of the snapshot.
    pub(super) async fn compare_rows(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut live = snapshot_connection(&self.live.mysql).await?;
        let (offsets, mut snapshot) = open_snapshot(&mut live, &self.projection).await?;
        replay(log, &self.next_sink(), &offsets, &comparison.since).await?;
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
}
