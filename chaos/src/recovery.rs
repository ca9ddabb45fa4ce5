//! Recovery after the faults: the operator discards the bad records, resumes the projections and repeats the rebuilds.
//! Afterwards no key is parked, and no old generation is left.

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
    dead_letters::DeadLetterQueue,
    desired_state::{self, DesiredStates, RunState},
    log::{Log, Partition},
    operator::Operator,
    projections,
    view::{Fold, Projection},
};
use vidlog_redis_shards::Redis;
use vidlog_schemas::{Keys, keys::ViewKey};

use crate::{
    ledger::LogPosition,
    log::Records,
    operate::{ParkedKey, STAYS_PARKED, folding, parse_parked_keys},
    operator::CommandResult,
    run::Run,
    system::System,
    wait::until,
};

/// Timeout of all discards: each bad record needs a command of its own.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(150);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Keys per round trip of a scan.
const PAGE: usize = 1000;

/// Discards every bad record and waits until all projections have caught up; returns the violations.
pub(crate) async fn discard_bad_records(run: &Run, records: &Records) -> anyhow::Result<Vec<String>> {
    let bad: BTreeSet<LogPosition> = {
        let journal = run.journal();
        journal.bad_records.iter().flat_map(|command| records.positions(&command.id)).cloned().collect()
    };
    let system = &run.system;
    let operator = Operator::open(&system.log, &system.stores)?;
    let started = Instant::now();
    let mut violations = Vec::new();
    loop {
        let status = operator.status(&projections::ALL).await;
        let partitions = || status.projections.iter().flat_map(|projection| &projection.partitions);
        if partitions().any(|partition| partition.dead_letters != Some(0)) {
            discard_all(run, &bad, &mut violations).await?;
        } else if partitions().all(|partition| partition.lag == Some(0)) {
            break;
        }
        if !violations.is_empty() {
            return Ok(violations);
        }
        if started.elapsed() > DISCARD_TIMEOUT {
            bail!("the projections did not reach the end of the log without parked keys in time:\n{status}");
        }
        resume_all(run).await?;
        sleep(POLL_INTERVAL).await;
    }
    violations.extend(missing_discards(run, &bad).await?);
    Ok(violations)
}

/// Resumes every projection that is paused or stopped.
async fn resume_all(run: &Run) -> anyhow::Result<()> {
    let desired = desired_state::read(&run.system.tables).await?;
    for projection in projections::ALL {
        run.resume_if_stopped(projection).await?;
        if desired.get(projection.name()).is_some_and(|desired| desired.run_state == RunState::Pause) {
            run.operator().run_until_success(&["resume", projection.name()]).await?;
        }
    }
    Ok(())
}

/// Discards the bad record of every parked key: the projections in parallel, the keys of one projection in turn.
async fn discard_all(
    run: &Run,
    bad: &BTreeSet<LogPosition>,
    violations: &mut Vec<String>,
) -> anyhow::Result<()> {
    let output = run.operator().run_until_success(&["dead-letters", "list", "--json"]).await?;
    let mut by_projection: BTreeMap<String, Vec<ParkedKey>> = BTreeMap::new();
    for parked in parse_parked_keys(&output)? {
        if !is_bad(&parked, bad) || parked.class != "undecodable" {
            violations.push(format!("a valid record is a dead letter, or the class is wrong: {parked:?}"));
            continue;
        }
        by_projection.entry(parked.projection.clone()).or_default().push(parked);
    }
    let discarded = by_projection.into_values().map(async |keys| {
        for parked in keys {
            discard_key(run, parked, bad).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(discarded).await.map(drop)
}

/// Discards the bad record of a parked key, and the next ones of the key.
async fn discard_key(run: &Run, parked: ParkedKey, bad: &BTreeSet<LogPosition>) -> anyhow::Result<()> {
    let mut next = Some(parked);
    while let Some(parked) = next.take() {
        match run.discard(&parked, None).await? {
            CommandResult::Refused(output) => {
                next = next_first_offset(&output)
                    .map(|first_offset| ParkedKey { first_offset, ..parked })
                    .filter(|next| is_bad(next, bad));
                // A broker that was killed a moment ago may be slow. The discard is repeated until the timeout of all.
                if next.is_none() {
                    run.journal().record_refusal("discard", &output);
                }
            }
            CommandResult::Succeeded(_) | CommandResult::Killed => {}
        }
    }
    Ok(())
}

/// The offset of the key's next bad record, from the output of a discard that leaves the key parked.
fn next_first_offset(output: &str) -> Option<i64> {
    output.split_once(STAYS_PARKED)?.1.split_whitespace().next()?.parse().ok()
}

fn is_bad(parked: &ParkedKey, bad: &BTreeSet<LogPosition>) -> bool {
    let position = LogPosition::before(&format!("{}:{}", parked.partition, parked.first_offset + 1));
    position.is_some_and(|position| bad.contains(&position))
}

/// Verifies that every projection of a stream has discarded exactly the stream's bad records.
async fn missing_discards(run: &Run, bad: &BTreeSet<LogPosition>) -> anyhow::Result<Vec<String>> {
    let system = &run.system;
    let topics = Topics::new(&system.stores.namespace);
    let log = Log { brokers: system.log.kafka_brokers.clone(), topics };
    let dead_letters = DeadLetterQueue::new(log.clone());
    let mut violations = Vec::new();
    for stream in Stream::ALL {
        if !bad.iter().any(|position| position.stream == stream.name()) {
            continue;
        }
        for Partition { number, .. } in log.ends(vec![stream]).await?.into_keys() {
            let is_here =
                |position: &&LogPosition| position.stream == stream.name() && position.partition == number;
            let expected: BTreeSet<i64> =
                bad.iter().filter(is_here).map(|position| position.offset).collect();
            for projection in folding(stream) {
                let found = dead_letters.discards(projection.name(), Partition { stream, number }).await?;
                if found != expected {
                    let name = projection.name();
                    violations.push(format!(
                        "{name} has discarded offsets {found:?} of {stream}:{number}, expected {expected:?}"
                    ));
                }
            }
        }
    }
    Ok(violations)
}

/// Rebuilds, without faults, every view whose rebuild began under faults; returns the violations.
pub(crate) async fn rebuild_all(run: &Run) -> anyhow::Result<Vec<String>> {
    let rebuilt: Vec<_> = run.journal().rebuilt.iter().copied().collect();
    run.journal().operator.fault_free_rebuilds += rebuilt.len();
    let rebuilds = rebuilt.iter().map(async |name| {
        anyhow::Ok(match run.operator().run(&["rebuild", name], None).await? {
            CommandResult::Succeeded(_) => None,
            CommandResult::Refused(output) => Some(format!("the rebuild of {name} failed: {output}")),
            CommandResult::Killed => Some(format!("the rebuild of {name} timed out")),
        })
    });
    Ok(try_join_all(rebuilds).await?.into_iter().flatten().collect())
}

/// Violations after the rebuilds: keys and databases of old generations, and published generations that are not live.
pub(crate) async fn leftovers(system: &System) -> anyhow::Result<Vec<String>> {
    let desired = desired_state::read(&system.tables).await?;
    let mut violations: Vec<String> = sqlx::query_scalar(
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
                    .is_some_and(|generation| generation != live_generation(&desired, projection))
            };
            if projections::ALL.iter().any(is_left) {
                violations.push(format!("the key {name} is left"));
            }
        }
    }
    for projection in projections::ALL.iter().filter(|one| matches!(one.fold, Fold::Redis(_))) {
        let (name, live) = (projection.name(), live_generation(&desired, projection));
        until(&format!("generation {live} of {name} is published"), async || {
            let get = cmd("HGET").arg(keys.generations()).arg(name).take();
            redis.query::<Option<u32>>(&get).await.is_ok_and(|published| published == Some(live))
        })
        .await?;
    }
    Ok(violations)
}

fn live_generation(desired: &DesiredStates, projection: &Projection) -> u32 {
    desired.get(projection.name()).cloned().unwrap_or_default().generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discard_output_names_the_next_bad_record() {
        let output = "likes:2 key 2: 43 records stay parked from offset 18 on, undecodable: no type";
        assert_eq!(next_first_offset(output), Some(18));
        assert_eq!(next_first_offset("likes:2 key 2: all records folded"), None);
    }
}
