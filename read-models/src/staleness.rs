//! Which projections are known to be stale: paused, stopped, or so far behind that marks of unfolded writes have expired.
//!
//! A mark tells a reader to wait for one write, but only for [`MARK_LIFETIME`]. A reader of an older write gets no notice
//! from marks, so it needs one from here. Projectors publish up to when each projection has folded the log. The observer of
//! a process reads that every 2 s, so a request pays nothing for it.
//!
//! What is not published counts as not folded: if no projector runs, the log is unavailable, or this process cannot reach
//! MySQL, projections become stale once the last known time is old enough. Until then there are marks.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::RwLock;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};
use vidlog_schemas::projections::{self, Projection};

use crate::{error::ReadError, stores::Tables};

/// The lifetime of a mark: longer than a projection stops for a restart or an upgrade.
pub(crate) const MARK_LIFETIME: Duration = Duration::from_mins(10);
/// The longest lag of a projection that marks cover. The margin is for clocks that differ and for the age of observations.
const MAX_LAG: Duration = MARK_LIFETIME.saturating_sub(Duration::from_secs(30));
/// Interval between two observations.
const INTERVAL: Duration = Duration::from_secs(2);

/// Whether each projection is paused or stopped. A statement of its own: a pause is observed even if the lags are unreadable.
const OBSERVE_HALTED: &str = "SELECT name, CAST(paused OR stopped IS NOT NULL AS SIGNED) FROM projections";
/// The lag of each projection, by the clock of MySQL.
const OBSERVE_LAGS: &str =
    "SELECT projection, CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 - folded_until_ms AS SIGNED) FROM projection_lags";

/// The observed staleness of all projections. Clones share it.
#[derive(Clone)]
pub(crate) struct Staleness {
    tables: Tables,
    projections: Arc<RwLock<HashMap<&'static str, Observed>>>,
}

/// What is known of a projection.
#[derive(Clone, Copy, Debug)]
struct Observed {
    is_halted: bool,
    /// When the projection is stale, unless a later observation finds that it has folded more.
    stale_at: Instant,
    /// Whether this staleness is logged.
    is_reported: bool,
}

/// A projection's name, and a value of it.
type Row = (String, i64);

impl Staleness {
    /// Nothing is known yet: a projection that no projector publishes is stale after [`MAX_LAG`].
    pub(crate) fn new(tables: Tables) -> Self {
        let unknown = Observed { is_halted: false, stale_at: Instant::now() + MAX_LAG, is_reported: false };
        let all = projections::ALL.iter().map(|projection| (projection.name, unknown)).collect();
        Self { tables, projections: Arc::new(RwLock::new(all)) }
    }

    /// Starts to observe, until the last clone is dropped.
    pub(crate) fn start(&self) {
        tokio::spawn(observe_all(self.tables.clone(), Arc::downgrade(&self.projections)));
    }

    /// Returns whether one of some projections is stale.
    pub(crate) fn is_any_stale(&self, used: &[Projection]) -> bool {
        let now = Instant::now();
        let observed = self.projections.read();
        used.iter().filter_map(|projection| observed.get(projection.name)).any(|state| state.is_stale(now))
    }
}

impl Observed {
    fn is_stale(self, now: Instant) -> bool {
        self.is_halted || self.stale_at <= now
    }
}

async fn observe_all(tables: Tables, projections: Weak<RwLock<HashMap<&'static str, Observed>>>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_failing = false;
    loop {
        ticks.tick().await;
        if projections.strong_count() == 0 {
            return;
        }
        let (halted, lags) = tokio::join!(read(&tables, OBSERVE_HALTED), read(&tables, OBSERVE_LAGS));
        let error = [halted.as_ref().err(), lags.as_ref().err()].into_iter().flatten().next();
        match (error, std::mem::replace(&mut is_failing, error.is_some())) {
            (Some(error), false) => warn!(%error, "failed to observe projections"),
            (Some(error), true) => debug!(%error, "failed to observe projections"),
            (None, _) => {}
        }
        let Some(projections) = projections.upgrade() else { return };
        let mut projections = projections.write();
        if let Ok(rows) = halted {
            update_halted(&mut projections, &rows);
        }
        if let Ok(rows) = lags {
            update_lags(&mut projections, &rows);
        }
        report(&mut projections);
    }
}

async fn read(tables: &Tables, query: &'static str) -> Result<Vec<Row>, ReadError> {
    tables.run(sqlx::query_as(query).fetch_all(tables.pool())).await
}

/// Applies which projections are paused or stopped.
fn update_halted(projections: &mut HashMap<&'static str, Observed>, rows: &[Row]) {
    for (name, observed) in projections {
        observed.is_halted = rows.iter().any(|(of, halted)| of == name && *halted != 0);
    }
}

/// Applies the lags in ms.
fn update_lags(projections: &mut HashMap<&'static str, Observed>, rows: &[Row]) {
    let now = Instant::now();
    for (name, observed) in projections {
        if let Some((_, lag_ms)) = rows.iter().find(|(of, _)| of == name) {
            let lag = Duration::from_millis((*lag_ms).max(0).unsigned_abs());
            observed.stale_at = now + MAX_LAG.saturating_sub(lag);
        }
    }
}

/// Logs the projections that became stale, or current again.
fn report(projections: &mut HashMap<&'static str, Observed>) {
    let now = Instant::now();
    for (projection, observed) in projections {
        let is_stale = observed.is_stale(now);
        match (is_stale, std::mem::replace(&mut observed.is_reported, is_stale)) {
            (true, false) if observed.is_halted => {
                warn!(projection, "projection halted, its reads are stale");
            }
            (true, false) => warn!(projection, "projection too far behind, its reads are stale"),
            (false, true) => info!(projection, "reads of the projection are current again"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(minutes: u64) -> i64 {
        i64::try_from(Duration::from_mins(minutes).as_millis()).unwrap()
    }

    fn unknown() -> HashMap<&'static str, Observed> {
        let stale_at = Instant::now() + MAX_LAG;
        HashMap::from([("likes", Observed { is_halted: false, stale_at, is_reported: false })])
    }

    fn is_stale(projections: &HashMap<&'static str, Observed>) -> bool {
        projections["likes"].is_stale(Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn projection_is_stale_once_marks_of_unfolded_writes_expire() {
        let mut projections = unknown();
        update_lags(&mut projections, &[("likes".to_owned(), minutes(9))]);
        assert!(!is_stale(&projections));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(is_stale(&projections), "a mark expires while nothing more is folded");
        update_lags(&mut projections, &[("likes".to_owned(), 0)]);
        assert!(!is_stale(&projections));
        update_lags(&mut projections, &[("likes".to_owned(), minutes(10))]);
        assert!(is_stale(&projections));
        // A clock of another process may be ahead.
        update_lags(&mut projections, &[("likes".to_owned(), -minutes(60))]);
        assert!(!is_stale(&projections));
        tokio::time::advance(MARK_LIFETIME).await;
        assert!(is_stale(&projections));
    }

    #[tokio::test(start_paused = true)]
    async fn projection_without_published_times_becomes_stale() {
        let mut projections = unknown();
        update_halted(&mut projections, &[("follows".to_owned(), 1)]);
        update_lags(&mut projections, &[("follows".to_owned(), minutes(60))]);
        assert!(!is_stale(&projections));
        tokio::time::advance(MAX_LAG).await;
        update_halted(&mut projections, &[]);
        update_lags(&mut projections, &[]);
        assert!(is_stale(&projections));
    }

    #[tokio::test(start_paused = true)]
    async fn halted_projection_is_stale_at_any_lag() {
        let mut projections = unknown();
        update_lags(&mut projections, &[("likes".to_owned(), 0)]);
        update_halted(&mut projections, &[("likes".to_owned(), 1)]);
        assert!(is_stale(&projections));
        report(&mut projections);
        assert!(projections["likes"].is_reported);
        update_halted(&mut projections, &[("likes".to_owned(), 0)]);
        assert!(!is_stale(&projections));
        report(&mut projections);
        assert!(!projections["likes"].is_reported);
    }
}
