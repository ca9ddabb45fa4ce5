//! How the projections are: what each process says of its partitions, what the stores and the log say, side by side.

mod gather;
mod join;
mod oldest;
mod report;
mod table;

use serde::Serialize;

pub use self::gather::gather;
pub(crate) use self::report::{Report, Reporter, read as read_reports};

/// How some projections are.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Each of them.
    pub projections: Vec<ProjectionStatus>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// How a projection is. What is not known is null.
#[derive(Debug, Serialize)]
pub struct ProjectionStatus {
    /// Its name.
    pub name: &'static str,
    /// The live generation.
    pub generation: Option<u32>,
    /// Why its positions are not known.
    pub unknown: Option<String>,
    /// Each partition of its topics.
    pub partitions: Vec<PartitionStatus>,
}

/// How a partition of a projection is. What is not known is null.
#[derive(Debug, Serialize)]
pub struct PartitionStatus {
    /// `<stream>:<number>`.
    pub partition: String,
    /// The offset of the first record that readers do not see folded.
    pub position: Option<i64>,
    /// Where the log ends: the offset that the next record will have.
    pub end: Option<i64>,
    /// How many records there are between.
    pub lag: Option<i64>,
    /// How old the first of them is; 0 if there is none.
    pub lag_seconds: Option<f64>,
    /// Whether it is folded.
    pub state: State,
    /// Why it is in that state.
    pub why: Option<String>,
    /// Records folded, over the last 10 seconds.
    pub records_per_second: Option<f64>,
    /// The process that has it.
    pub instance: Option<String>,
    /// How many records wait in the dead letters.
    pub dead_letters: Option<i64>,
    /// The last error that this process had with it.
    pub last_error: Option<LastError>,
}

/// An error, since which it may long have gone well again.
#[derive(Debug, Serialize)]
pub struct LastError {
    /// In words for an operator.
    pub message: String,
    /// Its age.
    pub seconds_ago: f64,
}

/// How a partition of a projection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is folded.
    Running,
    /// It is about to be folded, but for a reason that is told.
    Waiting,
    /// It can't be folded on without an operator, for a reason that is told.
    Blocked,
    /// An operator paused the projection.
    Paused,
    /// A rebuild needs a moment of stillness.
    Held,
    /// The projection stopped itself, for a reason that is told.
    Stopped,
    /// No process says that it has it.
    Unassigned,
    /// That can't be found out now.
    Unknown,
}

impl State {
    const ALL: [Self; 8] = [
        Self::Running,
        Self::Waiting,
        Self::Blocked,
        Self::Paused,
        Self::Held,
        Self::Stopped,
        Self::Unassigned,
        Self::Unknown,
    ];

    /// Its name, as JSON and the table of reports have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Blocked => "blocked",
            Self::Paused => "paused",
            Self::Held => "held",
            Self::Stopped => "stopped",
            Self::Unassigned => "unassigned",
            Self::Unknown => "unknown",
        }
    }

    fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}
