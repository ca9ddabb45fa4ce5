//! Claims queued uploads, processes them, and records how the tries end.
//!
//! A try that fails frees its slot at once. A panic in one is a failure of that try.

use std::{any::Any, collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt;
use metrics::{counter, gauge};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use vidlog_service_kit::{ops::Readiness, shutdown::Shutdown};

use super::{
    config::Limits,
    intake::PART,
    jobs::{BATCH_SIZE, Backlog, Job, JobStore, TryId},
    processor::{Processed, UploadProcessor, with_timeout},
    retry::{Failure, Reason},
};
use crate::metrics::{MEDIA_FAULTS, MEDIA_OLDEST_SECONDS, MEDIA_WAITING};

/// Delay between attempts to record the end of a try.
const RECORD_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Reports of the backlog within the duration of a lease.
const REPORTS_PER_LEASE: u32 = 3;
/// Label of uploads that have not failed.
const NOT_FAILED: &str = "queued";

/// Processes the uploads of the queue.
pub(super) struct Scheduler {
    /// Maximum number of uploads in progress.
    pub(super) concurrency: usize,
    /// Runs a try.
    pub(super) processor: UploadProcessor,
    /// The queue.
    pub(super) jobs: JobStore,
    /// Notified when uploads are enqueued.
    pub(super) enqueued: Arc<Notify>,
    /// Limits on uploads and retries.
    pub(super) limits: Limits,
    /// Reports uploads that wait.
    pub(super) readiness: Readiness,
}

/// The uploads in progress.
#[derive(Default)]
struct Running {
    tasks: JoinSet<i64>,
    /// The number of the try by video: at most one runs.
    tries: BTreeMap<i64, u32>,
    /// Tries that a failed claim may have begun.
    unconfirmed: Vec<TryId>,
}

impl Running {
    /// Waits for the end of a try; forever if there is none.
    async fn next_end(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(id)) => drop(self.tries.remove(&id)),
            // A task catches panics, so it ends with its id unless it is aborted, which happens on drop only.
            Some(Err(error)) => warn!(%error, "upload task ended without a result"),
            None => std::future::pending().await,
        }
    }

    fn tries(&self) -> Vec<TryId> {
        self.tries.iter().map(|(id, number)| (*id, *number)).collect()
    }
}

impl Scheduler {
    /// Processes uploads until shutdown. Then it stops the tries, and queues their uploads again.
    pub(super) async fn run(self, shutdown: Shutdown) {
        let stop = shutdown.token().clone();
        let mut running = Running::default();
        let mut poll = ticks(self.limits.poll_interval);
        let mut report = ticks(self.limits.lease / REPORTS_PER_LEASE);
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = report.tick() => {
                    self.report_backlog().await;
                    continue;
                }
                () = running.next_end() => {}
                () = self.enqueued.notified() => {}
                // After an outage of MySQL, renewal and release first: an expired lease counts as an interrupted try.
                _ = poll.tick() => if self.renew(&running).await
                    && self.release_unconfirmed(&mut running).await.is_ok()
                {
                    self.requeue_due().await;
                }
            }
            self.start_jobs(&mut running, &stop).await;
        }
        // The tries end at once, but for those that append an outcome.
        let mut stopped = running.tries();
        stopped.append(&mut running.unconfirmed);
        while running.tasks.join_next().await.is_some() {}
        if !stopped.is_empty()
            && let Err(failure) = with_timeout(self.jobs.release(&stopped)).await
        {
            warn!(error = failure.error, "failed to release uploads; their leases expire");
        }
        self.readiness.set_warning(PART, None);
    }

    /// Claims uploads for the free slots.
    async fn start_jobs(&self, running: &mut Running, stop: &CancellationToken) {
        let free = self.concurrency.saturating_sub(running.tries.len());
        if free == 0 {
            return;
        }
        let jobs = match self.claim(free, running).await {
            Ok(jobs) => jobs,
            Err(failure) => return debug!(error = failure.error, "failed to claim uploads"),
        };
        for job in jobs {
            running.tries.insert(job.video_id, job.history.tries);
            running.tasks.spawn(Try::new(self, stop).run(job));
        }
    }

    /// Claims uploads, once those of a failed claim are released: a try that did not run must not count as interrupted.
    async fn claim(&self, count: usize, running: &mut Running) -> Result<Vec<Job>, Failure> {
        self.release_unconfirmed(running).await?;
        let tries = running.tries();
        with_timeout(self.jobs.claim(count, &tries, &mut running.unconfirmed)).await
    }

    /// Releases the tries that a failed claim may have begun.
    async fn release_unconfirmed(&self, running: &mut Running) -> Result<(), Failure> {
        if !running.unconfirmed.is_empty() {
            with_timeout(self.jobs.release(&running.unconfirmed)).await?;
            running.unconfirmed.clear();
        }
        Ok(())
    }

    async fn requeue_due(&self) {
        loop {
            match with_timeout(self.jobs.requeue_due()).await {
                Ok(BATCH_SIZE) => {}
                Ok(_) => return,
                Err(failure) => return debug!(error = failure.error, "failed to requeue uploads"),
            }
        }
    }

    /// Renews the leases; returns whether it succeeded.
    async fn renew(&self, running: &Running) -> bool {
        let tries = running.tries();
        if tries.is_empty() {
            return true;
        }
        let renewed = with_timeout(self.jobs.renew(&tries)).await;
        renewed
            .inspect_err(|failure| warn!(error = failure.error, "failed to renew leases of uploads"))
            .is_ok()
    }

    /// Reports the uploads without an outcome in metrics, and those that failed in `/readyz`.
    async fn report_backlog(&self) {
        let backlog = match with_timeout(self.jobs.backlog()).await {
            Ok(backlog) => backlog,
            // Claims fail for the same reason, and more often.
            Err(failure) => return warn!(error = failure.error, "failed to read the backlog of uploads"),
        };
        for name in Reason::ALL.map(Reason::name).into_iter().chain([NOT_FAILED]) {
            let entry = backlog.iter().find(|entry| label(entry) == name);
            let (count, age_s) = entry.map_or((0, 0), |entry| (entry.count, entry.oldest_s));
            gauge!(MEDIA_WAITING, "reason" => name).set(to_f64(count));
            gauge!(MEDIA_OLDEST_SECONDS, "reason" => name).set(to_f64(age_s));
        }
        self.readiness.set_warning(PART, warning(&backlog));
    }
}

/// Runs one try at an upload.
struct Try {
    processor: UploadProcessor,
    jobs: JobStore,
    limits: Limits,
    stop: CancellationToken,
}

impl Try {
    fn new(scheduler: &Scheduler, stop: &CancellationToken) -> Self {
        Self {
            processor: scheduler.processor.clone(),
            jobs: scheduler.jobs.clone(),
            limits: scheduler.limits,
            stop: stop.clone(),
        }
    }

    /// Returns the video's id.
    async fn run(self, job: Job) -> i64 {
        let attempt = AssertUnwindSafe(self.processor.attempt(&job, &self.stop)).catch_unwind();
        let result = attempt.await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        if let Err(failure) = &result {
            counter!(MEDIA_FAULTS).increment(1);
            let Failure { reason, error, .. } = failure;
            let (video_id, history) = (job.video_id, job.history.after(failure));
            warn!(video_id, reason = reason.name(), error, ?history, "failed to process upload");
        }
        // A try whose end is not recorded would count as interrupted.
        while let Err(failure) = self.record_end(&job, &result).await {
            warn!(video_id = job.video_id, error = failure.error, "failed to record a try; retrying");
            if self.stop.run_until_cancelled(sleep(RECORD_RETRY_INTERVAL)).await.is_none() {
                break;
            }
        }
        job.video_id
    }

    async fn record_end(&self, job: &Job, result: &Result<Processed, Failure>) -> Result<(), Failure> {
        match result {
            Ok(Processed::Finalized) => with_timeout(self.jobs.remove(job)).await,
            // The scheduler releases it.
            Ok(Processed::Stopped) => Ok(()),
            Err(failure) => {
                let backoff = job.history.after(failure).backoff(&self.limits);
                with_timeout(self.jobs.record_failure(job, failure, backoff)).await
            }
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref().copied()).unwrap_or("no message");
    Failure::new(Reason::Crashed, &format!("the try panicked: {message}"))
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// One line about the uploads that have failed and wait for another try; `None` if there are none.
fn warning(backlog: &[Backlog]) -> Option<String> {
    let failed: Vec<_> = backlog.iter().filter(|entry| label(entry) != NOT_FAILED).collect();
    let count: i64 = failed.iter().map(|entry| entry.count).sum();
    let oldest_s = failed.iter().map(|entry| entry.oldest_s).max()?;
    let reasons: Vec<_> = failed.iter().map(|entry| format!("{} {}", entry.count, entry.reason)).collect();
    Some(format!("{count} uploads wait for another try, the oldest for {oldest_s} s: {}", reasons.join(", ")))
}

fn label(entry: &Backlog) -> &str {
    if entry.reason.is_empty() { NOT_FAILED } else { &entry.reason }
}

fn to_f64(count: i64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
