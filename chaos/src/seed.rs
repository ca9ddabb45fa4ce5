//! The run of one seed: starts a system, injects the faults under load, ends them, and verifies the result.

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
    fault::{Fault, PlannedFault},
    inject::inject,
    instance::Crash,
    ledger::{Command, Counts},
    load::LoadGenerator,
    log::Records,
    media::VideoProducer,
    plan::Plan,
    recovery,
    run::{OperatorStats, Run},
    stack::{Stack, Store},
    system::{Environment, System},
    wait::until,
};

/// The shortest duration of the load.
const LOAD: Duration = Duration::from_secs(10);
/// How long the load goes on after the last fault.
const LOAD_AFTER_FAULTS: Duration = Duration::from_millis(500);
/// Timeout of a seed.
const TIMEOUT: Duration = Duration::from_mins(6);

/// The outcome of a seed.
pub(crate) struct Outcome {
    /// The seed.
    pub(crate) seed: u64,
    /// Its plan.
    pub(crate) plan: Plan,
    /// The commands by outcome.
    pub(crate) counts: Counts,
    /// Records in the log.
    pub(crate) records: usize,
    /// Compared keys and rows.
    pub(crate) lines: usize,
    /// Keys and rows that differ from the log.
    pub(crate) differences: usize,
    /// What the operator did.
    pub(crate) operator: OperatorStats,
    /// Refused operator commands, with the reasons.
    pub(crate) refusals: Vec<String>,
    /// The crashes, each with its process.
    pub(crate) crashes: Vec<(String, Crash)>,
    /// Violated expectations, one sentence each.
    pub(crate) violations: Vec<String>,
    /// The duration.
    pub(crate) took: Duration,
}

/// Runs a seed. Every error is a violation of the outcome; a failed seed keeps its processes' logs in the folder.
pub(crate) async fn run(seed: u64, environment: &Environment, stack: &Arc<Stack>, folder: &Path) -> Outcome {
    let started = Instant::now();
    let plan = Plan::of(seed);
    let mut outcome = Outcome {
        seed,
        plan,
        counts: Counts::default(),
        records: 0,
        lines: 0,
        differences: 0,
        operator: OperatorStats::default(),
        refusals: Vec::new(),
        crashes: Vec::new(),
        violations: Vec::new(),
        took: Duration::ZERO,
    };
    let result = timeout(TIMEOUT, run_system(&mut outcome, environment, stack, folder)).await;
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => outcome.violations.push(format!("{error:#}")),
        Err(_) => outcome.violations.push(format!("timed out after {} s", TIMEOUT.as_secs())),
    }
    outcome.took = started.elapsed();
    outcome
}

async fn run_system(
    outcome: &mut Outcome,
    environment: &Environment,
    stack: &Arc<Stack>,
    folder: &Path,
) -> anyhow::Result<()> {
    // The previous seed may have left stores suspended or down.
    for store in Store::ALL {
        stack.resume(store);
    }
    stack.up().await?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let name = format!("c{}_{}", outcome.seed, Uuid::now_v7().simple());
    let system = System::start(environment, &outcome.plan, &name, folder)
        .await
        .context("failed to start the system")?;
    let run = Run::new(system, stack.clone())?;

    let commands = run_load(outcome, &run).await;
    let verified = match commands {
        Ok(commands) => verify(outcome, &run, &commands).await,
        Err(error) => Err(error),
    };
    outcome.operator = run.journal().operator;
    outcome.refusals.clone_from(&run.journal().refusals);
    outcome.crashes.clone_from(&run.system.crashes.lock().unwrap_or_else(PoisonError::into_inner));
    for (process, crash) in &outcome.crashes {
        if let Crash::Unexpected(why) = crash {
            outcome.violations.push(format!("{process} exited unexpectedly: {why}"));
        }
    }
    verified?;
    if outcome.violations.is_empty() {
        delete_namespace(&run.system).await?;
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Deletes a system's topics and tables, because each topic prolongs the restart of a killed broker.
async fn delete_namespace(system: &System) -> anyhow::Result<()> {
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

/// Injects the faults under load; returns the commands.
async fn run_load(outcome: &Outcome, run: &Run) -> anyhow::Result<Vec<Command>> {
    let system = &run.system;
    let mut load = LoadGenerator::new(system)?;
    let mut commands = load.register().await?;
    let mut media = VideoProducer::new(system, load.users())?;
    let (videos, appended) = media.publish_initial().await?;
    commands.extend(appended);
    until_published(system, videos.len()).await?;
    load.set_videos(videos);
    _ = run.users.set(load.users().to_vec());

    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let faults = async {
        let (injected, ()) = tokio::join!(inject(run, &outcome.plan.faults), sleep(LOAD));
        injected?;
        sleep(LOAD_AFTER_FAULTS).await;
        stop.cancel();
        anyhow::Ok(())
    };
    let load = Arc::new(load).run(outcome.seed, stop.clone());
    let ((), sent, appended) = tokio::try_join!(faults, load, media.run(stop.clone()))?;
    commands.extend(sent);
    commands.extend(appended);
    commands.extend(run.journal().bad_records.iter().cloned());
    Ok(commands)
}

/// Waits until a view contains the initial videos: command-api refuses likes of others.
async fn until_published(system: &System, videos: usize) -> anyhow::Result<()> {
    until("the initial videos are published", async || {
        let published: sqlx::Result<i64> =
            sqlx::query_scalar("SELECT COUNT(*) FROM videos WHERE published_ms > 0")
                .fetch_one(&system.tables)
                .await;
        published.is_ok_and(|published| usize::try_from(published).is_ok_and(|published| published >= videos))
    })
    .await
}

/// Compares the log with the acknowledged commands, and the views with the log.
async fn verify(outcome: &mut Outcome, run: &Run, commands: &[Command]) -> anyhow::Result<()> {
    let system = &run.system;
    outcome.counts = Counts::of(commands);
    system.end_faults().await?;
    system.quiesce().await?;
    let records = Records::read(&system.log.kafka_brokers, &system.stores.namespace).await?;
    outcome.violations.extend(records.violations(commands));
    outcome.violations.extend(recovery::discard_bad_records(run, &records).await?);
    compare(outcome, system).await?;
    let has_rebuilt = !run.journal().rebuilt.is_empty();
    // A fault-free rebuild also finds what was wrong before it.
    outcome.violations.extend(recovery::rebuild_all(run).await?);
    outcome.violations.extend(recovery::leftovers(system).await?);
    if has_rebuilt {
        compare(outcome, system).await?;
    }
    // A rebuild that compares a view which loses data meanwhile may find any difference.
    let loses_data = |planned: &PlannedFault| matches!(planned.fault, Fault::Flush | Fault::Rewind { .. });
    if !outcome.plan.faults.iter().any(loses_data) {
        outcome.violations.append(&mut run.journal().rebuild_differences);
    }
    Ok(())
}

/// Compares the views with the log.
async fn compare(outcome: &mut Outcome, system: &System) -> anyhow::Result<()> {
    let report = audit::audit(&system.log, &system.stores).await.context("the audit failed")?;
    outcome.records = report.records;
    outcome.lines += report.lines;
    outcome.differences += report.difference_count;
    outcome.violations.extend(report.differences.iter().map(ToString::to_string));
    Ok(())
}
