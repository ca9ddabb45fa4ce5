//! When all faults are over: an operator sees to what waits and what stands still, and folds anew what was being folded
//! anew. After that nothing may be left of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::bail;
use futures::future::try_join_all;
use redis::cmd;
use tokio::time::{Instant, sleep};
use vidlog_events::{Stream, Topics};
use vidlog_projectors::{
    dead_letters::Post,
    desired_state::{self, AllWanted, Wish},
    log::{Log, Partition},
    operator::Operator,
    projections,
    view::{Fold, Projection},
};
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, keys::ViewKey};

use crate::{
    inject::Stage,
    ledger::Place,
    log::Records,
    operate::{STILL_WAIT, Waiting, folding, waiting},
    operator::Ran,
    system::System,
    until,
};

/// How long it may take until nothing waits any more: each bad record is discarded by itself.
const CLEARED: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// Keys that are looked at in one round trip.
const PAGE: usize = 1000;

/// Has every projection run, and discards every bad record. Says what is wrong.
pub(crate) async fn clear(stage: &Stage, records: &Records) -> anyhow::Result<Vec<String>> {
    let bad: BTreeSet<Place> = {
        let notes = stage.notes();
        notes.poisoned.iter().flat_map(|command| records.places(&command.id)).cloned().collect()
    };
    let system = &stage.system;
    let looking = Operator::open(&system.log, &system.stores)?;
    let begun = Instant::now();
    let mut faults = Vec::new();
    loop {
        let status = looking.status(&projections::ALL).await;
        let partitions = || status.projections.iter().flat_map(|projection| &projection.partitions);
        if partitions().any(|partition| partition.dead_letters != Some(0)) {
            discard_all(stage, &bad, &mut faults).await?;
        } else if partitions().all(|partition| partition.lag == Some(0)) {
            break;
        }
        if !faults.is_empty() {
            return Ok(faults);
        }
        if begun.elapsed() > CLEARED {
            bail!("the projections do not come to the end of the log, with nothing that waits:\n{status}");
        }
        resume_all(stage).await?;
        sleep(LOOK).await;
    }
    faults.extend(discards(stage, &bad).await?);
    Ok(faults)
}

async fn resume_all(stage: &Stage) -> anyhow::Result<()> {
    let wanted = desired_state::read(&stage.system.tables).await?;
    for projection in projections::ALL {
        stage.resume_if_stopped(projection).await?;
        if wanted.get(projection.name()).is_some_and(|wanted| wanted.wish == Wish::Pause) {
            stage.operator().insist(&["resume", projection.name()]).await?;
        }
    }
    Ok(())
}

/// Discards the bad records that keys wait for; those of each projection one after the other.
async fn discard_all(stage: &Stage, bad: &BTreeSet<Place>, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let printed = stage.operator().insist(&["dead-letters", "list", "--json"]).await?;
    let mut by_projection: BTreeMap<String, Vec<Waiting>> = BTreeMap::new();
    for waiting in waiting(&printed)? {
        let is_bad = place(&waiting).is_some_and(|place| bad.contains(&place));
        if !is_bad || waiting.class != "undecodable" {
            faults.push(format!("a good record waits, or waits for a wrong reason: {waiting:?}"));
            continue;
        }
        by_projection.entry(waiting.projection.clone()).or_default().push(waiting);
    }
    let discarded = by_projection.into_values().map(async |all| {
        for waiting in all {
            discard_key(stage, waiting, bad).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(discarded).await.map(drop)
}

/// Discards the bad record that a key waits for, and those that it waits for next.
async fn discard_key(stage: &Stage, waiting: Waiting, bad: &BTreeSet<Place>) -> anyhow::Result<()> {
    let mut next = Some(waiting);
    while let Some(waiting) = next.take() {
        match stage.discard_one(&waiting, None).await? {
            Ran::Refused(said) => {
                let is_bad = |next: &Waiting| place(next).is_some_and(|place| bad.contains(&place));
                next = still_waits(&said).map(|first| Waiting { first, ..waiting }).filter(is_bad);
                // A broker that was killed a moment ago may be slow. It is given again, until the time for all of it is over.
                if next.is_none() {
                    stage.notes().refused("discard", &said);
                }
            }
            Ran::Done(_) | Ran::CutOff => {}
        }
    }
    Ok(())
}

/// The next bad record that a key waits for, after one was discarded.
fn still_waits(said: &str) -> Option<i64> {
    said.split_once(STILL_WAIT)?.1.split_whitespace().next()?.parse().ok()
}

fn place(waiting: &Waiting) -> Option<Place> {
    Place::before(&format!("{}:{}", waiting.partition, waiting.first + 1))
}

/// What was discarded, against what is bad: by everyone who folds it.
async fn discards(stage: &Stage, bad: &BTreeSet<Place>) -> anyhow::Result<Vec<String>> {
    let system = &stage.system;
    let topics = Topics::new(&system.stores.namespace);
    let log = Log { brokers: system.log.kafka_brokers.clone(), topics };
    let post = Post::new(log.clone());
    let mut faults = Vec::new();
    for stream in Stream::ALL {
        if !bad.iter().any(|place| place.stream == stream.name()) {
            continue;
        }
        for Partition { number, .. } in log.ends(vec![stream]).await?.into_keys() {
            let is_here = |place: &&Place| place.stream == stream.name() && place.partition == number;
            let expected: BTreeSet<i64> = bad.iter().filter(is_here).map(|place| place.offset).collect();
            for projection in folding(stream) {
                let found = post.discards(projection.name(), Partition { stream, number }).await?;
                if found != expected {
                    let name = projection.name();
                    faults.push(format!(
                        "{name} has discarded {found:?} of {stream}:{number}, not {expected:?}"
                    ));
                }
            }
        }
    }
    Ok(faults)
}

/// Folds anew, without faults, whatever was folded anew under faults. Says what is wrong.
pub(crate) async fn rebuild_all(stage: &Stage) -> anyhow::Result<Vec<String>> {
    let rebuilt: Vec<_> = stage.notes().rebuilt.iter().copied().collect();
    stage.notes().deeds.calm += rebuilt.len();
    let runs = rebuilt.iter().map(async |name| {
        anyhow::Ok(match stage.operator().run(&["rebuild", name], None).await? {
            Ran::Done(_) => None,
            Ran::Refused(said) => Some(format!("{name} can't be rebuilt: {said}")),
            Ran::CutOff => Some(format!("the rebuild of {name} does not end")),
        })
    });
    Ok(try_join_all(runs).await?.into_iter().flatten().collect())
}

/// What is left of generations that are not live, and readers who are not told of the one that is.
pub(crate) async fn remains(system: &System) -> anyhow::Result<Vec<String>> {
    let wanted = desired_state::read(&system.tables).await?;
    let mut faults: Vec<String> = sqlx::query_scalar(
        "SELECT CONCAT('the database ', schema_name, ' is left') FROM information_schema.schemata
         WHERE LOCATE(CONCAT(?, '_'), schema_name) = 1",
    )
    .bind(&system.stores.namespace)
    .fetch_all(&system.tables)
    .await?;
    let redis = Redis::open(system.stores.redis_url.reveal())?;
    let keys = Keys::new(&system.stores.namespace, system.stores.shards);
    let mut scan = redis.scan(&keys.pattern(), PAGE);
    while let Some(found) = scan.next().await? {
        for name in found {
            let is_left = |projection: &Projection| {
                ViewKey::generation_of(&name, &projection.catalogued)
                    .is_some_and(|generation| generation != live(&wanted, projection))
            };
            if projections::ALL.iter().any(is_left) {
                faults.push(format!("the key {name} is left"));
            }
        }
    }
    for projection in projections::ALL.iter().filter(|one| matches!(one.fold, Fold::Redis(_))) {
        let (name, live) = (projection.name(), live(&wanted, projection));
        until(&format!("readers of {name} are told of generation {live}"), async || {
            let ask = cmd("HGET").arg(keys.generations()).arg(name).take();
            redis.query::<Option<u32>>(&ask).await.is_ok_and(|told| told == Some(live))
        })
        .await?;
    }
    Ok(faults)
}

fn live(wanted: &AllWanted, projection: &Projection) -> u32 {
    wanted.get(projection.name()).cloned().unwrap_or_default().generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_bad_record_is_the_one_that_a_discard_names() {
        let said = "likes:2 key 2: 43 still wait, from offset 18 on, which is undecodable: no type";
        assert_eq!(still_waits(said), Some(18));
        assert_eq!(still_waits("likes:2 key 2: all is folded"), None);
    }
}
