//! One seed: a system is started, suffers, heals, and is looked at.

use std::{
    fs,
    path::Path,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use sqlx::AssertSqlSafe;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vidlog_events::{Stream, Topics};
use vidlog_projectors::audit;
use vidlog_service_kit::config::Stores;

use crate::{
    fault::{Fault, Planned},
    inject::{Stage, inject},
    instance::Death,
    ledger::{Command, Counts},
    load::Load,
    log::Records,
    operate::Deeds,
    plan::Plan,
    settle,
    stack::{Stack, Store},
    studio::Studio,
    system::{Surroundings, System},
    until,
};

/// How long commands are given, at least.
const LOAD: Duration = Duration::from_secs(10);
/// How long they are given after the last fault.
const AFTER: Duration = Duration::from_millis(500);
/// How long a seed may take in all.
const BOUND: Duration = Duration::from_mins(6);

/// What came of a seed.
pub(crate) struct Outcome {
    /// The seed.
    pub(crate) seed: u64,
    /// What it decided.
    pub(crate) plan: Plan,
    /// The commands.
    pub(crate) counts: Counts,
    /// Records in the log.
    pub(crate) records: usize,
    /// Keys and rows that were compared.
    pub(crate) lines: usize,
    /// Keys and rows that differ.
    pub(crate) differences: usize,
    /// What operators did.
    pub(crate) deeds: Deeds,
    /// What operators were refused, and why.
    pub(crate) refusals: Vec<String>,
    /// How processes died, each with its name.
    pub(crate) deaths: Vec<(String, Death)>,
    /// Everything that is wrong, in words.
    pub(crate) faults: Vec<String>,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Runs a seed. Whatever goes wrong is in the outcome; then the logs of the processes are kept in the folder.
pub(crate) async fn run(seed: u64, around: &Surroundings, stack: &Arc<Stack>, folder: &Path) -> Outcome {
    let begun = Instant::now();
    let plan = Plan::of(seed);
    let mut outcome = Outcome {
        seed,
        plan,
        counts: Counts::default(),
        records: 0,
        lines: 0,
        differences: 0,
        deeds: Deeds::default(),
        refusals: Vec::new(),
        deaths: Vec::new(),
        faults: Vec::new(),
        took: Duration::ZERO,
    };
    let ran = timeout(BOUND, suffer(&mut outcome, around, stack, folder)).await;
    match ran {
        Ok(Ok(())) => {}
        Ok(Err(error)) => outcome.faults.push(format!("{error:#}")),
        Err(_) => outcome.faults.push(format!("it was not over after {} s", BOUND.as_secs())),
    }
    outcome.took = begun.elapsed();
    outcome
}

async fn suffer(
    outcome: &mut Outcome,
    around: &Surroundings,
    stack: &Arc<Stack>,
    folder: &Path,
) -> anyhow::Result<()> {
    // The seed before may have ended anywhere.
    for store in Store::ALL {
        stack.wake(store);
    }
    stack.up().await?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let name = format!("c{}_{}", outcome.seed, Uuid::now_v7().simple());
    let system =
        System::start(around, &outcome.plan, &name, folder).await.context("the system can't be started")?;
    let stage = Stage::new(system, stack.clone())?;

    let commands = live(outcome, &stage).await;
    let judged = match commands {
        Ok(commands) => judge(outcome, &stage, &commands).await,
        Err(error) => Err(error),
    };
    outcome.deeds = stage.notes().deeds;
    outcome.refusals.clone_from(&stage.notes().refusals);
    outcome.deaths.clone_from(&stage.system.deaths.lock().unwrap_or_else(PoisonError::into_inner));
    for (process, death) in &outcome.deaths {
        if let Death::ByItself(why) = death {
            outcome.faults.push(format!("{process} ended by itself: {why}"));
        }
    }
    judged?;
    if outcome.faults.is_empty() {
        forget(&stage.system).await?;
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Removes a system's topics and tables: the more there are, the longer a broker that was killed takes to come back.
async fn forget(system: &System) -> anyhow::Result<()> {
    let Stores { namespace, .. } = &system.stores;
    let names = Topics::new(namespace);
    let topics: Vec<_> =
        Stream::ALL.into_iter().flat_map(|stream| [names.name(stream), names.dead_letters(stream)]).collect();
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &system.log.kafka_brokers).create()?;
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    admin.delete_topics(&topics, &AdminOptions::new()).await?;
    sqlx::query(AssertSqlSafe(format!("DROP DATABASE {namespace}"))).execute(&system.tables).await?;
    Ok(())
}

/// Commands under faults; then the faults end. Returns the commands.
async fn live(outcome: &Outcome, stage: &Stage) -> anyhow::Result<Vec<Command>> {
    let system = &stage.system;
    let mut load = Load::new(system)?;
    let mut commands = load.register().await?;
    let mut studio = Studio::open(system, load.users())?;
    let (videos, made) = studio.premiere().await?;
    commands.extend(made);
    until_published(system, videos.len()).await?;
    load.show(videos);
    _ = stage.users.set(load.users().to_vec());

    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let suffering = async {
        let (injected, ()) = tokio::join!(inject(stage, &outcome.plan.faults), sleep(LOAD));
        injected?;
        sleep(AFTER).await;
        stop.cancel();
        anyhow::Ok(())
    };
    let load = Arc::new(load).run(outcome.seed, stop.clone());
    let ((), given, made) = tokio::try_join!(suffering, load, studio.run(stop.clone()))?;
    commands.extend(given);
    commands.extend(made);
    commands.extend(stage.notes().poisoned.iter().cloned());
    Ok(commands)
}

/// Waits until the first videos are in a view: what is not there yet can't be liked.
async fn until_published(system: &System, videos: usize) -> anyhow::Result<()> {
    until("the first videos are published", async || {
        let published: sqlx::Result<i64> =
            sqlx::query_scalar("SELECT COUNT(*) FROM videos WHERE published_ms > 0")
                .fetch_one(&system.tables)
                .await;
        published.is_ok_and(|published| usize::try_from(published).is_ok_and(|published| published >= videos))
    })
    .await
}

/// Compares the log with what was acknowledged, and the views with the log.
async fn judge(outcome: &mut Outcome, stage: &Stage, commands: &[Command]) -> anyhow::Result<()> {
    let system = &stage.system;
    outcome.counts = Counts::of(commands);
    system.heal().await?;
    system.quiesce().await?;
    let records = Records::read(&system.log.kafka_brokers, &system.stores.namespace).await?;
    outcome.faults.extend(records.faults(commands));
    outcome.faults.extend(settle::clear(stage, &records).await?);
    compare(outcome, system).await?;
    let has_rebuilt = !stage.notes().rebuilt.is_empty();
    // What is wrong before it is still to be seen, by the rebuild as well.
    outcome.faults.extend(settle::rebuild_all(stage).await?);
    outcome.faults.extend(settle::remains(system).await?);
    if has_rebuilt {
        compare(outcome, system).await?;
    }
    // Of a view that lost what it had while it was compared, anything may have been found.
    let loses = |planned: &Planned| matches!(planned.fault, Fault::Flush | Fault::Rewind { .. });
    if !outcome.plan.faults.iter().any(loses) {
        outcome.faults.append(&mut stage.notes().differing);
    }
    Ok(())
}

/// Compares the views with the log.
async fn compare(outcome: &mut Outcome, system: &System) -> anyhow::Result<()> {
    let report = audit::audit(&system.log, &system.stores).await.context("the audit failed")?;
    outcome.records = report.records;
    outcome.lines += report.lines;
    outcome.differences += report.differences.len();
    outcome.faults.extend(report.differences.iter().map(ToString::to_string));
    Ok(())
}
