//! Asks everyone who knows something. Whoever does not answer leaves a gap, with the reason.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use redis::cmd;
use tokio::{join, time::timeout};
use vidlog_events::Stream;
use vidlog_schemas::projections::View;
use vidlog_service_kit::clock::Clock;

use super::{
    Report, Status,
    join::{Answer, Known, status},
    oldest, report,
};
use vidlog_projection_engine::{
    desired_state::{self, AllWanted},
    log::{Extent, Log, Offsets, Partition},
    store::{Target, sink::Sink},
    view::Projection,
};

/// How long anyone may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How some projections are now.
pub async fn gather(log: &Log, target: &Target, projections: &[Projection]) -> Status {
    let streams: Vec<Stream> =
        Stream::ALL.into_iter().filter(|stream| projections.iter().any(|one| folds(one, *stream))).collect();
    let (wanted, reports, extents) = join!(
        bounded("MySQL", desired_state::read(&target.mysql)),
        bounded("MySQL", report::read(&target.mysql)),
        bounded("Kafka", log.extents(streams)),
    );
    let generations = generations(target, projections, &wanted).await;
    let positions = join_all(projections.iter().map(async |projection| {
        let partitions = partitions(projection, &extents, &reports);
        let found = match generations.get(projection.name()) {
            Some(Ok(())) => bounded("the view", positions(target, *projection, &partitions)).await,
            Some(Err(why)) => Err(why.clone()),
            None => Err("its live generation is not known".to_owned()),
        };
        (projection.name(), found)
    }))
    .await
    .into_iter()
    .collect();
    let mut known = Known {
        now_ms: Clock::system().now_ms(),
        wanted,
        reports,
        extents,
        positions,
        times: Ok(BTreeMap::new()),
    };
    known.times = bounded("Kafka", oldest::times(log, known.behind())).await;
    let mut status = status(&known, projections);
    for (projection, shown) in projections.iter().zip(&mut status.projections) {
        if let Some(Ok(())) = generations.get(projection.name()) {
            let sink = Sink::new(*projection, target.clone());
            // Why a store does not answer is said already, of its positions.
            let waiting = bounded("the view", sink.waiting()).await.ok();
            for partition in &mut shown.partitions {
                let of_partition = |waiting: &BTreeMap<String, i64>| {
                    waiting.get(&partition.partition).copied().unwrap_or_default()
                };
                partition.dead_letters = waiting.as_ref().map(of_partition);
            }
        }
    }
    status
}

fn folds(projection: &Projection, stream: Stream) -> bool {
    projection.streams().any(|folded| folded == stream)
}

/// The partitions of a projection: those of its topics, or at least those that someone has.
fn partitions(
    projection: &Projection,
    extents: &Answer<BTreeMap<Partition, Extent>>,
    reports: &Answer<Vec<Report>>,
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

/// Has the keys be of the live generations. Which those are MySQL says, or else what readers in Redis go by.
async fn generations(
    target: &Target,
    projections: &[Projection],
    wanted: &Answer<AllWanted>,
) -> BTreeMap<&'static str, Answer<()>> {
    let mut generations = BTreeMap::new();
    for projection in projections {
        let generation = match (wanted, projection.catalogued.view) {
            (_, View::MySql(_)) => Ok(None),
            (Ok(wanted), View::Redis(_)) => {
                Ok(Some(wanted.get(projection.name()).cloned().unwrap_or_default().generation))
            }
            (Err(why), View::Redis(_)) => {
                let ask = cmd("HGET").arg(target.keys.generations()).arg(projection.name()).take();
                match bounded("Redis", target.redis.query::<Option<u32>>(&ask)).await {
                    Ok(Some(generation)) => Ok(Some(generation)),
                    Ok(None) => Err(format!("its live generation is not known: {why}")),
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

/// How far readers see a view. A view in MySQL is as far as its checkpoint. One in Redis is as far as its progress says,
/// which is published after each batch, whereas shards that a batch did not concern lag behind; but it is never behind the
/// last of them, nor, when Redis lost writes, before the first.
async fn positions(
    target: &Target,
    projection: Projection,
    partitions: &[Partition],
) -> anyhow::Result<Offsets> {
    let stored = Sink::new(projection, target.clone()).positions(partitions).await?;
    let progress: Vec<Option<i64>> = match projection.catalogued.view {
        View::Redis(_) if !partitions.is_empty() => {
            let mut ask = cmd("HMGET");
            ask.arg(target.keys.progress(&projection.catalogued));
            for partition in partitions {
                ask.arg(partition.field());
            }
            target.redis.query(&ask).await?
        }
        View::Redis(_) | View::MySql(_) => vec![None; partitions.len()],
    };
    let seen = stored
        .iter()
        .zip(progress)
        .map(|(stored, progress)| progress.unwrap_or_default().clamp(stored.lowest(), stored.highest()));
    Ok(partitions.iter().copied().zip(seen).collect())
}

async fn bounded<T, E: std::fmt::Display>(
    who: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Answer<T> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{who}: {error:#}")),
        Err(_) => Err(format!("{who} does not answer")),
    }
}
