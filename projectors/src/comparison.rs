//! Compares two views of a projection line by line, in bounded memory.
//!
//! A line is a member of a Redis key or a row of a MySQL table, with its content. Redis sets, sorted sets and
//! hashes are read in chunks, so the size of a key affects neither memory nor the duration of a command.
//! Lines that arrive unordered are sorted in temporary files ([`Lines`]); two ordered sides are then merged.

mod difference;
mod keys;
mod line;
mod lines;
mod merge;
mod sorter;
mod tables;

use std::pin::pin;

use futures::Stream;

pub use self::{
    difference::Difference,
    line::{Line, LineKey, digest},
    lines::{Lines, SortedLines},
};
pub(crate) use self::{
    difference::{Compared, DifferenceCollector, combine},
    keys::{PAGE, key_sizes, read_keys, read_lines, read_views},
    lines::stream_from,
    merge::Merge,
    sorter::Sorter,
    tables::{open_snapshot, rows, snapshot_connection},
};

/// Compares two ordered views.
pub(crate) async fn compare(
    expected: impl Stream<Item = anyhow::Result<Line>>,
    found: impl Stream<Item = anyhow::Result<Line>>,
) -> anyhow::Result<Compared> {
    let mut collector = DifferenceCollector::default();
    let (expected, found) = (pin!(expected), pin!(found));
    let mut merge = Merge::new(expected, found);
    while let Some(pair) = merge.next().await? {
        collector.add(pair);
    }
    Ok(collector.finish())
}
