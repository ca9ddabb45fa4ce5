//! Puts side by side what is known of each partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{LastError, PartitionStatus, ProjectionStatus, Report, State, Status, oldest::Place};
use vidlog_projection_engine::{
    desired_state::{AllWanted, Wish},
    log::{Offsets, Partition},
    view::Projection,
};

/// What someone says, or why not.
pub(super) type Answer<T> = Result<T, String>;

/// All that is known.
pub(super) struct Known {
    pub(super) now_ms: i64,
    pub(super) wanted: Answer<AllWanted>,
    pub(super) reports: Answer<Vec<Report>>,
    pub(super) ends: Answer<Offsets>,
    /// Of each projection.
    pub(super) positions: BTreeMap<&'static str, Answer<Offsets>>,
    /// Of the records at the positions that are behind.
    pub(super) times: Answer<BTreeMap<Place, i64>>,
}

impl Known {
    /// The positions after which the log goes on.
    pub(super) fn behind(&self) -> BTreeSet<Place> {
        let ends = self.ends.iter().flatten();
        let ends: BTreeMap<&Partition, &i64> = ends.collect();
        let positions = self.positions.values().flatten().flatten();
        let is_behind = |(partition, position): &(&Partition, &i64)| {
            ends.get(partition).is_some_and(|end| position < end)
        };
        positions.filter(is_behind).map(|(partition, position)| (*partition, *position)).collect()
    }
}

/// How some projections are, by what is known.
pub(super) fn status(known: &Known, projections: &[Projection]) -> Status {
    let mut unknown: Vec<String> = Vec::new();
    let answers = [
        known.wanted.as_ref().err(),
        known.reports.as_ref().err(),
        known.ends.as_ref().err(),
        known.times.as_ref().err(),
    ];
    for why in answers.into_iter().flatten() {
        if !unknown.contains(why) {
            unknown.push(why.clone());
        }
    }
    let projections = projections.iter().map(|projection| of_projection(known, projection)).collect();
    Status { projections, unknown }
}

fn of_projection(known: &Known, projection: &Projection) -> ProjectionStatus {
    let name = projection.name();
    let wanted = known.wanted.as_ref().ok().map(|wanted| wanted.get(name).cloned().unwrap_or_default());
    let positions = known.positions.get(name);
    let reports: BTreeMap<Partition, &Report> = known
        .reports
        .iter()
        .flatten()
        .filter(|report| report.projection == name)
        .map(|report| (report.partition, report))
        .collect();
    let folds = |partition: &Partition| projection.streams().any(|stream| stream == partition.stream);
    let ends = known.ends.iter().flatten().map(|(partition, _)| *partition).filter(folds);
    let partitions: BTreeSet<Partition> = ends.chain(reports.keys().copied()).collect();
    let of_partition = |partition: Partition| {
        let position = positions.and_then(|answer| answer.as_ref().ok()?.get(&partition).copied());
        let (lag, lag_seconds) = lag(known, partition, position);
        let report = reports.get(&partition).copied();
        let (state, why) = state(known, wanted.as_ref().map(|wanted| &wanted.wish), report);
        PartitionStatus {
            partition: partition.field(),
            position,
            end: known.ends.iter().find_map(|ends| ends.get(&partition).copied()),
            lag,
            lag_seconds,
            state,
            why,
            records_per_second: report.map(|report| report.records_per_second),
            instance: report.map(|report| report.instance.clone()),
            dead_letters: None,
            last_error: report
                .and_then(|report| report.last_error.clone())
                .map(|(message, ago_ms)| LastError { message, seconds_ago: seconds(ago_ms) }),
        }
    };
    ProjectionStatus {
        name,
        generation: wanted.as_ref().map(|wanted| wanted.generation),
        unknown: positions.and_then(|answer| answer.as_ref().err().cloned()),
        partitions: partitions.into_iter().map(of_partition).collect(),
    }
}

/// How far a partition is behind, in records and in time.
fn lag(known: &Known, partition: Partition, position: Option<i64>) -> (Option<i64>, Option<f64>) {
    let end = known.ends.iter().find_map(|ends| ends.get(&partition));
    let Some((end, position)) = end.zip(position) else {
        return (None, None);
    };
    // The view may have gone on since the log was asked.
    let lag = (end - position).max(0);
    if lag == 0 {
        return (Some(0), Some(0.0));
    }
    let time = known.times.iter().find_map(|times| times.get(&(partition, position)));
    (Some(lag), time.map(|time| seconds(known.now_ms - time)))
}

/// How a partition is: what its process says, unless that is past or there is none.
fn state(known: &Known, wish: Option<&Wish>, report: Option<&Report>) -> (State, Option<String>) {
    match (wish, report) {
        (_, Some(Report { state: state @ (State::Running | State::Blocked), why, .. })) => {
            (*state, why.clone())
        }
        (Some(Wish::Pause), _) => (State::Paused, None),
        (Some(Wish::Hold), _) => (State::Held, None),
        (Some(Wish::Stopped(why)), _) => (State::Stopped, Some(why.clone())),
        (Some(Wish::Run), Some(Report { state: State::Waiting, why, .. })) => (State::Waiting, why.clone()),
        (Some(Wish::Run), Some(_)) => (State::Waiting, Some("about to start".to_owned())),
        (Some(Wish::Run), None) if known.reports.is_ok() => (State::Unassigned, None),
        (Some(Wish::Run) | None, _) => (State::Unknown, None),
    }
}

fn seconds(ms: i64) -> f64 {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default()).as_secs_f64()
}
