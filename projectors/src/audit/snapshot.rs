//! A view at one position, compared with the fold of the log to the same position.

use anyhow::Context;
use futures::Stream;
use sqlx::Connection;
use vidlog_projection_engine::log::{Log, Offsets};

use super::{
    fold::{Folding, fold_on},
    view::View,
};
use crate::comparison::{
    Compared, Line, Lines, compare, open_snapshot, rows, snapshot_connection, stream_from,
};

/// Bytes of expected lines that are held in memory.
const EXPECTED_MEMORY: usize = 32 << 20;

/// A view in Redis at one position, and the fold of the log to that position.
pub(super) struct ViewSnapshot {
    pub(super) folding: Folding,
    pub(super) found: Lines,
    /// Whether parked records may have been folded meanwhile, which changes the view at the same position.
    pub(super) is_unconfirmed: bool,
}

/// A compared view.
pub(super) struct ComparedView {
    pub(super) compared: Compared,
    /// The position.
    pub(super) offsets: Offsets,
    pub(super) is_unconfirmed: bool,
}

impl ViewSnapshot {
    /// Compares the view with the fold.
    pub(super) async fn compare(self) -> anyhow::Result<ComparedView> {
        let (offsets, is_unconfirmed) = (self.folding.at.clone(), self.is_unconfirmed);
        let compared = compare(expected(self.folding), self.found.into_stream()).await?;
        Ok(ComparedView { compared, offsets, is_unconfirmed })
    }
}

/// Compares a view in MySQL: a transaction shows its rows and its position at the same point in time.
pub(super) async fn compare_tables(
    view: &View,
    log: &Log,
    mut folding: Folding,
) -> anyhow::Result<ComparedView> {
    let before = view.excluded(&folding).await?;
    let mut connection = snapshot_connection(&view.store.stores().mysql).await?;
    let (stored, mut snapshot) = open_snapshot(&mut connection, &view.projection()).await?;
    // In this order: a process that folds parked records unparks them before it releases the lock.
    let is_locked = view.is_locked().await?;
    folding.excluded = view.excluded(&folding).await?;
    let offset = |partition| (partition, stored.get(&partition).copied().unwrap_or(0));
    let until: Offsets = view.partitions.iter().copied().map(offset).collect();
    view.ensure_still_parked(&before, &folding.excluded, &until)?;
    let is_unconfirmed = is_locked && folding.excluded.has_parked();

    let folding = fold_on(log, vec![(folding, until)]).await?.pop().context("a fold was lost")?;
    let offsets = folding.at.clone();
    let compared = compare(expected(folding), rows(&view.projection(), &mut snapshot)).await?;
    snapshot.commit().await?;
    connection.close().await?;
    Ok(ComparedView { compared, offsets, is_unconfirmed })
}

fn expected(folding: Folding) -> impl Stream<Item = anyhow::Result<Line>> + Send {
    stream_from(move || folding.into_lines(EXPECTED_MEMORY)?.sorted())
}
