//! The results of a run.

use crate::{phase::PhaseResult, usage::Usage};

/// How long the run is, and what it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Each attack alone, then all at once; checks times.
    Full,
    /// All attacks at once; does not check times, which depend on what else the machine does.
    Short,
}

/// The results of a run.
pub(crate) struct Results {
    pub(crate) mode: Mode,
    /// The first is without attacks.
    pub(crate) phases: Vec<PhaseResult>,
    pub(crate) before: Usage,
    /// After the attacks have ended.
    pub(crate) after: Usage,
    /// Bytes that the users uploaded.
    pub(crate) uploaded_bytes: u64,
}

impl Results {
    /// The highest usage of all phases.
    pub(crate) fn peak(&self) -> Usage {
        self.phases.iter().fold(self.before, |peak, phase| peak.max(phase.peak))
    }
}
