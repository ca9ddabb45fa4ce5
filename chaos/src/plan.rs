//! What a seed determines: the faults with their times and targets, and the failpoints of each process.

use std::{
    collections::VecDeque,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use vidlog_events::Stream;
use vidlog_projectors::{
    projections,
    view::{Fold, Projection},
};
use vidlog_test_support::Condition;

use crate::{
    fault::{
        AfterKill, BadRecords, Defect, Exit, Failpoint, Fault, KillAt, PlannedFault, Process, StormRound,
    },
    stack::Store,
};

/// Projectors that always run.
pub(crate) const REGULAR: usize = 2;
/// Projectors that run during a rebalance storm only.
pub(crate) const EXTRA: usize = 2;
/// Faults of a seed.
const FAULTS: RangeInclusive<usize> = 6..=9;
/// When faults begin: late enough that commands are in flight.
const WINDOW_MS: Range<u64> = 200..8_000;
/// When Redis loses data: early, because the refill afterwards would hide earlier errors.
const LOSS_WINDOW_MS: Range<u64> = 200..2_500;
/// When Kafka goes down: late, because hardly any command succeeds without it.
const OUTAGE_WINDOW_MS: Range<u64> = 4_000..7_000;
/// How long a process is suspended: until its session has timed out and others have processed its partitions for a while.
const ZOMBIE_MS: Range<u64> = 4_500..6_500;

/// When a rebuild begins: early, because it takes ten seconds.
const REBUILD_WINDOW_MS: Range<u64> = 200..3_500;
/// Rebuilds of a seed at most: each slows the others down.
const REBUILDS: usize = 2;
/// How long after its start a rebuild is killed: mostly while it replays and compares, else after its switch.
const REBUILD_KILL_MS: [Range<u64>; 3] = [0..1_500, 500..3_000, 1_000..10_000];
/// Bad records in a row that stop their projections.
const STOPPING_RUN: RangeInclusive<usize> = 26..=30;
/// Streams that few projections fold: each of them has to discard every record of a run.
const STREAMS_OF_RUNS: [Stream; 4] = [Stream::Likes, Stream::Follows, Stream::Comments, Stream::Messages];

/// Failpoints of the projectors, around each of their commits.
const PROJECTOR_POINTS: [&str; 9] = [
    "redis-writes-before",
    "redis-writes-after",
    "redis-parts-after",
    "redis-settle-before",
    "redis-settle-after",
    "mysql-commit-before",
    "mysql-commit-after",
    "progress-before",
    "progress-after",
];
/// A failpoint that projectors pass when they park a key.
const PARKING_POINT: &str = "redis-parked-after";
/// Failpoints of command-api.
const API_POINTS: [&str; 7] = [
    "append-before",
    "append-after",
    "account-commit-before",
    "account-commit-after",
    "outbox-delete-before",
    "relay-commit-before",
    "relay-commit-after",
];
/// Failpoints of a rebuild in Redis, around its switch.
const REDIS_SWITCH_POINTS: [&str; 2] = ["redis-switch-before", "redis-switch-after"];
/// Failpoints of a rebuild in MySQL, around its switch.
const MYSQL_SWITCH_POINTS: [&str; 2] = ["mysql-switch-before", "mysql-switch-after"];
/// Failpoints of a discard.
const DISCARD_POINTS: [&str; 3] = ["discard-after", "unpark-before", "unpark-after"];

/// All that a seed determines, except the commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The faults by time.
    pub(crate) faults: Vec<PlannedFault>,
    /// The failpoints of command-api.
    pub(crate) api: VecDeque<Failpoint>,
    /// The failpoints of the projectors that always run.
    pub(crate) projectors: Vec<VecDeque<Failpoint>>,
}

/// Makes a random fault of one kind.
type FaultKind = fn(&mut StdRng) -> Fault;

/// The kinds of faults. A seed contains one of them for certain, by its number, and others by chance.
const KINDS: [FaultKind; 14] = [
    |rng| Fault::Kill { process: projectors(rng), downtime: millis(rng, 0..1_500) },
    |rng| Fault::KillStore { store: Store::Redis, downtime: millis(rng, 0..1_000) },
    |rng| Fault::Zombie { projectors: rng.random_range(0..REGULAR), duration: millis(rng, ZOMBIE_MS) },
    |rng| Fault::DelayedWrites { projectors: rng.random_range(0..REGULAR), duration: millis(rng, ZOMBIE_MS) },
    |rng| Fault::KillStore { store: Store::MySql, downtime: millis(rng, 0..1_000) },
    impair,
    |_| Fault::Flush,
    rebalance_storm,
    |rng| Fault::Rewind { by: millis(rng, 300..2_000) },
    |rng| Fault::KillStore { store: Store::Kafka, downtime: millis(rng, 0..500) },
    |rng| Fault::SuspendStore { store: store(rng), duration: millis(rng, 500..4_000) },
    rebuild,
    |rng| Fault::BadRecords(few_bad_records(rng)),
    pause,
];
/// Seed numbers per round of kinds that contain a run of bad records instead; discarding it takes half a minute.
const RUN_TURNS: usize = 2;
/// Kinds that are drawn more often: cheap, and most revealing in combination.
const FREQUENT: [FaultKind; 4] = [
    impair,
    impair,
    |rng| Fault::Reset { process: process(rng), store: store(rng) },
    |rng| Fault::Kill { process: Process::Api, downtime: millis(rng, 0..500) },
];
/// Operator actions, also drawn more often: they take longest, so that most other faults can interrupt them.
const OPERATIONS: [FaultKind; 4] = [rebuild, rebuild, |rng| Fault::BadRecords(few_bad_records(rng)), pause];

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let turn = usize::try_from(seed).unwrap_or_default() % (KINDS.len() + RUN_TURNS);
        let certain = KINDS.get(turn).copied().unwrap_or(|rng| Fault::BadRecords(run_of_bad_records(rng)));
        let mut faults = vec![planned(certain, &mut rng)];
        let count = rng.random_range(FAULTS);
        while faults.len() < count {
            let kinds = match rng.random_range(0..10) {
                0..4 => KINDS.as_slice(),
                4..8 => FREQUENT.as_slice(),
                _ => OPERATIONS.as_slice(),
            };
            let next = planned(kinds.choose(&mut rng).copied().unwrap_or(impair), &mut rng);
            if !exceeds_limit(&next.fault, &faults) {
                faults.push(next);
            }
        }
        faults.extend(bad_records_during_rebuild(&faults, &mut rng));
        let operations: Vec<_> = faults.iter().filter(|planned| planned.fault.is_operation()).collect();
        let interferences: Vec<_> =
            operations.iter().filter_map(|operation| interference(operation, &mut rng)).collect();
        faults.extend(interferences);
        faults.sort_by_key(|planned| planned.at);
        let api = failpoints(&API_POINTS, &mut rng);
        let mut projectors: Vec<_> = (0..REGULAR).map(|_| failpoints(&PROJECTOR_POINTS, &mut rng)).collect();
        let parks_keys = faults.iter().any(|planned| matches!(planned.fault, Fault::BadRecords(_)));
        for points in projectors.iter_mut().filter(|_| parks_keys) {
            if rng.random_bool(0.5) {
                points.push_front(Failpoint { point: PARKING_POINT, pass: rng.random_range(1..=2) });
            }
        }
        Self { faults, api, projectors }
    }

    /// The failpoints with their processes, as text.
    pub(crate) fn failpoints(&self) -> String {
        let of = |process: Process, points: &VecDeque<Failpoint>| {
            points.iter().map(|point| format!("{process} {point}")).collect::<Vec<_>>()
        };
        let mut all = of(Process::Api, &self.api);
        for (number, points) in self.projectors.iter().enumerate() {
            all.extend(of(Process::Projectors(number), points));
        }
        all.join(", ")
    }
}

fn planned(kind: FaultKind, rng: &mut StdRng) -> PlannedFault {
    let fault = kind(rng);
    let window = match fault {
        Fault::Flush | Fault::Rewind { .. } => LOSS_WINDOW_MS,
        Fault::Rebuild { .. } => REBUILD_WINDOW_MS,
        _ if stops_kafka(&fault) => OUTAGE_WINDOW_MS,
        _ => WINDOW_MS,
    };
    PlannedFault { at: millis(rng, window), fault }
}

/// Whether a seed already has as many faults of this kind as it may have.
fn exceeds_limit(fault: &Fault, others: &[PlannedFault]) -> bool {
    let count = |is_same: fn(&Fault) -> bool| others.iter().filter(|other| is_same(&other.fault)).count();
    match fault {
        // Without Kafka hardly any other fault shows, and its restart takes seconds.
        fault if stops_kafka(fault) => count(stops_kafka) > 0,
        Fault::Rebuild { .. } => count(|other| matches!(other, Fault::Rebuild { .. })) >= REBUILDS,
        _ => false,
    }
}

fn stops_kafka(fault: &Fault) -> bool {
    matches!(
        fault,
        Fault::KillStore { store: Store::Kafka, .. } | Fault::SuspendStore { store: Store::Kafka, .. }
    )
}

fn impair(rng: &mut StdRng) -> Fault {
    let conditions = [
        Condition::Slow(millis(rng, 20..300)),
        Condition::Cut,
        Condition::Stalled,
        Condition::AnswersLost,
        Condition::Torn,
    ];
    Fault::Impair {
        process: process(rng),
        store: store(rng),
        condition: conditions[rng.random_range(0..conditions.len())],
        duration: millis(rng, 300..4_000),
    }
}

fn rebalance_storm(rng: &mut StdRng) -> Fault {
    let rounds = (0..rng.random_range(3..=6)).map(|_| StormRound {
        projectors: REGULAR + rng.random_range(0..EXTRA),
        uptime: millis(rng, 200..1_500),
        exit: if rng.random_bool(0.5) { Exit::Terminated } else { Exit::Killed },
    });
    Fault::RebalanceStorm { rounds: rounds.collect() }
}

fn rebuild(rng: &mut StdRng) -> Fault {
    let projection = projection(rng);
    let (switch_points, prefix): (&[&'static str], _) = match projection.fold {
        Fold::Redis(_) => (&REDIS_SWITCH_POINTS, "redis-"),
        Fold::MySql(_) => (&MYSQL_SWITCH_POINTS, "mysql-"),
    };
    let kill = match rng.random_range(0..10) {
        0..2 => None,
        2..5 => {
            let range = REBUILD_KILL_MS[rng.random_range(0..REBUILD_KILL_MS.len())].clone();
            Some(KillAt::Time(millis(rng, range)))
        }
        5..9 => switch_points.choose(rng).map(|point| KillAt::Failpoint(Failpoint { point, pass: 1 })),
        _ => {
            let points: Vec<_> = PROJECTOR_POINTS.iter().filter(|point| point.starts_with(prefix)).collect();
            let point = points.choose(rng);
            point.map(|point| KillAt::Failpoint(Failpoint { point, pass: rng.random_range(1..=6) }))
        }
    };
    let then = [AfterKill::Resumed, AfterKill::Dropped, AfterKill::Left][rng.random_range(0..3)];
    Fault::Rebuild { projection: projection.name(), kill, then }
}

fn pause(rng: &mut StdRng) -> Fault {
    Fault::Pause {
        projection: projection(rng).name(),
        duration: millis(rng, 300..3_000),
        killed: rng.random_bool(0.6).then(|| rng.random_range(0..REGULAR)),
    }
}

/// One bad record, or two.
fn few_bad_records(rng: &mut StdRng) -> BadRecords {
    let stream = *Stream::ALL.choose(rng).unwrap_or(&Stream::Likes);
    let count = if rng.random_bool(0.7) { 1 } else { 2 };
    let is_killed = rng.random_bool(0.5);
    let kill = match rng.random_range(0..3) {
        _ if !is_killed => None,
        0 => Some(KillAt::Time(millis(rng, 100..1_500))),
        _ => DISCARD_POINTS.choose(rng).map(|point| KillAt::Failpoint(Failpoint { point, pass: 1 })),
    };
    let discard_after = (is_killed || rng.random_bool(0.5)).then(|| millis(rng, 300..3_000));
    BadRecords { discard_after, kill, ..bad_records(stream, count, rng) }
}

/// So many bad records that their projections stop.
fn run_of_bad_records(rng: &mut StdRng) -> BadRecords {
    let stream = *STREAMS_OF_RUNS.choose(rng).unwrap_or(&Stream::Likes);
    let count = rng.random_range(STOPPING_RUN);
    bad_records(stream, count, rng)
}

fn bad_records(stream: Stream, count: usize, rng: &mut StdRng) -> BadRecords {
    let defect = Defect::ALL[rng.random_range(0..Defect::ALL.len())];
    BadRecords { stream, entity: rng.random_range(0..100), count, defect, discard_after: None, kill: None }
}

/// Bad records of a stream whose view is being rebuilt, every other time: then two generations park the key.
fn bad_records_during_rebuild(faults: &[PlannedFault], rng: &mut StdRng) -> Option<PlannedFault> {
    let rebuilt = faults.iter().find_map(|planned| match planned.fault {
        Fault::Rebuild { projection, .. } => Some((projections::find(projection)?, planned.at)),
        _ => None,
    });
    let (projection, at) = rebuilt.filter(|_| rng.random_bool(0.5))?;
    let stream = projection.streams().next()?;
    Some(PlannedFault {
        at: at.mul_f64(rng.random_range(0.0..1.2)),
        fault: Fault::BadRecords(BadRecords { stream, ..few_bad_records(rng) }),
    })
}

/// A network fault of the operator's commands, soon after an operation began.
fn interference(operation: &PlannedFault, rng: &mut StdRng) -> Option<PlannedFault> {
    if rng.random_bool(0.5) {
        return None;
    }
    let (process, store) = (Process::Operator, store(rng));
    let fault = match impair(rng) {
        Fault::Impair { condition, duration, .. } if rng.random_bool(0.6) => {
            Fault::Impair { process, store, condition, duration }
        }
        _ => Fault::Reset { process, store },
    };
    Some(PlannedFault { at: operation.at + millis(rng, 0..2_500), fault })
}

/// Up to two failpoints: a late pass of those that a process passes often, an early one of the others.
fn failpoints(points: &[&'static str], rng: &mut StdRng) -> VecDeque<Failpoint> {
    let count = rng.random_range(0..=2);
    let chosen = (0..count).filter_map(|_| {
        let point = *points.choose(rng)?;
        let last_pass = match point {
            "account-commit-before" | "account-commit-after" | "outbox-delete-before" => 12,
            "relay-commit-before" | "relay-commit-after" => 1,
            _ => 80,
        };
        Some(Failpoint { point, pass: rng.random_range(1..=last_pass) })
    });
    chosen.collect()
}

fn projection(rng: &mut StdRng) -> Projection {
    projections::ALL[rng.random_range(0..projections::ALL.len())]
}

fn process(rng: &mut StdRng) -> Process {
    if rng.random_bool(0.25) { Process::Api } else { projectors(rng) }
}

fn projectors(rng: &mut StdRng) -> Process {
    Process::Projectors(rng.random_range(0..REGULAR))
}

fn store(rng: &mut StdRng) -> Store {
    Store::ALL[rng.random_range(0..Store::ALL.len())]
}

fn millis(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    #[test]
    fn seed_determines_the_plan() {
        assert_eq!(Plan::of(7), Plan::of(7));
        assert_ne!(Plan::of(7), Plan::of(8));
    }

    #[test]
    fn sixteen_seeds_contain_every_kind_of_fault() {
        let faults = (1..=16).flat_map(|seed| Plan::of(seed).faults);
        let kinds: HashSet<_> = faults.map(|planned| std::mem::discriminant(&planned.fault)).collect();
        assert_eq!(kinds.len(), 13);
    }

    #[test]
    fn fifty_seeds_contain_every_failpoint() {
        let plans: Vec<_> = (1..=50).map(Plan::of).collect();
        let faults = plans.iter().flat_map(|plan| &plan.faults).map(ToString::to_string);
        let text: String = plans.iter().map(Plan::failpoints).chain(faults).collect();
        for point in points() {
            assert!(text.contains(point), "{point}");
        }
    }

    #[test]
    fn enough_seeds_operate_on_every_projection() {
        let faults: Vec<_> = (1..=300).flat_map(|seed| Plan::of(seed).faults).collect();
        for projection in projections::ALL {
            let name = projection.name();
            let rebuilds = |planned: &PlannedFault| matches!(planned.fault, Fault::Rebuild { projection, .. } if projection == name);
            let pauses = |planned: &PlannedFault| matches!(planned.fault, Fault::Pause { projection, .. } if projection == name);
            assert!(faults.iter().any(rebuilds) && faults.iter().any(pauses), "{name}");
        }
    }

    #[test]
    fn plans_use_exactly_the_failpoints_of_the_sources() {
        let mut found: Vec<String> = Vec::new();
        for file in ["projection-engine", "projectors", "command-api"].into_iter().flat_map(sources_of) {
            let source = fs::read_to_string(file).unwrap();
            let points = source.split("failpoint::pass(\"").skip(1);
            found.extend(points.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
        found.sort_unstable();
        let mut planned: Vec<_> = points().collect();
        planned.sort_unstable();
        assert_eq!(found, planned);
    }

    #[test]
    fn seed_has_at_most_two_rebuilds() {
        for seed in 1..=200 {
            let faults = Plan::of(seed).faults;
            let rebuilds = faults.iter().filter(|planned| matches!(planned.fault, Fault::Rebuild { .. }));
            assert!(rebuilds.count() <= REBUILDS);
        }
    }

    fn points() -> impl Iterator<Item = &'static str> {
        let projectors = PROJECTOR_POINTS.into_iter().chain([PARKING_POINT]);
        let switch = REDIS_SWITCH_POINTS.into_iter().chain(MYSQL_SWITCH_POINTS);
        projectors.chain(API_POINTS).chain(switch).chain(DISCARD_POINTS)
    }

    /// The source files of a crate.
    fn sources_of(crate_name: &str) -> Vec<PathBuf> {
        let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(crate_name).join("src")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files
    }
}
