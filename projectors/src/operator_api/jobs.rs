//! Background jobs of a process: at most one per projection and kind at a time, with the state of the last one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use vidlog_projection_engine::view::Projection;
use vidlog_service_kit::clock::Clock;

use crate::comparison::Difference;

/// Number of differences that a state lists; all are counted.
const MAX_LISTED: usize = 20;

/// The jobs of one kind. Clones share them.
pub(super) struct Jobs<R> {
    last: Arc<Mutex<BTreeMap<&'static str, JobState<R>>>>,
}

/// The state of a projection's last job.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(super) enum JobState<R> {
    /// In progress.
    Running {
        /// Start, in ms since 1970.
        begun_ms: i64,
        /// Progress, if the job reports it.
        #[serde(skip_serializing_if = "Option::is_none")]
        progress: Option<String>,
    },
    /// Completed.
    Done {
        /// End, in ms since 1970.
        ended_ms: i64,
        /// Result of the job.
        #[serde(flatten)]
        result: R,
    },
    /// Failed.
    Failed {
        /// End, in ms since 1970.
        ended_ms: i64,
        /// Error message.
        error: String,
    },
}

/// A claimed job. No other job of the projection begins until it has run.
pub(super) struct Job<R> {
    jobs: Jobs<R>,
    name: &'static str,
    begun_ms: i64,
}

impl<R: Clone + Send + 'static> Jobs<R> {
    /// Returns the states of the last jobs of some projections.
    pub(super) fn last(&self, projections: &[Projection]) -> BTreeMap<&'static str, JobState<R>> {
        let last = self.lock();
        let of = |projection: &Projection| last.get_key_value(projection.name());
        projections.iter().filter_map(of).map(|(name, state)| (*name, state.clone())).collect()
    }

    /// Claims the job of a projection. Returns `None` while another one runs.
    pub(super) fn claim(&self, projection: &Projection) -> Option<Job<R>> {
        let name = projection.name();
        let mut last = self.lock();
        if matches!(last.get(name), Some(JobState::Running { .. })) {
            return None;
        }
        let begun_ms = Clock::system().now_ms();
        last.insert(name, JobState::Running { begun_ms, progress: None });
        Some(Job { jobs: self.clone(), name, begun_ms })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, JobState<R>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R: Clone + Send + 'static> Job<R> {
    /// Updates the progress.
    pub(super) fn set_progress(&self, progress: String) {
        let running = JobState::Running { begun_ms: self.begun_ms, progress: Some(progress) };
        self.jobs.lock().insert(self.name, running);
    }

    /// Runs the job, and records its result, its error, or its panic.
    pub(super) async fn run<Work>(self, work: impl FnOnce(Arc<Self>) -> Work) -> Result<R, String>
    where
        Work: Future<Output = anyhow::Result<R>> + Send + 'static,
    {
        let job = Arc::new(self);
        // As a task of its own: a panic must not end the caller, nor leave the job running forever.
        let ran = tokio::spawn(work(job.clone())).await;
        let result = ran.map_err(anyhow::Error::from).flatten().map_err(|error| format!("{error:#}"));
        let ended_ms = Clock::system().now_ms();
        let state = match &result {
            Ok(result) => JobState::Done { ended_ms, result: result.clone() },
            Err(error) => JobState::Failed { ended_ms, error: error.clone() },
        };
        job.jobs.lock().insert(job.name, state);
        result
    }
}

impl<R> Clone for Jobs<R> {
    fn clone(&self) -> Self {
        Self { last: self.last.clone() }
    }
}

impl<R> Default for Jobs<R> {
    fn default() -> Self {
        Self { last: Arc::default() }
    }
}

/// Returns the differences that a state lists, as text.
pub(super) fn listed(differences: &[Difference]) -> Vec<String> {
    differences.iter().take(MAX_LISTED).map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use serde_json::{Value, json};

    use super::*;
    use crate::projections;

    #[derive(Clone, Serialize)]
    struct Counted {
        lines: usize,
    }

    fn state(jobs: &Jobs<Counted>, projection: &Projection) -> Value {
        let mut state = serde_json::to_value(&jobs.last(&[*projection])[projection.name()]).unwrap();
        for time in ["begun_ms", "ended_ms"] {
            state.as_object_mut().unwrap().remove(time);
        }
        state
    }

    #[tokio::test]
    async fn one_job_per_projection_runs_at_a_time() {
        let [first, second, ..] = projections::ALL;
        let jobs = Jobs::<Counted>::default();
        let job = jobs.claim(&first).unwrap();
        assert!(jobs.claim(&first).is_none());
        assert!(jobs.claim(&second).is_some(), "jobs of different projections are independent");
        assert_eq!(state(&jobs, &first), json!({"state": "running"}));
        job.set_progress("half".to_owned());
        assert_eq!(state(&jobs, &first), json!({"state": "running", "progress": "half"}));
        job.run(async |_| Ok(Counted { lines: 7 })).await.unwrap();
        assert_eq!(state(&jobs, &first), json!({"state": "done", "lines": 7}));
        assert!(jobs.claim(&first).is_some());
    }

    #[tokio::test]
    async fn failed_and_panicked_jobs_are_not_running() {
        let [projection, ..] = projections::ALL;
        let jobs = Jobs::<Counted>::default();
        let failed = jobs.claim(&projection).unwrap().run(async |_| anyhow::bail!("no store")).await;
        assert!(failed.is_err());
        assert_eq!(state(&jobs, &projection), json!({"state": "failed", "error": "no store"}));
        let panicked = jobs.claim(&projection).unwrap().run(async |_| panic!("a bug")).await;
        assert!(panicked.is_err());
        assert_eq!(state(&jobs, &projection)["state"], "failed");
        let job = jobs.claim(&projection).unwrap();
        let running = tokio::spawn(job.run(async |_| pending().await));
        assert!(jobs.claim(&projection).is_none());
        running.abort();
    }
}
