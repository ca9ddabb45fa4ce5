//! What a seed decides: the faults, when and whom they meet, and where processes die by themselves.

mod operations;

use std::{collections::VecDeque, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use self::operations::{interference, pause, poison_of_rebuilt, rebuild, run, single};
use vidlog_test_support::Condition;

use crate::{
    fault::{Failpoint, Fault, Leaving, Planned, Process, Round},
    stack::Store,
};

/// Projectors that always run.
pub(crate) const REGULAR: usize = 2;
/// Projectors that come and go in a rebalance storm.
pub(crate) const EXTRA: usize = 2;
/// Faults of a seed.
const FAULTS: std::ops::RangeInclusive<usize> = 6..=9;
/// When faults begin: late enough for something to be going on.
const WINDOW_MS: std::ops::Range<u64> = 200..8_000;
/// When Redis loses what it had: early, as what is folded anew afterwards covers up what was wrong before.
const LOSS_WINDOW_MS: std::ops::Range<u64> = 200..2_500;
/// When the log stops: late, as hardly a command is carried out without it.
const OUTAGE_WINDOW_MS: std::ops::Range<u64> = 4_000..7_000;
/// How long a paused process is away: until its session is over, and others have gone on with its partitions for a while.
const ZOMBIE_MS: std::ops::Range<u64> = 4_500..6_500;

/// When a view begins to be folded anew: early, as it takes ten seconds.
const REBUILD_WINDOW_MS: std::ops::Range<u64> = 200..3_500;
/// Rebuilds of a seed, at most: each takes much of what the others need.
const REBUILDS: usize = 2;
/// Points of the projectors, around everything that they commit.
pub(crate) const PROJECTOR_POINTS: [&str; 9] = [
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

/// A point that the projectors pass when they park a key.
const PARKING_POINT: &str = "redis-parked-after";
/// Points of command-api.
pub(crate) const API_POINTS: [&str; 7] = [
    "append-before",
    "append-after",
    "account-commit-before",
    "account-commit-after",
    "outbox-delete-before",
    "relay-commit-before",
    "relay-commit-after",
];

/// All that a seed decides beside the commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The faults, in order.
    pub(crate) faults: Vec<Planned>,
    /// The failpoints of command-api.
    pub(crate) api: VecDeque<Failpoint>,
    /// The failpoints of the projectors that always run.
    pub(crate) projectors: Vec<VecDeque<Failpoint>>,
}

/// Makes a fault of one kind.
type Kind = fn(&mut StdRng) -> Fault;

/// The kinds of faults. Each seed has one of them for certain, by turns, and others by chance.
const KINDS: [Kind; 14] = [
    |rng| Fault::Kill { process: projectors(rng), away: millis(rng, 0..1_500) },
    |rng| Fault::KillStore { store: Store::Redis, away: millis(rng, 0..1_000) },
    |rng| Fault::Zombie { projectors: rng.random_range(0..REGULAR), away: millis(rng, ZOMBIE_MS) },
    |rng| Fault::Late { projectors: rng.random_range(0..REGULAR), away: millis(rng, ZOMBIE_MS) },
    |rng| Fault::KillStore { store: Store::MySql, away: millis(rng, 0..1_000) },
    impair,
    |_| Fault::Flush,
    storm,
    |rng| Fault::Rewind { back: millis(rng, 300..2_000) },
    |rng| Fault::KillStore { store: Store::Kafka, away: millis(rng, 0..500) },
    |rng| Fault::Freeze { store: store(rng), away: millis(rng, 500..4_000) },
    rebuild,
    |rng| Fault::Poison(single(rng)),
    pause,
];
/// Turns that are for a run of bad records instead: it takes half a minute to discard it.
const RUN_TURNS: usize = 2;
/// These are drawn as well: they are cheap, and say the most when much else is going on.
const FREQUENT: [Kind; 4] = [
    impair,
    impair,
    |rng| Fault::Reset { process: process(rng), store: store(rng) },
    |rng| Fault::Kill { process: Process::Api, away: millis(rng, 0..500) },
];

/// And these: what operators do takes longest, so that the most can come between.
const OPERATIONS: [Kind; 4] = [rebuild, rebuild, |rng| Fault::Poison(single(rng)), pause];

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let turn = usize::try_from(seed).unwrap_or_default() % (KINDS.len() + RUN_TURNS);
        let certain = KINDS.get(turn).copied().unwrap_or(|rng| Fault::Poison(run(rng)));
        let mut faults = vec![planned(certain, &mut rng)];
        let count = rng.random_range(FAULTS);
        while faults.len() < count {
            let kinds = match rng.random_range(0..10) {
                0..4 => KINDS.as_slice(),
                4..8 => FREQUENT.as_slice(),
                _ => OPERATIONS.as_slice(),
            };
            let next = planned(kinds.choose(&mut rng).copied().unwrap_or(impair), &mut rng);
            if !is_too_much(&next.fault, &faults) {
                faults.push(next);
            }
        }
        faults.extend(poison_of_rebuilt(&faults, &mut rng));
        let operations: Vec<_> = faults.iter().filter(|planned| planned.fault.is_operation()).collect();
        let interfering: Vec<_> =
            operations.iter().filter_map(|operation| interference(operation, &mut rng)).collect();
        faults.extend(interfering);
        faults.sort_by_key(|planned| planned.at);
        let api = failpoints(&API_POINTS, &mut rng);
        let mut projectors: Vec<_> = (0..REGULAR).map(|_| failpoints(&PROJECTOR_POINTS, &mut rng)).collect();
        let parks = faults.iter().any(|planned| matches!(planned.fault, Fault::Poison(_)));
        for points in projectors.iter_mut().filter(|_| parks) {
            if rng.random_bool(0.5) {
                points.push_front(Failpoint { point: PARKING_POINT, time: rng.random_range(1..=2) });
            }
        }
        Self { faults, api, projectors }
    }

    /// The failpoints, as they are told.
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

fn planned(kind: Kind, rng: &mut StdRng) -> Planned {
    let fault = kind(rng);
    let window = match fault {
        Fault::Flush | Fault::Rewind { .. } => LOSS_WINDOW_MS,
        Fault::Rebuild { .. } => REBUILD_WINDOW_MS,
        _ if stops_the_log(&fault) => OUTAGE_WINDOW_MS,
        _ => WINDOW_MS,
    };
    Planned { at: millis(rng, window), fault }
}

/// Whether a seed has enough of a fault already.
fn is_too_much(fault: &Fault, others: &[Planned]) -> bool {
    let others_that = |is: fn(&Fault) -> bool| others.iter().filter(|other| is(&other.fault)).count();
    match fault {
        // Without the log hardly anything else can be seen, and it takes seconds to come back.
        fault if stops_the_log(fault) => others_that(stops_the_log) > 0,
        Fault::Rebuild { .. } => others_that(|other| matches!(other, Fault::Rebuild { .. })) >= REBUILDS,
        _ => false,
    }
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
        lasting: millis(rng, 300..4_000),
    }
}

fn storm(rng: &mut StdRng) -> Fault {
    let rounds = (0..rng.random_range(3..=6)).map(|_| Round {
        projectors: REGULAR + rng.random_range(0..EXTRA),
        staying: millis(rng, 200..1_500),
        leaving: if rng.random_bool(0.5) { Leaving::Terminated } else { Leaving::Killed },
    });
    Fault::Storm { rounds: rounds.collect() }
}

/// Up to two failpoints: of what a process passes often a late time, of what it passes seldom an early one.
fn failpoints(points: &[&'static str], rng: &mut StdRng) -> VecDeque<Failpoint> {
    let count = rng.random_range(0..=2);
    let chosen = (0..count).filter_map(|_| {
        let point = *points.choose(rng)?;
        let often = match point {
            "account-commit-before" | "account-commit-after" | "outbox-delete-before" => 12,
            "relay-commit-before" | "relay-commit-after" => 1,
            _ => 80,
        };
        Some(Failpoint { point, time: rng.random_range(1..=often) })
    });
    chosen.collect()
}

fn stops_the_log(fault: &Fault) -> bool {
    matches!(fault, Fault::KillStore { store: Store::Kafka, .. } | Fault::Freeze { store: Store::Kafka, .. })
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

fn millis(rng: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

#[cfg(test)]
mod tests {
    use super::{
        operations::{DISCARD_POINTS, MYSQL_SWITCH_POINTS, REDIS_SWITCH_POINTS},
        *,
    };

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(Plan::of(7), Plan::of(7));
        assert_ne!(Plan::of(7), Plan::of(8));
    }

    #[test]
    fn sixteen_seeds_have_every_kind_and_fifty_every_failpoint() {
        let faults = (1..=16).flat_map(|seed| Plan::of(seed).faults);
        let kinds: std::collections::HashSet<_> =
            faults.map(|planned| std::mem::discriminant(&planned.fault)).collect();
        assert_eq!(kinds.len(), 13);
        let plans: Vec<_> = (1..=50).map(Plan::of).collect();
        let faults = plans.iter().flat_map(|plan| &plan.faults).map(ToString::to_string);
        let told: String = plans.iter().map(Plan::failpoints).chain(faults).collect();
        for point in points() {
            assert!(told.contains(point), "{point}");
        }
    }

    #[test]
    fn the_failpoints_are_those_of_the_programs() {
        let sources = [
            include_str!("../../projection-engine/src/store.rs"),
            include_str!("../../projection-engine/src/store/mysql.rs"),
            include_str!("../../projection-engine/src/store/redis.rs"),
            include_str!("../../projectors/src/rebuild/generation.rs"),
            include_str!("../../projection-engine/src/dead_letters/retry.rs"),
            include_str!("../../command-api/src/accounts.rs"),
            include_str!("../../command-api/src/outbox.rs"),
            include_str!("../../command-api/src/publisher.rs"),
        ];
        let mut found: Vec<_> = sources
            .iter()
            .flat_map(|source| source.split("failpoint::pass(\"").skip(1))
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let mut planned: Vec<_> = points().collect();
        planned.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, planned);
    }

    #[test]
    fn a_seed_rebuilds_no_more_than_it_has_time_for() {
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
}
