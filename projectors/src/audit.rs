//! Compares the live views with the log, which it folds without the projections' code.
//!
//! Compares every member of every Redis key and every row, in bounded memory: larger data is sorted in
//! temporary files. Each view is compared at one position of its own, to which the log is folded, so events
//! may arrive meanwhile.

mod excluded;
mod fold;
mod model;
mod rounds;
mod snapshot;
mod touched;
mod view;

use std::time::Duration;

use anyhow::{Context, ensure};
use futures::{TryStreamExt, future::try_join_all};
use serde::Serialize;
use tokio::time::{sleep, timeout};
use vidlog_events::Stream;
use vidlog_projection_engine::{
    dead_letters::DeadLetterQueue,
    desired_state::{self, DesiredState, DesiredStates, RunState},
    log::{Log, Offsets, Partition},
    store::{Position, Stores},
    view::Projection,
};
use vidlog_schemas::projections::View as StoreKind;
use vidlog_service_kit::config;

use self::{
    fold::{Folding, fold_on},
    rounds::Rounds,
    snapshot::{ComparedView, compare_tables},
    view::View,
};
pub use self::{model::Model, touched::touched};
pub use crate::comparison::Difference;
use crate::{
    comparison::{Lines, compare, read_views, rows, snapshot_connection},
    projections,
};

/// Timeout for the views to reach the end of the log.
const CATCH_UP: Duration = Duration::from_mins(1);
/// Interval between two reads of their positions.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes of changes that the folds of all projections hold in memory together.
const FOLD_MEMORY: usize = 64 << 20;
/// Bytes of lines of all views in Redis that are held in memory together.
const FOUND_MEMORY: usize = 48 << 20;

/// The result of an audit.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Records folded.
    pub records: usize,
    /// Number of Redis keys and MySQL rows that were expected.
    pub lines: usize,
    /// The first differences of each projection.
    pub differences: Vec<Difference>,
    /// Number of differences, including those that are not listed.
    pub difference_count: usize,
    /// Results by projection.
    pub projections: Vec<Audited>,
}

/// The result of the audit of one projection.
#[derive(Debug, Serialize)]
pub struct Audited {
    /// Name of the projection.
    pub name: &'static str,
    /// Number of Redis keys or MySQL rows that were expected.
    pub lines: usize,
    /// Number of Redis keys or MySQL rows that differ.
    pub differences: usize,
}

/// Audits all views of a namespace.
pub async fn audit(log: &config::Kafka, stores: &config::Stores) -> anyhow::Result<Report> {
    let target = Stores::open(stores, 4)?;
    let log = Log::new(log, &stores.namespace);
    audit_some(&log, &target, &projections::ALL).await
}

/// Audits the views of some projections. Running ones have to reach the current end of the log first; each
/// view is compared at its position after that.
pub async fn audit_some(log: &Log, target: &Stores, projections: &[Projection]) -> anyhow::Result<Report> {
    let desired_states = read_desired(target).await?;
    let mut target = target.clone();
    for projection in projections {
        target.keys =
            target.keys.of_generation(&projection.catalogued, of(&desired_states, projection).generation);
    }
    let streams = Stream::ALL.into_iter().filter(|stream| {
        projections.iter().any(|projection| projection.streams().any(|folded| folded == *stream))
    });
    let ends = log.ends(streams.collect()).await?;
    let is_to_run = |projection: &&Projection| {
        matches!(of(&desired_states, projection).run_state, RunState::Run | RunState::Hold)
    };
    let running = projections.iter().filter(is_to_run);
    try_join_all(running.map(|projection| reach(&target, *projection, &ends))).await?;

    let partitions: Vec<Partition> = ends.into_keys().collect();
    let views = compare_views(log, &target, projections, &partitions).await?;
    let now = read_desired(&target).await?;
    ensure!(
        projections
            .iter()
            .all(|projection| of(&now, projection).generation == of(&desired_states, projection).generation),
        "another generation took over during the audit; run it again"
    );
    let mut report = Report { records: records(&views), ..Report::default() };
    for (projection, view) in projections.iter().zip(views) {
        report.add(projection, view)?;
    }
    Ok(report)
}

/// Compares the views of some projections, while nothing writes to them, with a model.
pub async fn compare_with_model(
    target: &Stores,
    projections: &[Projection],
    model: Model,
) -> anyhow::Result<Vec<Difference>> {
    let expected = model.into_lines(projections, &target.keys, FOLD_MEMORY)?;
    let mut found = Lines::new(FOUND_MEMORY);
    for (_, view) in read_views(target, projections, FOUND_MEMORY).await? {
        let mut lines = std::pin::pin!(view.into_stream());
        while let Some((key, content)) = lines.try_next().await? {
            found.set(&key, &content);
        }
    }
    let mut connection = snapshot_connection(&target.mysql).await?;
    for projection in projections {
        let mut lines = std::pin::pin!(rows(projection, &mut connection));
        while let Some((key, content)) = lines.try_next().await? {
            found.set(&key, &content);
        }
    }
    Ok(compare(expected.into_stream(), found.into_stream()).await?.differences)
}

/// Folds the log to the positions of some views, and compares each of them.
async fn compare_views(
    log: &Log,
    target: &Stores,
    projections: &[Projection],
    partitions: &[Partition],
) -> anyhow::Result<Vec<ComparedView>> {
    let dead_letters = DeadLetterQueue::new(log.clone());
    let (mut views, mut foldings) = (Vec::new(), Vec::new());
    for projection in projections {
        let partitions: Vec<Partition> = projection.partitions(partitions).collect();
        let memory = FOLD_MEMORY / projections.len().max(1);
        foldings.push(Folding::new(*projection, &partitions, &target.keys, memory));
        let store = target.view(*projection);
        views.push(View { store, dead_letters: dead_letters.clone(), partitions });
    }
    // The first pass may take long. The second folds what arrived meanwhile, so few lines are left to the
    // rounds.
    for _ in 0..2 {
        let mut steps = Vec::new();
        for (view, folding) in views.iter().zip(foldings) {
            steps.push(view.step(folding).await?);
        }
        ensure_log_has(log, &steps).await?;
        foldings = fold_on(log, steps).await?;
    }

    let mut found = read_views(target, projections, FOUND_MEMORY / projections.len().max(1)).await?;
    let mut compared = Vec::new();
    for (view, folding) in views.into_iter().zip(foldings) {
        compared.push(match view.projection().catalogued.view {
            StoreKind::MySql(_) => compare_tables(&view, log, folding).await?,
            StoreKind::Redis(_) => {
                let found = found.remove(view.projection().name()).context("a view was not read")?;
                Rounds::new(view, folding, found).converge(log).await?.compare().await?
            }
        });
    }
    Ok(compared)
}

/// Fails if the log lacks records that the views have folded.
async fn ensure_log_has(log: &Log, steps: &[fold::Step]) -> anyhow::Result<()> {
    let is_folded = |stream: &Stream| {
        steps.iter().flat_map(|(_, until)| until.keys()).any(|partition| partition.stream == *stream)
    };
    let ends = log.ends(Stream::ALL.into_iter().filter(is_folded).collect()).await?;
    for (partition, offset) in steps.iter().flat_map(|(_, until)| until) {
        let end = ends.get(partition).copied().unwrap_or_default();
        ensure!(
            *offset <= end,
            "a view is at offset {offset} of {}, but the log ends at {end}",
            partition.id()
        );
    }
    Ok(())
}

/// Returns the number of records of the partitions that any of the folds read.
fn records(views: &[ComparedView]) -> usize {
    let mut furthest = Offsets::new();
    for (partition, at) in views.iter().flat_map(|view| &view.offsets) {
        let offset = furthest.entry(*partition).or_default();
        *offset = (*offset).max(*at);
    }
    usize::try_from(furthest.values().sum::<i64>()).unwrap_or_default()
}

async fn read_desired(target: &Stores) -> anyhow::Result<DesiredStates> {
    desired_state::read(&target.mysql).await.context("failed to read the live generations from MySQL")
}

fn of(all: &DesiredStates, projection: &Projection) -> DesiredState {
    all.get(projection.name()).cloned().unwrap_or_default()
}

impl Report {
    fn add(&mut self, projection: &Projection, view: ComparedView) -> anyhow::Result<()> {
        let compared = view.compared;
        ensure!(
            compared.count == 0 || !view.is_unconfirmed,
            "{0} differs, but it was being rebuilt, or its dead letters retried, at the same time; run it again after \
             that",
            projection.name()
        );
        let (lines, differences) = (compared.lines, compared.count);
        self.projections.push(Audited { name: projection.name(), lines, differences });
        self.lines += lines;
        self.difference_count += differences;
        self.differences.extend(compared.differences);
        Ok(())
    }
}

/// Waits until a projection has folded the log up to some ends.
async fn reach(target: &Stores, projection: Projection, ends: &Offsets) -> anyhow::Result<()> {
    let store = target.view(projection);
    let partitions: Vec<_> = projection.partitions(&ends.keys().copied().collect::<Vec<_>>()).collect();
    let reached = async {
        loop {
            let positions = store.positions(&partitions).await?;
            let is_there = |(position, partition): (&Position, &Partition)| {
                ends.get(partition).is_some_and(|end| position.lowest() >= *end)
            };
            if positions.iter().zip(&partitions).all(is_there) {
                return anyhow::Ok(());
            }
            sleep(CHECK_INTERVAL).await;
        }
    };
    timeout(CATCH_UP, reached)
        .await
        .with_context(|| format!("projection {} did not reach the end of the log", projection.name()))?
}
