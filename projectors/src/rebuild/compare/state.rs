//! State of a comparison of two generations: counts and differing lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{sync::watch, time::Instant};
use vidlog_projection_engine::replay::ReplayProgress;
use vidlog_schemas::keys::{Key, ViewKey};

use crate::{
    comparison::{Difference, LineKey, combine},
    rebuild::progress::{PUBLISH_INTERVAL, Progress},
};

/// Number of differing lines at which a comparison stops: enough to find the cause.
pub const MAX_DIFFERENCES: usize = 1000;

/// Differing lines, with the content in the next generation and in the live one.
type Differing = BTreeMap<LineKey, (Option<String>, Option<String>)>;

/// State of a comparison of two generations.
pub(in crate::rebuild) struct Comparison {
    /// Number of keys or rows of the next generation that were compared.
    pub(in crate::rebuild) lines: usize,
    /// Lines that differ at one position.
    pub(super) certain: Differing,
    /// Lines that differed while the live generation moved, which may be the only cause.
    pub(super) unconfirmed: Differing,
    /// Sizes of the differing Redis keys, in the next and in the live generation.
    pub(super) sizes: BTreeMap<String, (usize, usize)>,
    /// Counts of the records that were folded since the comparison began, and the members that they wrote to.
    pub(in crate::rebuild) since: Arc<ReplayProgress>,
    progress: watch::Sender<Progress>,
    published: Instant,
}

impl Comparison {
    pub(super) fn new(progress: &watch::Sender<Progress>) -> Self {
        Self {
            lines: 0,
            certain: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            sizes: BTreeMap::new(),
            since: Arc::new(ReplayProgress { touched: Some(Mutex::default()), ..ReplayProgress::default() }),
            progress: progress.clone(),
            published: Instant::now(),
        }
    }

    /// Returns whether the generations differ.
    pub(in crate::rebuild) fn has_differences(&self) -> bool {
        !self.certain.is_empty()
    }

    /// Returns whether the whole view was compared.
    pub(in crate::rebuild) fn is_complete(&self) -> bool {
        !self.is_enough()
    }

    /// Returns the differences, with those of one Redis key combined.
    pub(in crate::rebuild) fn differences(&self) -> Vec<Difference> {
        combine(&self.certain, &self.sizes)
    }

    /// Returns whether enough lines differ to stop. It stays true, as the rest of the view is not compared
    /// then.
    pub(super) fn is_enough(&self) -> bool {
        self.certain.len() >= MAX_DIFFERENCES
    }

    /// Counts compared keys or rows, and publishes the progress.
    pub(super) fn count(&mut self, lines: usize) {
        self.lines += lines;
        if self.published.elapsed() >= PUBLISH_INTERVAL {
            self.published = Instant::now();
            self.progress.send_replace(Progress::Comparing { lines: self.lines });
        }
    }

    pub(super) fn add(&mut self, key: LineKey, expected: Option<String>, found: Option<String>) {
        if !self.is_enough() {
            self.certain.insert(key, (expected, found));
        }
    }

    /// Returns the lines that were written to since the last call.
    pub(super) fn take_touched(&self) -> BTreeSet<LineKey> {
        let touched = self
            .since
            .touched
            .as_ref()
            .map(|touched| std::mem::take(&mut *touched.lock().unwrap_or_else(PoisonError::into_inner)));
        let members = touched.unwrap_or_default();
        let line =
            |(key, member): (Key, String)| Some(LineKey::member(&ViewKey::parse(&key.name)?.name, member));
        members.into_iter().filter_map(line).collect()
    }
}
