//! Exports lag and state of every partition of every projection as metrics.
//!
//! Every process exports all of them, from the stores, the log and the reports of all processes, not only those of its own
//! partitions. So a projection that no process runs has a lag too, and the series of different processes agree, except for
//! the time of their last export.
//!
//! Also publishes in MySQL up to when each projection has folded the log, from where query-api learns that a view is stale.

use std::{collections::BTreeSet, time::Duration};

use metrics::gauge;
use tokio::time::timeout;
use tracing::{debug, warn};
use vidlog_projection_engine::{
    log::{Log, LogClient},
    store::Stores,
};
use vidlog_service_kit::shutdown::Shutdown;

use super::{
    ProjectionStatus, State, Status,
    folded_until::{self, FoldedUntil},
    gather::{EXTENTS_TIMEOUT, lags},
};
use crate::{
    metrics::{LAG_RECORDS, LAG_SECONDS, STATE},
    projections,
};

/// Interval between two exports.
const INTERVAL: Duration = Duration::from_secs(10);
/// Value of a lag that is unavailable: an aggregation by `max` ignores it if another process has a value.
const UNAVAILABLE: f64 = f64::NAN;

/// A partition of a projection.
type Series = (&'static str, String);

/// Exports the metrics of a process until shutdown.
pub(crate) struct Exporter {
    pub(crate) log: Log,
    /// The stores, with keys of its own: it must not switch the generation that the runners write to.
    pub(crate) target: Stores,
}

impl Exporter {
    pub(crate) async fn run(self, shutdown: Shutdown) {
        // One client for all exports: each has threads and connections of its own.
        let mut client = None;
        let mut exported = BTreeSet::new();
        let mut is_failing = false;
        let mut folded_until = FoldedUntil::default();
        loop {
            // Before the ends are read: later records may not be folded.
            let measured_ms = folded_until::mysql_time_ms(&self.target.mysql).await;
            match self.status(&mut client).await {
                Ok(status) => {
                    if !status.unknown.is_empty() && !is_failing {
                        warn!(reasons = status.unknown.join("; "), "lag metrics incomplete");
                    }
                    is_failing = !status.unknown.is_empty();
                    export(&status, &mut exported);
                    folded_until.publish(&self.target.mysql, &status, measured_ms).await;
                }
                Err(error) => debug!(error = format!("{error:#}"), "lag metrics unavailable"),
            }
            if timeout(INTERVAL, shutdown.wait()).await.is_ok() {
                return;
            }
        }
    }

    async fn status(&self, client: &mut Option<LogClient>) -> anyhow::Result<Status> {
        let client = match client {
            Some(client) => client,
            None => client.insert(self.log.client()?),
        };
        let streams = projections::streams(&projections::ALL);
        let extents = client.available_extents(streams, EXTENTS_TIMEOUT);
        Ok(lags(&self.log, &self.target, &projections::ALL, extents).await)
    }
}

/// Sets the gauges of all partitions. Partitions that were exported before and are missing now are unavailable.
fn export(status: &Status, exported: &mut BTreeSet<Series>) {
    let mut missing = std::mem::take(exported);
    for ProjectionStatus { name, partitions, .. } in &status.projections {
        for partition in partitions {
            let series = (*name, partition.partition.clone());
            let records = partition.lag.and_then(|lag| u32::try_from(lag).ok()).map(f64::from);
            set(&series, records, partition.lag_seconds, partition.state);
            missing.remove(&series);
            exported.insert(series);
        }
    }
    for series in missing {
        set(&series, None, None, State::Unknown);
        exported.insert(series);
    }
}

fn set((name, partition): &Series, records: Option<f64>, seconds: Option<f64>, state: State) {
    let gauge =
        |metric: &'static str| gauge!(metric, "projection" => *name, "partition" => partition.clone());
    gauge(LAG_RECORDS).set(records.unwrap_or(UNAVAILABLE));
    gauge(LAG_SECONDS).set(seconds.unwrap_or(UNAVAILABLE));
    for other in State::ALL {
        let is_current = if other == state { 1.0 } else { 0.0 };
        gauge!(STATE, "projection" => *name, "partition" => partition.clone(), "state" => other.name())
            .set(is_current);
    }
}
