//! A view in Redis at one position, though it goes on: read as it is found, and then, again and again, what may have been
//! written to since.
//!
//! Redis shows no moment of a whole view. But a key that nothing wrote to is the same at every position, and the log says
//! which keys may have been written to (`touched`). So each round folds the log on to where the view stands, and reads these
//! alone. Once a round begins and ends with the view at rest at one position, all that is known of it is of that position. If
//! it does not come to rest by itself, it is held for a moment.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, bail};
use tokio::time::sleep;

use super::{
    Lines,
    excluded::Excluded,
    live::key_lines,
    log::{Folding, fold_on},
    moment::{Moment, View},
};
use vidlog_projection_engine::{
    desired_state::{
        self, Wish,
        hold::{BETWEEN_HOLDS, HOLDS, Hold, LOOK},
        view_lock::ViewLock,
    },
    log::Log,
};

/// Rounds in which the view may come to rest by itself, or in which what is left for a hold gets less.
const ROUNDS: u32 = 5;
/// Between two of them: an idle partition settles within half a second.
const PAUSE: Duration = Duration::from_millis(300);

/// What is known of a view in Redis.
///
/// What was found of a key is what it has at the folding's place, or was read at a later one: then the folding comes by what
/// was written to it, and it is read again.
pub(super) struct Known {
    view: View,
    folding: Folding,
    found: Lines,
    /// The view's lock, while it is held.
    lock: Option<ViewLock>,
}

/// What came of a round.
enum Round {
    /// All is known of one position.
    AtRest { is_in_doubt: bool },
    /// The view went on, or its parts are at different places.
    Restless {
        /// How many keys were read again.
        touched: usize,
    },
}

impl Known {
    /// What was found of a view that stood at the folding's place, or beyond.
    pub(super) fn new(view: View, mut folding: Folding, found: Lines) -> Self {
        folding.touched = Some(BTreeSet::new());
        Self { view, folding, found, lock: None }
    }

    /// Finds a moment in which all is known.
    pub(super) async fn come_to_rest(mut self, log: &Log) -> anyhow::Result<Moment> {
        let mut before = usize::MAX;
        for number in 0..ROUNDS {
            if number > 0 {
                sleep(PAUSE).await;
            }
            let round;
            (self, round) = self.round(log).await?;
            match round {
                Round::AtRest { is_in_doubt } => return Ok(self.moment(is_in_doubt)),
                // It does not get less.
                Round::Restless { touched } if touched > 0 && touched >= before => break,
                Round::Restless { touched } => before = touched,
            }
        }
        self.come_to_rest_in_holds(log).await
    }

    async fn come_to_rest_in_holds(mut self, log: &Log) -> anyhow::Result<Moment> {
        let (pool, projection) = (self.view.sink.stores().mysql.clone(), self.view.projection());
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
            if let Round::AtRest { is_in_doubt } = round {
                return Ok(self.moment(is_in_doubt));
            }
        }
        let name = projection.name();
        if !is_free {
            bail!(
                "{name} goes on, and can't be held for a moment, as it is being rebuilt, or its dead letters retried, \
                 by another process; run this again after that"
            );
        }
        bail!(
            "{name} did not come to rest, so that there is no one position to compare at; if its process was killed, \
             start one, then run this again"
        )
    }

    /// Whether it goes on unless it is held. One that is paused, or has stopped, is left alone.
    async fn is_to_run(&self) -> anyhow::Result<bool> {
        let all = desired_state::read(&self.view.sink.stores().mysql).await;
        let mut all = all.context("MySQL does not say whether the projection is to run")?;
        let wish = all.remove(self.view.projection().name()).unwrap_or_default().wish;
        Ok(matches!(wish, Wish::Run | Wish::Hold))
    }

    /// Holds the projection while rounds are made, and lets go of it whatever happens.
    async fn held(mut self, log: &Log, lock: ViewLock) -> anyhow::Result<(Self, Round)> {
        // Nobody else discards anything while the lock is ours, so that it need not be asked for in the hold.
        self.folding.excluded = self.view.excluded(&self.folding).await?;
        self.lock = Some(lock);
        let mut round;
        (self, round) = self.round(log).await?;
        if let Round::Restless { .. } = round {
            let pool = self.view.sink.stores().mysql.clone();
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
            sleep(LOOK).await;
        }
    }

    /// Folds on to where the view stands, and reads again what may have been written to since.
    async fn round(mut self, log: &Log) -> anyhow::Result<(Self, Round)> {
        let before = self.view.positions().await?;
        let until = self.view.lowest(&before);
        // In this order: what is parked before that position is known, and is not in what is read.
        self.folding.excluded = self.excluded().await?;
        let mut folded = fold_on(log, vec![(self.folding, until)]).await?;
        self.folding = folded.pop().context("a folding was lost")?;
        let touched = self.folding.touched.replace(BTreeSet::new()).unwrap_or_default();
        let again = key_lines(self.view.sink.stores(), &touched).await?;
        for name in &touched {
            self.found.remove(name);
        }
        self.found.extend(again);

        // A shard that is behind has all that is its own up to the others, or a crash left it behind: who knows.
        let is_settled = before.iter().all(|position| position.lowest() == position.highest());
        if !is_settled || self.view.positions().await? != before {
            return Ok((self, Round::Restless { touched: touched.len() }));
        }
        // In this order: who has folded by then what waited has said so.
        let is_locked = self.lock.is_none() && self.view.is_locked().await?;
        self.folding.excluded = self.excluded().await?;
        let is_in_doubt = is_locked && self.folding.excluded.has_parked();
        Ok((self, Round::AtRest { is_in_doubt }))
    }

    /// What the view is not to have by now.
    async fn excluded(&self) -> anyhow::Result<Excluded> {
        if self.lock.is_none() {
            return self.view.excluded(&self.folding).await;
        }
        let excluded = self.folding.excluded.with_parked(&self.view.sink).await?;
        self.view.ensure_hold(&self.folding.excluded, &excluded, &self.folding.at)?;
        Ok(excluded)
    }

    fn moment(self, is_in_doubt: bool) -> Moment {
        Moment { folding: self.folding, found: self.found, is_in_doubt }
    }
}
