//! Status of projections: merges what their processes report with the state of the stores and the log.

mod exporter;
mod folded_until;
mod gather;
mod join;
mod oldest;
mod report;
mod table;

use serde::Serialize;

pub(crate) use self::exporter::Exporter;
pub use self::gather::gather;
pub(crate) use self::report::{Report, Reporter, read as read_reports};

/// Status of some projections.
#[derive(Debug, Serialize)]
pub struct Status {
    /// One entry per projection.
    pub projections: Vec<ProjectionStatus>,
    /// Sources that failed, each with the reason.
    pub unknown: Vec<String>,
}

/// Status of a projection. Unavailable values are `None` (JSON null).
#[derive(Debug, Serialize)]
pub struct ProjectionStatus {
    /// Name.
    pub name: &'static str,
    /// Live generation.
    pub generation: Option<u32>,
    /// Reason why the positions are unavailable.
    pub unknown: Option<String>,
    /// One entry per partition of its topics.
    pub partitions: Vec<PartitionStatus>,
}

/// Status of a partition of a projection. Unavailable values are `None` (JSON null).
#[derive(Debug, Serialize)]
pub struct PartitionStatus {
    /// `<stream>:<number>`.
    pub partition: String,
    /// Offset of the first record that the visible view does not include.
    pub position: Option<i64>,
    /// End offset of the partition: the offset of the next record.
    pub end: Option<i64>,
    /// Offsets from the position to the end.
    pub lag: Option<i64>,
    /// Age of the first unfolded record; 0 if there is none.
    pub lag_seconds: Option<f64>,
    /// State of the partition.
    pub state: State,
    /// Reason for the state.
    pub why: Option<String>,
    /// Records folded per second, averaged over the last 10 seconds.
    pub records_per_second: Option<f64>,
    /// Process that owns the partition.
    pub instance: Option<String>,
    /// Number of parked records in the dead-letter queue.
    pub dead_letters: Option<i64>,
    /// Last error that this process had with the partition.
    pub last_error: Option<LastError>,
}

/// A past error; the partition may have recovered since.
#[derive(Debug, Serialize)]
pub struct LastError {
    /// Message for operators.
    pub message: String,
    /// Age in seconds.
    pub seconds_ago: f64,
}

/// State of a partition of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The process folds the partition.
    Running,
    /// The process does not fold the partition yet, for the given reason.
    Waiting,
    /// The process has made no progress for seconds, for the given reason. It retries.
    Blocked,
    /// An operator paused the projection.
    Paused,
    /// A rebuild or an audit holds the projection briefly.
    Held,
    /// The projection stopped itself, for the given reason.
    Stopped,
    /// No process reports that it owns the partition.
    Unassigned,
    /// The desired state or the reports are unavailable.
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

    /// Returns the name that JSON and the table `projector_status` use.
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
