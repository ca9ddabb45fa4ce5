//! Combines the collected data into the status of each partition.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    LastError, PartitionStatus, ProjectionStatus, Report, State, Status,
    oldest::{LogPosition, Times},
};
use vidlog_projection_engine::{
    desired_state::{DesiredStates, RunState},
    log::{Extent, Offsets, Partition},
    view::Projection,
};

/// A source's data, or the reason why it is unavailable.
pub(super) type Fetched<T> = Result<T, String>;

/// Data of all sources.
pub(super) struct Sources {
    pub(super) now_ms: i64,
    pub(super) desired: Fetched<DesiredStates>,
    pub(super) reports: Fetched<Vec<Report>>,
    pub(super) extents: Fetched<BTreeMap<Partition, Fetched<Extent>>>,
    /// Visible offsets by projection.
    pub(super) positions: BTreeMap<&'static str, Fetched<Offsets>>,
    /// Times of the records at [`Sources::behind`].
    pub(super) times: Fetched<Times>,
}

/// How far the clocks of processes may differ: the margin of readers (`read-models/src/staleness.rs`).
const CLOCK_TOLERANCE_MS: i64 = 30_000;

impl Sources {
    /// Returns the positions that are before the end of their partition, each with that end.
    pub(super) fn behind(&self) -> BTreeMap<LogPosition, i64> {
        let positions = self.positions.values().flatten().flatten();
        let behind = positions.filter_map(|(partition, position)| {
            let extent = self.extent(*partition)?;
            // Retention deleted the records before the log start offset.
            let position_in_log = (*partition, extent.start.max(*position));
            (position_in_log.1 < extent.end).then_some((position_in_log, extent.end))
        });
        behind.collect()
    }

    fn extent(&self, partition: Partition) -> Option<Extent> {
        self.extents.as_ref().ok()?.get(&partition)?.as_ref().ok().copied()
    }
}

/// Derives the status of some projections.
pub(super) fn status(sources: &Sources, projections: &[Projection]) -> Status {
    let mut unknown: Vec<String> = Vec::new();
    let results = [
        sources.desired.as_ref().err(),
        sources.reports.as_ref().err(),
        sources.extents.as_ref().err(),
        sources.times.as_ref().err(),
    ];
    let unreadable = sources.extents.iter().flatten().filter_map(|(_, extent)| extent.as_ref().err());
    for why in results.into_iter().flatten().chain(unreadable) {
        if !unknown.contains(why) {
            unknown.push(why.clone());
        }
    }
    let projections = projections.iter().map(|projection| of_projection(sources, projection)).collect();
    Status { projections, unknown }
}

fn of_projection(sources: &Sources, projection: &Projection) -> ProjectionStatus {
    let name = projection.name();
    let desired = sources.desired.as_ref().ok().map(|desired| desired.get(name).cloned().unwrap_or_default());
    let positions = sources.positions.get(name);
    let reports: BTreeMap<Partition, &Report> = sources
        .reports
        .iter()
        .flatten()
        .filter(|report| report.projection == name)
        .map(|report| (report.partition, report))
        .collect();
    let folds = |partition: &Partition| projection.streams().any(|stream| stream == partition.stream);
    let ends = sources.extents.iter().flatten().map(|(partition, _)| *partition).filter(folds);
    let partitions: BTreeSet<Partition> = ends.chain(reports.keys().copied()).collect();
    let of_partition = |partition: Partition| {
        let position = positions.and_then(|fetched| fetched.as_ref().ok()?.get(&partition).copied());
        let (lag, lag_seconds) = lag(sources, partition, position);
        let report = reports.get(&partition).copied();
        let (state, why) = state(sources, desired.as_ref().map(|desired| &desired.run_state), report);
        PartitionStatus {
            partition: partition.id(),
            position,
            end: sources.extent(partition).map(|extent| extent.end),
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
        generation: desired.as_ref().map(|desired| desired.generation),
        unknown: positions.and_then(|fetched| fetched.as_ref().err().cloned()),
        partitions: partitions.into_iter().map(of_partition).collect(),
    }
}

/// Returns the lag of a partition in offsets and in seconds.
///
/// It is zero if no record follows the position, even if offsets do: transaction markers occupy offsets, too.
/// If the position is between zero and the log start offset, retention deleted records that the view does not
/// have; these count as lag.
fn lag(sources: &Sources, partition: Partition, position: Option<i64>) -> (Option<i64>, Option<f64>) {
    let Some((Extent { start, end }, position)) = sources.extent(partition).zip(position) else {
        return (None, None);
    };
    let next = start.max(position);
    let has_missed = 0 < position && position < start;
    let time = sources.times.iter().find_map(|times| times.get(&(partition, next)).copied());
    // The view may have passed the end since the end was read.
    if (next >= end || time == Some(None)) && !has_missed {
        return (Some(0), Some(0.0));
    }
    let lag = end - if has_missed { position } else { next };
    (Some(lag), time.flatten().and_then(|time| age_seconds(sources.now_ms - time)))
}

/// Derives the state of a partition and its reason. A report of running or blocked counts in any case;
/// otherwise the desired state takes precedence over the report, which may be older.
fn state(
    sources: &Sources,
    run_state: Option<&RunState>,
    report: Option<&Report>,
) -> (State, Option<String>) {
    match (run_state, report) {
        (_, Some(Report { state: state @ (State::Running | State::Blocked), why, .. })) => {
            (*state, why.clone())
        }
        (Some(RunState::Pause), _) => (State::Paused, None),
        (Some(RunState::Hold), _) => (State::Held, None),
        (Some(RunState::Stopped(why)), _) => (State::Stopped, Some(why.clone())),
        (Some(RunState::Run), Some(Report { state: State::Waiting, why, .. })) => {
            (State::Waiting, why.clone())
        }
        (Some(RunState::Run), Some(_)) => (State::Waiting, Some("about to start".to_owned())),
        (Some(RunState::Run), None) if sources.reports.is_ok() => (State::Unassigned, None),
        (Some(RunState::Run) | None, _) => (State::Unknown, None),
    }
}

/// Returns the age of a record; `None` if its time is in the future by more than clocks may differ: the clock of its writer is
/// wrong, so the age is unknown.
fn age_seconds(ms: i64) -> Option<f64> {
    (ms >= -CLOCK_TOLERANCE_MS).then(|| seconds(ms))
}

fn seconds(ms: i64) -> f64 {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use vidlog_events::Stream;

    use super::*;

    const PARTITION: Partition = Partition { stream: Stream::Likes, number: 0 };

    fn lag_at(position: i64, extent: (i64, i64), times: &[(i64, Option<i64>)]) -> (Option<i64>, Option<f64>) {
        let extent = Extent { start: extent.0, end: extent.1 };
        let sources = Sources {
            now_ms: 10_000,
            desired: Ok(BTreeMap::new()),
            reports: Ok(Vec::new()),
            extents: Ok([(PARTITION, Ok(extent))].into()),
            positions: BTreeMap::new(),
            times: Ok(times.iter().map(|(offset, time)| ((PARTITION, *offset), *time)).collect()),
        };
        lag(&sources, PARTITION, Some(position))
    }

    #[test]
    fn lag_counts_what_the_log_still_has() {
        assert_eq!(lag_at(40, (0, 40), &[]), (Some(0), Some(0.0)));
        assert_eq!(lag_at(42, (0, 40), &[]), (Some(0), Some(0.0)));
        assert_eq!(lag_at(30, (0, 40), &[(30, Some(9_000))]), (Some(10), Some(1.0)));
        assert_eq!(lag_at(30, (0, 40), &[]), (Some(10), None), "the broker did not send it in time");
        assert_eq!(lag_at(30, (0, 40), &[(30, None)]), (Some(0), Some(0.0)), "only markers are left");
        assert_eq!(lag_at(0, (30, 40), &[(30, Some(9_000))]), (Some(10), Some(1.0)), "it begins at 30");
        assert_eq!(lag_at(0, (40, 40), &[]), (Some(0), Some(0.0)), "all is deleted");
        assert_eq!(lag_at(20, (30, 40), &[(30, Some(9_000))]), (Some(20), Some(1.0)), "it missed ten");
        assert_eq!(lag_at(20, (40, 40), &[]), (Some(20), None), "it missed all");
    }

    #[test]
    fn record_from_the_future_has_an_unknown_age() {
        assert_eq!(lag_at(30, (0, 40), &[(30, Some(10_500))]), (Some(10), Some(0.0)));
        assert_eq!(lag_at(30, (0, 40), &[(30, Some(60_000))]), (Some(10), None));
    }

    #[test]
    fn unreadable_partition_hides_only_its_own_lag() {
        let other = Partition { number: 1, ..PARTITION };
        let likes = crate::projections::find("likes").unwrap();
        let sources = Sources {
            now_ms: 10_000,
            desired: Ok(BTreeMap::new()),
            reports: Ok(Vec::new()),
            extents: Ok(
                [(PARTITION, Err("no leader".to_owned())), (other, Ok(Extent { start: 0, end: 4 }))].into()
            ),
            positions: [("likes", Ok([(PARTITION, 4), (other, 4)].into()))].into(),
            times: Ok(BTreeMap::new()),
        };
        let status = status(&sources, &[likes]);
        let lags = status.projections[0].partitions.iter().map(|partition| partition.lag);
        assert_eq!(lags.collect::<Vec<_>>(), [None, Some(0)]);
        assert_eq!(status.unknown, ["no leader"]);
    }
}
