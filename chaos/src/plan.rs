//! What a seed decides: the faults, when and whom they meet, and where processes die by themselves.

use std::{collections::VecDeque, fmt, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{link::Condition, stack::Store};

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

/// Points of the projectors, around everything that they commit.
pub(crate) const PROJECTOR_POINTS: [&str; 10] = [
    "redis-parked-after",
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

/// A process of the system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// command-api.
    Api,
    /// One of the projectors.
    Projectors(usize),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => f.write_str("command-api"),
            Self::Projectors(number) => write!(f, "projectors-{}", number + 1),
        }
    }
}

/// A place at which a process dies, and the time that it passes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failpoint {
    /// The place.
    pub(crate) point: &'static str,
    /// The time.
    pub(crate) time: u64,
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point, self.time)
    }
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9` of a process, which is started again.
    Kill { process: Process, away: Duration },
    /// `kill -9` of a store, which is started again.
    KillStore { store: Store, away: Duration },
    /// A process is stopped for longer than its session lives, and then goes on with what it was about to write.
    Zombie { projectors: usize, away: Duration },
    /// The same, and what a process sent last arrives only when others have taken its partitions over.
    Late { projectors: usize, away: Duration },
    /// A store is stopped, and then goes on with what it was asked.
    Freeze { store: Store, away: Duration },
    /// The connections of a process to a store are reset.
    Reset { process: Process, store: Store },
    /// The way from a process to a store is bad for a while.
    Impair { process: Process, store: Store, condition: Condition, lasting: Duration },
    /// Redis loses everything.
    Flush,
    /// Redis goes back to what it was a moment ago, as after a failover or from a backup.
    Rewind { back: Duration },
    /// Projectors come and go.
    Storm { rounds: Vec<Round> },
}

/// An extra instance of the projectors comes, and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Round {
    /// Which.
    pub(crate) projectors: usize,
    /// How long it stays.
    pub(crate) staying: Duration,
    /// How it goes.
    pub(crate) leaving: Leaving,
}

/// How an instance goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// It says goodbye.
    Terminated,
    /// It is gone.
    Killed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |duration: &Duration| format!("{:.1} s", duration.as_secs_f64());
        match self {
            Self::Kill { process, away } => write!(f, "kill -9 {process}, away for {}", seconds(away)),
            Self::KillStore { store, away } => write!(f, "kill -9 {store}, away for {}", seconds(away)),
            Self::Zombie { projectors, away } => {
                write!(f, "{} is stopped for {}", Process::Projectors(*projectors), seconds(away))
            }
            Self::Late { projectors, away } => {
                let process = Process::Projectors(*projectors);
                write!(f, "{process} is stopped for {}, what it sent last arrives after that", seconds(away))
            }
            Self::Freeze { store, away } => write!(f, "{store} is stopped for {}", seconds(away)),
            Self::Reset { process, store } => write!(f, "connections {process} to {store} are reset"),
            Self::Impair { process, store, condition, lasting } => {
                write!(f, "{process} to {store} is {condition} for {}", seconds(lasting))
            }
            Self::Flush => f.write_str("FLUSHALL"),
            Self::Rewind { back } => {
                write!(f, "redis is killed and comes back as it was {} ago", seconds(back))
            }
            Self::Storm { rounds } => write!(f, "{} rounds of projectors that come and go", rounds.len()),
        }
    }
}

/// A fault at its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Planned {
    /// When, from the beginning of the load.
    pub(crate) at: Duration,
    /// What.
    pub(crate) fault: Fault,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s: {}", self.at.as_secs_f64(), self.fault)
    }
}

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
const KINDS: [Kind; 11] = [
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
];
/// These are drawn as well: they are cheap, and say the most when much else is going on.
const FREQUENT: [Kind; 4] = [
    impair,
    impair,
    |rng| Fault::Reset { process: process(rng), store: store(rng) },
    |rng| Fault::Kill { process: Process::Api, away: millis(rng, 0..500) },
];

impl Plan {
    /// The plan of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let certain = usize::try_from(seed).unwrap_or_default() % KINDS.len();
        let mut faults = vec![planned(KINDS[certain], &mut rng)];
        let count = rng.random_range(FAULTS);
        while faults.len() < count {
            let kinds = if rng.random_bool(0.5) { KINDS.as_slice() } else { FREQUENT.as_slice() };
            let next = planned(kinds.choose(&mut rng).copied().unwrap_or(impair), &mut rng);
            // Without the log hardly anything else can be seen, and it takes seconds to come back.
            if !(stops_the_log(&next.fault) && faults.iter().any(|other| stops_the_log(&other.fault))) {
                faults.push(next);
            }
        }
        faults.sort_by_key(|planned| planned.at);
        let api = failpoints(&API_POINTS, &mut rng);
        let projectors = (0..REGULAR).map(|_| failpoints(&PROJECTOR_POINTS, &mut rng)).collect();
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
        _ if stops_the_log(&fault) => OUTAGE_WINDOW_MS,
        _ => WINDOW_MS,
    };
    Planned { at: millis(rng, window), fault }
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
    use super::*;

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(Plan::of(7), Plan::of(7));
        assert_ne!(Plan::of(7), Plan::of(8));
    }

    #[test]
    fn eleven_seeds_have_every_kind_and_fifty_every_failpoint() {
        let kinds = |seeds: std::ops::RangeInclusive<u64>| {
            let faults = seeds.flat_map(|seed| Plan::of(seed).faults);
            faults
                .map(|planned| std::mem::discriminant(&planned.fault))
                .collect::<std::collections::HashSet<_>>()
        };
        assert_eq!(kinds(1..=KINDS.len() as u64).len(), 10);
        let plans: Vec<_> = (1..=50).map(Plan::of).collect();
        let told: String = plans.iter().map(Plan::failpoints).collect();
        for point in PROJECTOR_POINTS.iter().chain(&API_POINTS) {
            assert!(told.contains(point), "{point}");
        }
    }

    #[test]
    fn the_failpoints_are_those_of_the_programs() {
        let sources = [
            include_str!("../../projectors/src/sink.rs"),
            include_str!("../../projectors/src/sink/mysql.rs"),
            include_str!("../../projectors/src/sink/redis.rs"),
            include_str!("../../command-api/src/accounts.rs"),
            include_str!("../../command-api/src/outbox.rs"),
            include_str!("../../command-api/src/publisher.rs"),
        ];
        let in_sources: Vec<_> = sources
            .iter()
            .flat_map(|source| source.split("failpoint::pass(\"").skip(1))
            .filter_map(|rest| rest.split('"').next())
            .collect();
        let mut planned: Vec<_> = PROJECTOR_POINTS.into_iter().chain(API_POINTS).collect();
        let mut found = in_sources;
        planned.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, planned);
    }
}
