//! Brings the lines of a view in Redis and the fold of the log to one position, in rounds, while the view is
//! written to.
//!
//! Redis has no snapshot of many keys. But a line that no record changes is the same at every position, and
//! the log determines which lines may have changed (`touched`). So each round continues the fold to the
//! view's position and reads only those lines again. A round that starts and ends with all parts of the view
//! at the same position completes the snapshot. A view that does not stop by itself is held briefly.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use tokio::time::sleep;
use vidlog_projection_engine::{
    desired_state::{
        self, RunState,
        hold::{BETWEEN_HOLDS, CHECK_INTERVAL, HOLDS, Hold},
        view_lock::ViewLock,
    },
    log::Log,
};

use super::{
    excluded::Excluded,
    fold::{Folding, fold_on},
    snapshot::ViewSnapshot,
    view::View,
};
use crate::comparison::{LineKey, Lines, PAGE, read_lines};

/// Number of rounds without a hold: the view may stop by itself, or the number of touched lines may shrink.
const ROUNDS: u32 = 5;
/// Interval between two rounds: an idle partition aligns its shards within half a second.
const PAUSE: Duration = Duration::from_millis(300);

/// A view in Redis that is read while it is written to.
///
/// Each line that was read has its content at the fold's position, or at a later one. In the latter case the
/// fold still has to pass the record that changed it, and the line is read again.
pub(super) struct Rounds {
    view: View,
    folding: Folding,
    found: Lines,
    /// The view's lock, during a hold.
    lock: Option<ViewLock>,
}

/// The result of a round.
enum Round {
    /// The fold and all lines are at one position.
    AtRest { is_unconfirmed: bool },
    /// The view moved meanwhile, or its parts are at different positions.
    Moving {
        /// Number of lines that were read again.
        touched: usize,
    },
}

impl Rounds {
    /// Starts from lines that were read when the view was at the fold's position or later.
    pub(super) fn new(view: View, mut folding: Folding, found: Lines) -> Self {
        // Starts the collection of touched lines.
        folding.take_touched();
        Self { view, folding, found, lock: None }
    }

    /// Runs rounds until the fold and all lines are at one position.
    pub(super) async fn converge(mut self, log: &Log) -> anyhow::Result<ViewSnapshot> {
        let mut before = usize::MAX;
        for number in 0..ROUNDS {
            if number > 0 {
                sleep(PAUSE).await;
            }
            let round;
            (self, round) = self.round(log).await?;
            match round {
                Round::AtRest { is_unconfirmed } => return Ok(self.snapshot(is_unconfirmed)),
                // Further rounds would not leave fewer lines to a hold.
                Round::Moving { touched } if touched > 0 && touched >= before => break,
                Round::Moving { touched } => before = touched,
            }
        }
        self.converge_in_holds(log).await
    }

    async fn converge_in_holds(mut self, log: &Log) -> anyhow::Result<ViewSnapshot> {
        let (pool, projection) = (self.view.store.stores().mysql.clone(), self.view.projection());
        let mut is_free = true;
        for number in 0..HOLDS {
            if number > 0 {
                sleep(BETWEEN_HOLDS).await;
            }
            let round;
            (self, round) = if self.is_to_run().await? {
                let lock = ViewLock::try_take(&pool, projection).await?;
                is_free = lock.is_some();
                match lock {
                    Some(lock) => self.held(log, lock).await?,
                    None => self.round(log).await?,
                }
            } else {
                self.round(log).await?
            };
            if let Round::AtRest { is_unconfirmed } = round {
                return Ok(self.snapshot(is_unconfirmed));
            }
        }
        let name = projection.name();
        if !is_free {
            bail!(
                "{name} did not converge and can't be held: another process rebuilds it, or retries its dead letters; run it \
                 again after that"
            );
        }
        bail!(
            "{name} did not converge to one position, even while held; if its process was killed, start one, then run it \
             again"
        )
    }

    /// Returns whether the projection's desired state is to run. A paused or stopped projection is not held.
    async fn is_to_run(&self) -> anyhow::Result<bool> {
        let all = desired_state::read(&self.view.store.stores().mysql).await;
        let mut all = all.context("failed to read the desired state from MySQL")?;
        let run_state = all.remove(self.view.projection().name()).unwrap_or_default().run_state;
        Ok(matches!(run_state, RunState::Run | RunState::Hold))
    }

    /// Runs some rounds during a hold of the projection. Ends the hold also after an error.
    async fn held(mut self, log: &Log, lock: ViewLock) -> anyhow::Result<(Self, Round)> {
        // The lock excludes discards, so they are not read again during the hold.
        self.folding.excluded = self.view.excluded(&self.folding).await?;
        self.lock = Some(lock);
        let mut round;
        (self, round) = self.round(log).await?;
        if let Round::Moving { .. } = round {
            let pool = self.view.store.stores().mysql.clone();
            let hold = Hold::begin(&pool, self.view.projection()).await?;
            let ended = self.rounds_in(log, &hold).await;
            hold.end().await;
            (self, round) = ended?;
        }
        if let Some(lock) = self.lock.take() {
            lock.ensure_held().await?;
        }
        Ok((self, round))
    }

    async fn rounds_in(mut self, log: &Log, hold: &Hold<'_>) -> anyhow::Result<(Self, Round)> {
        loop {
            let round;
            (self, round) = self.round(log).await?;
            if matches!(round, Round::AtRest { .. }) || hold.is_over() {
                return Ok((self, round));
            }
            sleep(CHECK_INTERVAL).await;
        }
    }

    /// Continues the fold to the view's position, and reads the touched lines again.
    async fn round(mut self, log: &Log) -> anyhow::Result<(Self, Round)> {
        let before = self.view.positions().await?;
        let until = self.view.lowest(&before);
        // In this order, so that every key that is parked before the position is excluded.
        self.folding.excluded = self.excluded().await?;
        let mut folded = fold_on(log, vec![(self.folding, until)]).await?;
        self.folding = folded.pop().context("a fold was lost")?;
        let touched = self.read_touched().await?;

        // Parts are at different positions: a shard without writes is behind until it is aligned, or a crash
        // left it behind.
        let is_aligned = before.iter().all(|position| position.lowest() == position.highest());
        if !is_aligned || self.view.positions().await? != before {
            return Ok((self, Round::Moving { touched }));
        }
        // In this order: a process that folds parked records unparks them before it releases the lock.
        let is_locked = self.lock.is_none() && self.view.is_locked().await?;
        self.folding.excluded = self.excluded().await?;
        let is_unconfirmed = is_locked && self.folding.excluded.has_parked();
        Ok((self, Round::AtRest { is_unconfirmed }))
    }

    /// Reads the lines again that the fold touched. Returns their number.
    async fn read_touched(&mut self) -> anyhow::Result<usize> {
        let mut touched = std::pin::pin!(self.folding.take_touched().into_stream().try_chunks(PAGE));
        let mut count = 0;
        while let Some(page) = touched.next().await {
            let page: BTreeSet<LineKey> =
                page.map_err(|error| error.1)?.into_iter().map(|(key, _)| key).collect();
            let found = read_lines(self.view.store.stores(), &page).await?;
            count += page.len();
            for key in &page {
                match found.get(key) {
                    Some(content) => self.found.set(key, content),
                    None => self.found.remove(key),
                }
            }
            self.found.spill_if_full_on_blocking_thread().await?;
        }
        Ok(count)
    }

    /// Returns the records that the view does not have at its current position.
    async fn excluded(&self) -> anyhow::Result<Excluded> {
        if self.lock.is_none() {
            return self.view.excluded(&self.folding).await;
        }
        let excluded = self.folding.excluded.with_parked(&self.view.store).await?;
        self.view.ensure_still_parked(&self.folding.excluded, &excluded, &self.folding.at)?;
        Ok(excluded)
    }

    fn snapshot(self, is_unconfirmed: bool) -> ViewSnapshot {
        ViewSnapshot { folding: self.folding, found: self.found, is_unconfirmed }
    }
}
