//! Folds a view anew while the old one serves: blue/green.
//!
//! The next generation is folded beside the live one, up to where that stands and never beyond. Both are compared at one
//! position: first all there is, while the live one goes on; then, while that is held still for a moment, what it has
//! changed since. Then the next one takes over in one step, at exactly the position of the one before, so that no reader
//! sees anything go back. Whatever interrupts it leaves the old generation serving; it is gone on with, or dropped.

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
    pair::{NEARLY_THERE, Pair, lowest},
    progress::PUBLISH_INTERVAL,
};
pub use self::{compare::ENOUGH, progress::Progress};
use crate::comparison::Difference;
use vidlog_projection_engine::{
    desired_state::hold::{BETWEEN_HOLDS, CHECK_INTERVAL, HOLDS, Hold},
    log::{Extent, Log, Offsets, Partition, identity::FirstRecords},
    replay::{Tally, replay},
    store::{Parked, Stores},
    view::Projection,
};

/// Connections to MySQL.
const MYSQL_CONNECTIONS: u32 = 8;
/// How long a hold takes to be known to every process: several times of asking.
const HOLD_IS_KNOWN: Duration = Duration::from_millis(350);

/// What becomes of a next generation that differs from the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfDifferent {
    /// It is kept, beside the live one, for whoever wants to look.
    Keep,
    /// It takes over: the fold was changed, or the live one was wrong.
    TakeOver,
}

/// What a rebuild came to.
#[derive(Debug)]
pub struct Outcome {
    /// Keys or rows that were compared.
    pub lines: usize,
    /// Those that differ: expected is what the next generation has, found what the live one has.
    pub differences: Vec<Difference>,
    /// Whether the whole view was compared; the comparison stops at [`ENOUGH`] differing members and rows.
    pub is_complete: bool,
    /// The live generation, before and after.
    pub generation: (u32, u32),
}

/// A rebuild of one projection's view.
pub struct Rebuild {
    projection: Projection,
    log: Log,
    live: Stores,
    generations: Generations,
    progress: watch::Sender<Progress>,
}

impl Rebuild {
    /// Prepares a rebuild: takes the lock that no two have at once, and makes the place for the next generation.
    pub async fn begin(
        log: &config::Log,
        stores: &config::Stores,
        projection: Projection,
    ) -> anyhow::Result<Self> {
        let live = Stores::open(stores, MYSQL_CONNECTIONS)?;
        let generations = Generations::lock(projection, live.clone()).await?;
        let log = Log::new(log, &stores.namespace);
        let (progress, _) = watch::channel(Progress::Preparing);
        Ok(Self { projection, log, live, generations, progress })
    }

    /// Tells how far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Drops what an earlier rebuild left. The live generation is not touched.
    pub async fn drop_next(self) -> anyhow::Result<()> {
        self.generations.drop_all_but_live().await
    }

    /// Rebuilds.
    pub async fn run(self, if_different: IfDifferent) -> anyhow::Result<Outcome> {
        let partitions = self.partitions().await?;
        self.ensure_same_log(&partitions).await?;
        let next = self.make_next().await?;
        let pair = Pair { projection: self.projection, partitions, live: self.live.clone(), next };
        self.catch_up(&pair).await?;
        self.tell(Progress::Comparing { lines: 0 });
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
            self.tell(Progress::TakingOver);
            match self.hold_and_take_over(&pair, &mut comparison, if_different).await? {
                Held::TookOver => {
                    self.catch_up_with_late_writes(&pair).await;
                    self.tell(Progress::Waiting);
                    sleep(GRACE).await;
                    self.generations.drop_old().await.with_context(|| {
                        let live = self.generations.next_number();
                        format!("generation {live} is live, but the one before is not dropped yet; --drop does that")
                    })?;
                    return Ok(self.outcome(&comparison, self.generations.next_number()));
                }
                Held::Different => return Ok(self.outcome(&comparison, self.generations.live)),
                Held::Restless => sleep(BETWEEN_HOLDS).await,
            }
        }
        bail!(
            "the live view of {} did not come to rest, so that the two could be compared at one position; \
             if its process was killed, start one, then run this again",
            self.projection.name()
        )
    }

    /// The partitions of the projection's streams.
    async fn partitions(&self) -> anyhow::Result<Vec<Partition>> {
        Ok(self.log.ends(self.projection.streams().collect()).await?.into_keys().collect())
    }

    /// Makes sure that this is the log that the live view was folded from.
    async fn ensure_same_log(&self, partitions: &[Partition]) -> anyhow::Result<()> {
        let extents = self.log.extents(self.projection.streams().collect()).await?;
        // A log whose first records were deleted has no identity.
        let begins = |(partition, extent): (Partition, Extent)| {
            (extent.start == 0 && partitions.contains(&partition)).then_some((partition, extent.end))
        };
        let ends: Offsets = extents.into_iter().filter_map(begins).collect();
        let records = FirstRecords::new(self.log.clone());
        let firsts = spawn_blocking(move || records.read(&ends))
            .await
            .context("reading the log panicked")?
            .context("the log's first records can't be read")?;
        let known: Vec<_> = firsts.into_iter().filter_map(|(at, first)| Some((at, first?))).collect();
        let remembered = self.live.view(self.projection).log_identities(&known).await?;
        let is_other = known.iter().zip(&remembered).any(|((_, first), remembered)| first != remembered);
        ensure!(!is_other, "this is another log than the one that the live view was folded from");
        Ok(())
    }

    /// Makes the next generation, or finds what a rebuild that was cut off has left of it. If a record waits there that does
    /// not wait in the live one any more, it was retried or discarded since: then all is folded anew.
    async fn make_next(&self) -> anyhow::Result<Stores> {
        let found = self.generations.make_next().await?;
        let waits = found.view(self.projection).parked().await?;
        let waits_in_live = self.live.view(self.projection).parked().await?;
        let still_waits = |(partition, keys): (&Partition, &Parked)| {
            let in_live = waits_in_live.get(partition);
            keys.iter().all(|(key, parked)| {
                in_live.and_then(|keys| keys.get(key)).is_some_and(|in_live| in_live.first == parked.first)
            })
        };
        if waits.iter().all(still_waits) {
            return Ok(found);
        }
        self.generations.drop_next().await?;
        self.generations.make_next().await
    }

    /// A process that had not heard of the hold may have written to the tables that were replaced, and told readers of
    /// it. What it wrote is in the log.
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
            // Those that fold it by now do the same.
            warn!(
                projection = self.projection.name(),
                error = format!("{error:#}"),
                "left to the projectors"
            );
        }
    }

    fn outcome(&self, comparison: &Comparison, after: u32) -> Outcome {
        self.tell(Progress::Done);
        Outcome {
            lines: comparison.lines,
            differences: comparison.differences(),
            is_complete: comparison.is_complete(),
            generation: (self.generations.live, after),
        }
    }

    fn tell(&self, progress: Progress) {
        self.progress.send_replace(progress);
    }

    /// Folds until little is left: what came while it folded, again and again.
    async fn catch_up(&self, pair: &Pair) -> anyhow::Result<()> {
        let begun = Instant::now();
        let tally = Arc::new(Tally::default());
        loop {
            let until = lowest(&pair.live_positions().await?);
            let left = pair.left(&until).await?;
            let of = tally.folded.load(Ordering::Relaxed) + left;
            let sink = pair.next_sink();
            let round = replay(&self.log, &sink, &until, &tally);
            tokio::pin!(round);
            loop {
                let folded = tally.folded.load(Ordering::Relaxed);
                self.tell(Progress::Folding { folded, of, elapsed: begun.elapsed() });
                tokio::select! {
                    ended = &mut round => break ended?,
                    () = sleep(PUBLISH_INTERVAL) => {}
                }
            }
            if left < NEARLY_THERE {
                return Ok(());
            }
        }
    }

    /// Holds the live generation, and lets go of it whatever happens.
    async fn hold_and_take_over(
        &self,
        pair: &Pair,
        comparison: &mut Comparison,
        if_different: IfDifferent,
    ) -> anyhow::Result<Held> {
        let mut hold = Hold::begin(&self.live.mysql, self.projection).await?;
        sleep(HOLD_IS_KNOWN).await;
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
            let rest = pair.live_positions().await?;
            if rest.values().any(|position| position.lowest() < position.highest()) {
                sleep(CHECK_INTERVAL).await;
                continue;
            }
            replay(&self.log, &pair.next_sink(), &lowest(&rest), &comparison.since).await?;
            pair.compare_rest(comparison).await?;
            if comparison.has_differences() {
                pair.read_sizes(comparison).await?;
            }
            // Someone who does not know of the hold may still have written: then all of this is of no account, and what
            // differs is looked at again with what was written.
            if comparison.has_differences() && if_different == IfDifferent::Keep {
                if pair.live_positions().await? == rest {
                    return Ok(Held::Different);
                }
                continue;
            }
            pair.publish_progress(&lowest(&rest)).await?;
            if hold.is_over() || !hold.extend().await? || pair.live_positions().await? != rest {
                continue;
            }
            let took_over = self.generations.take_over(hold).await?;
            return Ok(if took_over { Held::TookOver } else { Held::Restless });
        }
        Ok(Held::Restless)
    }
}

/// What came of a hold.
enum Held {
    /// The next generation is live.
    TookOver,
    /// It differs, and is not.
    Different,
    /// The live one went on, or could not be replaced.
    Restless,
}
