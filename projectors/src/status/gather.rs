//! Collects the status of projections from MySQL, the views and Kafka. Sources that fail or time out leave
//! gaps, with the reason.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use redis::cmd;
use tokio::{join, time::timeout};
use vidlog_events::Stream;
use vidlog_schemas::projections::View;
use vidlog_service_kit::clock::Clock;

use super::{
    Report, Status,
    join::{Fetched, Sources, status},
    oldest, report,
};
use crate::projections;
use vidlog_projection_engine::{
    desired_state::{self, DesiredStates},
    log::{Extent, Log, Partition},
    store::Stores,
    view::Projection,
};

/// Timeout for each source.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the extents of all partitions, below that of a source.
pub(super) const EXTENTS_TIMEOUT: Duration = Duration::from_secs(4);

/// Returns the current status of some projections.
pub async fn gather(log: &Log, target: &Stores, projections: &[Projection]) -> Status {
    let streams = projections::streams(projections);
    let extents = async { log.client()?.available_extents(streams, EXTENTS_TIMEOUT).await };
    let mut status = lags(log, target, projections, extents).await;
    let counts = join_all(projections.iter().map(async |projection| {
        // An error is left out here: the positions report why the same store is unavailable.
        bounded("the view", target.view(*projection).dead_letter_counts()).await.ok()
    }));
    for (counts, projection) in counts.await.into_iter().zip(&mut status.projections) {
        if projection.unknown.is_some() {
            continue;
        }
        for partition in &mut projection.partitions {
            partition.dead_letters = counts.as_ref().map(|counts| {
                let of_partition = counts.iter().find(|(of, _)| of.id() == partition.partition);
                of_partition.map_or(0, |(_, count)| *count)
            });
        }
    }
    status
}

/// Returns the current status of some projections without their dead letters, from extents of their streams.
pub(super) async fn lags(
    log: &Log,
    target: &Stores,
    projections: &[Projection],
    extents: impl Future<Output = anyhow::Result<BTreeMap<Partition, Fetched<Extent>>>>,
) -> Status {
    let (desired, reports, extents) = join!(
        bounded("MySQL", desired_state::read(&target.mysql)),
        bounded("MySQL", report::read(&target.mysql)),
        bounded("Kafka", extents),
    );
    let generations = generations(target, projections, &desired).await;
    let positions = join_all(projections.iter().map(async |projection| {
        let partitions = partitions(projection, &extents, &reports);
        let found = match generations.get(projection.name()) {
            Some(Ok(())) => bounded("the view", target.view(*projection).visible_offsets(&partitions)).await,
            Some(Err(why)) => Err(why.clone()),
            None => Err("live generation unknown".to_owned()),
        };
        (projection.name(), found)
    }))
    .await
    .into_iter()
    .collect();
    let mut sources = Sources {
        now_ms: Clock::system().now_ms(),
        desired,
        reports,
        extents,
        positions,
        times: Ok(BTreeMap::new()),
    };
    sources.times = bounded("Kafka", oldest::times(log, sources.behind())).await;
    status(&sources, projections)
}

fn folds(projection: &Projection, stream: Stream) -> bool {
    projection.streams().any(|folded| folded == stream)
}

/// Returns the partitions of a projection: those of its topics, or those that processes report if Kafka is
/// unavailable.
fn partitions(
    projection: &Projection,
    extents: &Fetched<BTreeMap<Partition, Fetched<Extent>>>,
    reports: &Fetched<Vec<Report>>,
) -> Vec<Partition> {
    match (extents, reports) {
        (Ok(extents), _) => {
            extents.keys().copied().filter(|partition| folds(projection, partition.stream)).collect()
        }
        (Err(_), Ok(reports)) => {
            let of = |report: &&Report| report.projection == projection.name();
            reports.iter().filter(of).map(|report| report.partition).collect()
        }
        (Err(_), Err(_)) => Vec::new(),
    }
}

/// Points the target's keys at the live generations. MySQL has them; if it is unavailable, the generations
/// that readers use are read from Redis.
async fn generations(
    target: &Stores,
    projections: &[Projection],
    desired: &Fetched<DesiredStates>,
) -> BTreeMap<&'static str, Fetched<()>> {
    let mut generations = BTreeMap::new();
    for projection in projections {
        let generation = match (desired, projection.catalogued.view) {
            (_, View::MySql(_)) => Ok(None),
            (Ok(desired), View::Redis(_)) => {
                Ok(Some(desired.get(projection.name()).cloned().unwrap_or_default().generation))
            }
            (Err(why), View::Redis(_)) => {
                let query = cmd("HGET").arg(target.keys.generations()).arg(projection.name()).take();
                match bounded("Redis", target.redis.query::<Option<u32>>(&query)).await {
                    Ok(Some(generation)) => Ok(Some(generation)),
                    Ok(None) => Err(format!("live generation unknown: {why}")),
                    Err(also) => Err(also),
                }
            }
        };
        let set = generation.map(|generation| {
            if let Some(generation) = generation {
                target.keys.set_generation(&projection.catalogued, generation);
            }
        });
        generations.insert(projection.name(), set);
    }
    generations
}

async fn bounded<T, E: std::fmt::Display>(
    source: &str,
    fetched: impl Future<Output = Result<T, E>>,
) -> Fetched<T> {
    match timeout(SOURCE_TIMEOUT, fetched).await {
        Ok(Ok(fetched)) => Ok(fetched),
        Ok(Err(error)) => Err(format!("{source}: {error:#}")),
        Err(_) => Err(format!("{source} timed out")),
    }
}
