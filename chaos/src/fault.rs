//! The faults of a plan, and how they are described.

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
    /// The operator's current command.
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

/// A failpoint, and the pass at which it aborts its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failpoint {
    /// The failpoint's name.
    pub(crate) point: &'static str,
    /// The pass, counted from 1.
    pub(crate) pass: u64,
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.point, self.pass)
    }
}

/// A fault, or an operator action under faults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed, and restarted.
    Kill { process: Process, downtime: Duration },
    /// A store is killed, and restarted.
    KillStore { store: Store, downtime: Duration },
    /// A process is suspended for longer than its session timeout; then it tries to finish its writes.
    Zombie { projectors: usize, duration: Duration },
    /// The same, and its last requests arrive only after other processes took over its partitions.
    DelayedWrites { projectors: usize, duration: Duration },
    /// A store is suspended; then it executes the requests that it received.
    SuspendStore { store: Store, duration: Duration },
    /// The connections from a process to a store are reset.
    Reset { process: Process, store: Store },
    /// The link from a process to a store has a condition for a while.
    Impair { process: Process, store: Store, condition: Condition, duration: Duration },
    /// Redis loses all data.
    Flush,
    /// Redis loses its latest writes, as after a failover or a restored backup.
    Rewind { by: Duration },
    /// Projectors start and exit in quick succession.
    RebalanceStorm { rounds: Vec<StormRound> },
    /// The operator rebuilds a view.
    Rebuild { projection: &'static str, kill: Option<KillAt>, then: AfterKill },
    /// The operator pauses a projection for a while; a process of the projectors may be killed meanwhile.
    Pause { projection: &'static str, duration: Duration, killed: Option<usize> },
    /// Undecodable records are appended.
    BadRecords(BadRecords),
}

impl Fault {
    /// Whether the fault is an operator action, or requires one.
    pub(crate) const fn is_operation(&self) -> bool {
        matches!(self, Self::Rebuild { .. } | Self::Pause { .. } | Self::BadRecords(_))
    }
}

/// An extra process of the projectors that starts and exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StormRound {
    /// Its number.
    pub(crate) projectors: usize,
    /// How long it runs.
    pub(crate) uptime: Duration,
    /// How it exits.
    pub(crate) exit: Exit,
}

/// How a process exits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// After SIGTERM: it leaves its groups.
    Terminated,
    /// After SIGKILL.
    Killed,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |duration: &Duration| format!("{:.1} s", duration.as_secs_f64());
        match self {
            Self::Kill { process, downtime } => {
                write!(f, "kill -9 {process}, down for {}", seconds(downtime))
            }
            Self::KillStore { store, downtime } => {
                write!(f, "kill -9 {store}, down for {}", seconds(downtime))
            }
            Self::Zombie { projectors, duration } => {
                write!(f, "{} is suspended for {}", Process::Projectors(*projectors), seconds(duration))
            }
            Self::DelayedWrites { projectors, duration } => {
                let process = Process::Projectors(*projectors);
                write!(
                    f,
                    "{process} is suspended for {}, its last requests arrive afterwards",
                    seconds(duration)
                )
            }
            Self::SuspendStore { store, duration } => {
                write!(f, "{store} is suspended for {}", seconds(duration))
            }
            Self::Reset { process, store } => write!(f, "connections from {process} to {store} are reset"),
            Self::Impair { process, store, condition, duration } => {
                write!(f, "link from {process} to {store} is {condition} for {}", seconds(duration))
            }
            Self::Flush => f.write_str("FLUSHALL"),
            Self::Rewind { by } => write!(f, "redis is killed and loses its last {} of writes", seconds(by)),
            Self::RebalanceStorm { rounds } => write!(f, "rebalance storm of {} rounds", rounds.len()),
            Self::Rebuild { projection, kill: None, .. } => write!(f, "rebuild of {projection}"),
            Self::Rebuild { projection, kill: Some(kill), then } => {
                write!(f, "rebuild of {projection}, {kill} and {then}")
            }
            Self::Pause { projection, duration, killed } => {
                write!(f, "{projection} is paused for {}", seconds(duration))?;
                match killed {
                    Some(number) => write!(f, ", kill -9 {} meanwhile", Process::Projectors(*number)),
                    None => Ok(()),
                }
            }
            Self::BadRecords(records) => records.fmt(f),
        }
    }
}

/// When an operator's command is killed, if it runs that long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KillAt {
    /// After a time.
    Time(Duration),
    /// At a failpoint.
    Failpoint(Failpoint),
}

impl fmt::Display for KillAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "killed after {:.1} s", time.as_secs_f64()),
            Self::Failpoint(failpoint) => write!(f, "killed at {failpoint}"),
        }
    }
}

/// The operator's next action after a killed rebuild.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterKill {
    /// Runs the rebuild again.
    Resumed,
    /// Drops its generation.
    Dropped,
    /// Does nothing until all faults are over.
    Left,
}

impl fmt::Display for AfterKill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resumed => "resumed",
            Self::Dropped => "dropped",
            Self::Left => "left",
        })
    }
}

/// Undecodable records of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadRecords {
    /// Their stream.
    pub(crate) stream: Stream,
    /// Selects the key among those of existing entities.
    pub(crate) entity: usize,
    /// How many follow each other.
    pub(crate) count: usize,
    /// What is wrong with them.
    pub(crate) defect: Defect,
    /// When the operator discards them; otherwise that happens when all faults are over.
    pub(crate) discard_after: Option<Duration>,
    /// When the first discard is killed.
    pub(crate) kill: Option<KillAt>,
}

impl fmt::Display for BadRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, count, defect, .. } = self;
        match count {
            1 => write!(f, "a record of {stream} {defect}")?,
            _ => write!(f, "{count} records of {stream} {defect}")?,
        }
        if let Some(delay) = self.discard_after {
            write!(f, ", discarded {:.1} s later", delay.as_secs_f64())?;
        }
        self.kill.as_ref().map_or(Ok(()), |kill| write!(f, ", {kill}"))
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    /// Its type does not exist.
    UnknownType,
    /// Its value is not of its type.
    BrokenValue,
    /// It has no value.
    NoValue,
    /// It has no type.
    NoType,
}

impl Defect {
    /// Every defect.
    pub(crate) const ALL: [Self; 4] = [Self::UnknownType, Self::BrokenValue, Self::NoValue, Self::NoType];
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownType => "of an unknown type",
            Self::BrokenValue => "with a broken value",
            Self::NoValue => "without a value",
            Self::NoType => "without a type",
        })
    }
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedFault {
    /// The time since the start of the load.
    pub(crate) at: Duration,
    /// The fault.
    pub(crate) fault: Fault,
}

impl fmt::Display for PlannedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s: {}", self.at.as_secs_f64(), self.fault)
    }
}
