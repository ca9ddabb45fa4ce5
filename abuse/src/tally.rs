//! Counts of outcomes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How often each outcome occurred. Clones share the counts.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<Mutex<BTreeMap<String, u64>>>);

impl Tally {
    /// Counts an outcome.
    pub(crate) fn add(&self, outcome: impl Into<String>) {
        *self.counts().entry(outcome.into()).or_default() += 1;
    }

    /// Records a value of which the highest counts.
    pub(crate) fn record_max(&self, name: &str, value: u64) {
        let mut counts = self.counts();
        let highest = counts.entry(name.to_owned()).or_default();
        *highest = value.max(*highest);
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> =
            self.counts().iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        f.write_str(if counts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&counts.join(", "))
    }
}
