//! Rebuilds a view without downtime (blue/green): folds the next generation while the live one serves.
//!
//! The next generation is folded up to the position of the live one and never beyond. Both are compared at
//! one position: first in full, while the live one continues; then, during a brief hold of the live one, the
//! lines that changed since. The next one takes over in one step, at exactly the position of its predecessor,
//! so readers never see the view go back. An interruption before the switch leaves the old generation live; a
//! later call continues or drops the next one.

mod compare;
mod generation;
mod pair;
mod progress;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tracing::warn;
use vidlog_service_kit::config;

use self::{
    compare::Comparison,
    generation::{GRACE, Generations},
    pair::{CATCH_UP_THRESHOLD, Pair, lowest},
    progress::PUBLISH_INTERVAL,
};
pub use self::{compare::MAX_DIFFERENCES, progress::Progress};
use crate::comparison::Difference;
use vidlog_projection_engine::{
    desired_state::hold::{BETWEEN_HOLDS, CHECK_INTERVAL, HOLDS, Hold},
    log::{Extent, Log, Offsets, Partition, identity::FirstRecords},
    replay::{ReplayProgress, replay},
    store::{Parked, Stores},
    view::Projection,
};

/// Size of the MySQL connection pool.
const MYSQL_CONNECTIONS: u32 = 8;
/// Time until every process has read a new hold: several intervals of its polling.
const HOLD_PROPAGATION: Duration = Duration::from_millis(350);

/// Action if the next generation differs from the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfDifferent {
    /// Keep both, so that an operator can inspect the differences. The live one stays live.
    Keep,
    /// Switch: the fold was changed, or the live generation is wrong.
    TakeOver,
}

/// Result of a rebuild.
#[derive(Debug)]
pub struct Outcome {
    /// Number of keys or rows that were compared.
    pub lines: usize,
    /// Differing keys or rows: `expected` is from the next generation, `found` from the live one.
    pub differences: Vec<Difference>,
    /// Whether the whole view was compared; the comparison stops at [`MAX_DIFFERENCES`] differing members and rows.
    pub is_complete: bool,
    /// Number of the live generation before and after.
    pub generation: (u32, u32),
}

/// Rebuild of one projection's view.
pub struct Rebuild {
    projection: Projection,
    log: Log,
    live: Stores,
    generations: Generations,
    progress: watch::Sender<Progress>,
}

impl Rebuild {
    /// Takes the view's lock, which excludes other rebuilds, and reads the live generation.
    pub async fn begin(
        log: &config::Kafka,
        stores: &config::Stores,
        projection: Projection,
    ) -> anyhow::Result<Self> {
        let live = Stores::open(stores, MYSQL_CONNECTIONS)?;
        let generations = Generations::lock(projection, live.clone()).await?;
        let log = Log::new(log, &stores.namespace);
        let (progress, _) = watch::channel(Progress::Preparing);
        Ok(Self { projection, log, live, generations, progress })
    }

    /// Returns a receiver of the progress.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Drops what earlier rebuilds left. Does not change the live generation.
    pub async fn drop_next(self) -> anyhow::Result<()> {
        self.generations.drop_all_but_live().await
    }

    /// Rebuilds the view.
    pub async fn run(self, if_different: IfDifferent) -> anyhow::Result<Outcome> {
        let partitions = self.partitions().await?;
        self.ensure_same_log(&partitions).await?;
        let next = self.create_next().await?;
        let pair = Pair { projection: self.projection, partitions, live: self.live.clone(), next };
        self.catch_up(&pair).await?;
        self.publish(Progress::Comparing { lines: 0 });
        let mut comparison = pair.compare_all(&self.log, &self.progress).await?;
        for _ in 0..HOLDS {
            pair.compare_again(&self.log, &mut comparison).await?;
            if comparison.has_differences() && if_different == IfDifferent::Keep {
                pair.read_sizes(&mut comparison).await?;
                return Ok(self.outcome(&comparison, self.generations.live));
            }
            ensure!(
                self.partitions().await? == pair.partitions,
                "partitions were added to the log meanwhile; run this again"
            );
            self.publish(Progress::TakingOver);
            match self.hold_and_take_over(&pair, &mut comparison, if_different).await? {
                Held::TookOver => {
                    self.catch_up_with_late_writes(&pair).await;
                    self.publish(Progress::Waiting);
                    sleep(GRACE).await;
                    self.generations.drop_old().await.with_context(|| {
                        let live = self.generations.next_number();
                        format!("generation {live} is live, but the previous one was not dropped; run this with --drop")
                    })?;
                    return Ok(self.outcome(&comparison, self.generations.next_number()));
                }
                Held::Different => return Ok(self.outcome(&comparison, self.generations.live)),
                Held::Moving => sleep(BETWEEN_HOLDS).await,
            }
        }
        bail!(
            "the live view of {} did not converge to one position; if its process was killed, start one, then run this \
             again",
            self.projection.name()
        )
    }

    /// Returns the partitions of the projection's streams.
    async fn partitions(&self) -> anyhow::Result<Vec<Partition>> {
        Ok(self.log.ends(self.projection.streams().collect()).await?.into_keys().collect())
    }

    /// Fails if this is not the log that the live view was folded from, by its first records.
    async fn ensure_same_log(&self, partitions: &[Partition]) -> anyhow::Result<()> {
        let extents = self.log.extents(self.projection.streams().collect()).await?;
        // A log whose first records were deleted has no identity.
        let from_start = |(partition, extent): (Partition, Extent)| {
            (extent.start == 0 && partitions.contains(&partition)).then_some((partition, extent.end))
        };
        let ends: Offsets = extents.into_iter().filter_map(from_start).collect();
        let records = FirstRecords::new(self.log.clone());
        let firsts = spawn_blocking(move || records.read(&ends))
            .await
            .context("reading the log panicked")?
            .context("failed to read the first records of the log")?;
        let identities: Vec<_> = firsts.into_iter().filter_map(|(at, first)| Some((at, first?))).collect();
        let recorded = self.live.view(self.projection).log_identities(&identities).await?;
        let is_other = identities.iter().zip(&recorded).any(|((_, first), recorded)| first != recorded);
        ensure!(!is_other, "this log is not the one that the live view was folded from");
        Ok(())
    }

    /// Creates the next generation, or continues the one of an interrupted rebuild.
    ///
    /// Starts over if the next generation has a parked key whose first parked record differs from the live
    /// one's: records were retried or discarded since, and that moves no position.
    async fn create_next(&self) -> anyhow::Result<Stores> {
        let found = self.generations.create_next().await?;
        let parked = found.view(self.projection).parked().await?;
        let parked_in_live = self.live.view(self.projection).parked().await?;
        let is_unchanged = |(partition, keys): (&Partition, &Parked)| {
            let in_live = parked_in_live.get(partition);
            keys.iter().all(|(key, parked)| {
                in_live.and_then(|keys| keys.get(key)).is_some_and(|in_live| in_live.first == parked.first)
            })
        };
        if parked.iter().all(is_unchanged) {
            return Ok(found);
        }
        self.generations.drop_next().await?;
        self.generations.create_next().await
    }

    /// Folds records into the new live tables that a process wrote to the replaced tables.
    ///
    /// A process that had not read the hold yet may have committed to the old tables and published that
    /// position to readers. The records are in the log.
    async fn catch_up_with_late_writes(&self, pair: &Pair) {
        let caught_up = async {
            let Some(replaced) = self.generations.replaced()? else {
                return Ok(());
            };
            let late = replaced.view(self.projection).positions(&pair.partitions).await?;
            let until = pair.partitions.iter().zip(late).map(|(at, position)| (*at, position.highest()));
            let live = self.live.view(self.projection);
            replay(&self.log, &live, &until.collect(), &Arc::default()).await
        };
        if let Err(error) = caught_up.await {
            // Best effort: the processes that fold the new generation reach the same position.
            warn!(
                projection = self.projection.name(),
                error = format!("{error:#}"),
                "late writes not folded, projectors will fold them"
            );
        }
    }

    fn outcome(&self, comparison: &Comparison, after: u32) -> Outcome {
        self.publish(Progress::Done);
        Outcome {
            lines: comparison.lines,
            differences: comparison.differences(),
            is_complete: comparison.is_complete(),
            generation: (self.generations.live, after),
        }
    }

    fn publish(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// Folds in rounds to the live position until a round leaves few records to the next.
    async fn catch_up(&self, pair: &Pair) -> anyhow::Result<()> {
        let begun = Instant::now();
        let folding = Arc::new(ReplayProgress::default());
        loop {
            let until = lowest(&pair.live_positions().await?);
            let left = pair.left(&until).await?;
            let of = folding.folded.load(Ordering::Relaxed) + left;
            let store = pair.next_store();
            let round = replay(&self.log, &store, &until, &folding);
            tokio::pin!(round);
            loop {
                let folded = folding.folded.load(Ordering::Relaxed);
                self.publish(Progress::Folding { folded, of, elapsed: begun.elapsed() });
                tokio::select! {
                    ended = &mut round => break ended?,
                    () = sleep(PUBLISH_INTERVAL) => {}
                }
            }
            if left < CATCH_UP_THRESHOLD {
                return Ok(());
            }
        }
    }

    /// Holds the live generation, compares the rest and switches. Ends the hold also after an error.
    async fn hold_and_take_over(
        &self,
        pair: &Pair,
        comparison: &mut Comparison,
        if_different: IfDifferent,
    ) -> anyhow::Result<Held> {
        let mut hold = Hold::begin(&self.live.mysql, self.projection).await?;
        sleep(HOLD_PROPAGATION).await;
        let held = self.take_over(pair, comparison, if_different, &mut hold).await;
        hold.end().await;
        held
    }

    async fn take_over(
        &self,
        pair: &Pair,
        comparison: &mut Comparison,
        if_different: IfDifferent,
        hold: &mut Hold<'_>,
    ) -> anyhow::Result<Held> {
        while !hold.is_over() {
            let positions = pair.live_positions().await?;
            if positions.values().any(|position| position.lowest() < position.highest()) {
                sleep(CHECK_INTERVAL).await;
                continue;
            }
            replay(&self.log, &pair.next_store(), &lowest(&positions), &comparison.since).await?;
            pair.compare_rest(comparison).await?;
            if comparison.has_differences() {
                pair.read_sizes(comparison).await?;
            }
            // A process that has not read the hold may still have written. In that case, discard the result
            // and compare again, including its writes.
            if comparison.has_differences() && if_different == IfDifferent::Keep {
                if pair.live_positions().await? == positions {
                    return Ok(Held::Different);
                }
                continue;
            }
            pair.publish_progress(&lowest(&positions)).await?;
            if hold.is_over() || !hold.extend().await? || pair.live_positions().await? != positions {
                continue;
            }
            let took_over = self.generations.take_over(hold).await?;
            return Ok(if took_over { Held::TookOver } else { Held::Moving });
        }
        Ok(Held::Moving)
    }
}

/// Result of a hold.
enum Held {
    /// The next generation is live.
    TookOver,
    /// The generations differ; the old one stays live.
    Different,
    /// The live generation kept moving, or could not be replaced.
    Moving,
}
