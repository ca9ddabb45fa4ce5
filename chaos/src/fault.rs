//! What can go wrong, or be done, while a system runs; and in words.

use std::{fmt, time::Duration};

use vidlog_events::Stream;
use vidlog_test_support::Condition;

use crate::stack::Store;

/// A process of the system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// command-api.
    Api,
    /// One of the projectors.
    Projectors(usize),
    /// Whatever the operator has just started.
    Operator,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Api => f.write_str("command-api"),
            Self::Projectors(number) => write!(f, "projectors-{}", number + 1),
            Self::Operator => f.write_str("the operator"),
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
    /// An operator folds a view anew.
    Rebuild { projection: &'static str, cut: Option<Cut>, then: Then },
    /// An operator has a projection stand still for a while, in which one of its processes may die.
    Pause { projection: &'static str, lasting: Duration, killed: Option<usize> },
    /// Records come that can't be decoded.
    Poison(Poison),
}

impl Fault {
    /// Whether it is something that an operator does, or has to see to.
    pub(crate) const fn is_operation(&self) -> bool {
        matches!(self, Self::Rebuild { .. } | Self::Pause { .. } | Self::Poison(_))
    }
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
            Self::Rebuild { projection, cut: None, .. } => write!(f, "rebuild of {projection}"),
            Self::Rebuild { projection, cut: Some(cut), then } => {
                write!(f, "rebuild of {projection}, {cut} and {then}")
            }
            Self::Pause { projection, lasting, killed } => {
                write!(f, "{projection} is paused for {}", seconds(lasting))?;
                match killed {
                    Some(number) => write!(f, ", kill -9 {} meanwhile", Process::Projectors(*number)),
                    None => Ok(()),
                }
            }
            Self::Poison(poison) => poison.fmt(f),
        }
    }
}

/// Where a command of an operator is cut off by `kill -9`, if it comes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// After so long.
    After(Duration),
    /// At a failpoint.
    At(Failpoint),
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(time) => write!(f, "cut off after {:.1} s", time.as_secs_f64()),
            Self::At(failpoint) => write!(f, "cut off at {failpoint}"),
        }
    }
}

/// What becomes of a rebuild that was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// It is run again.
    Resumed,
    /// What it made is dropped.
    Dropped,
    /// It is left as it is, until all faults are over.
    Left,
}

impl fmt::Display for Then {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resumed => "resumed",
            Self::Dropped => "dropped",
            Self::Left => "left",
        })
    }
}

/// Records of one key that can't be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Poison {
    /// The stream that they come in.
    pub(crate) stream: Stream,
    /// Which of those who are there has the key.
    pub(crate) entity: usize,
    /// How many there are, one right after the other.
    pub(crate) records: usize,
    /// What is wrong with them.
    pub(crate) form: Form,
    /// How long after that an operator discards them. Else that is done when all faults are over.
    pub(crate) discarded: Option<Duration>,
    /// Where the first discard is cut off.
    pub(crate) cut: Option<Cut>,
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, records, form, .. } = self;
        match records {
            1 => write!(f, "a record of {stream} {form}")?,
            _ => write!(f, "{records} records of {stream} {form}")?,
        }
        if let Some(after) = self.discarded {
            write!(f, ", discarded {:.1} s later", after.as_secs_f64())?;
        }
        self.cut.as_ref().map_or(Ok(()), |cut| write!(f, ", {cut}"))
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its type is not known.
    UnknownType,
    /// Its value is not what its type says.
    BrokenValue,
    /// It has no value.
    NoValue,
    /// It has no type.
    NoType,
}

impl Form {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::UnknownType, Self::BrokenValue, Self::NoValue, Self::NoType];
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownType => "of an unknown type",
            Self::BrokenValue => "with a broken value",
            Self::NoValue => "without a value",
            Self::NoType => "without a type",
        })
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
