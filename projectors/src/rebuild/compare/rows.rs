//! A view in MySQL: both generations side by side, in the order of their primary keys.

use std::ops::ControlFlow;

use anyhow::Context;

use super::{Comparison, Pair, merge::merge};
use crate::audit::{Difference, Table, open_snapshot};
use vidlog_projection_engine::{log::Log, replay::replay};

impl Pair {
    /// Compares all rows: the live ones as a snapshot shows them, at the position that it has, and those of the next
    /// generation, which is brought there and then stands still.
    pub(super) async fn compare_rows(&self, log: &Log, comparison: &mut Comparison) -> anyhow::Result<()> {
        let mut live = self.live.mysql.acquire().await.context("failed to reach MySQL")?.detach();
        // What came since has to be folded before the snapshot is read, which may take longer than others may be silent.
        sqlx::query("SET SESSION wait_timeout = DEFAULT").execute(&mut live).await?;
        let (places, mut snapshot) = open_snapshot(&mut live, &self.projection).await?;
        replay(log, &self.next_sink(), &places, &comparison.since).await?;
        let mut next = self.next.mysql.acquire().await.context("failed to reach MySQL")?;
        for table in Table::of(&self.projection) {
            let each = |key: Vec<i64>, expected: Option<String>, found: Option<String>| {
                comparison.count(expected.iter().len());
                if expected != found {
                    comparison.add(Difference { name: table.line(&key), expected, found });
                }
                if comparison.is_enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            merge(table.rows(&mut next), table.rows(&mut snapshot), each).await?;
            if comparison.is_enough() {
                break;
            }
        }
        snapshot.commit().await?;
        Ok(())
    }
}
