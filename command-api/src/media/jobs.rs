//! The queue of uploads, in the MySQL table `media_jobs`.
//!
//! A job is queued, running, or waiting for its next try. A running one has a lease, which its worker renews; once it
//! ends, the job is due again, as after a wait. So a waiting job costs its row only, and tries outlive their worker.
//! A try that has lost its lease is fenced: its renewal and its end match the worker and the number of the try, which no
//! other try of the job has. All times are MySQL's: the clocks of workers differ.
//!
//! A statement whose answer is lost may have been executed. Each can be repeated: after it, and after any later one, it
//! has no effect. A claim can't, so its caller releases the tries that may have begun.
//!
//! Authors take turns (start-time fair queuing): a job takes the turn after the last one of its author, or that of the
//! job that started last if this is later. So a job waits for at most one job of each other author, however many they
//! have.

use std::{collections::HashMap, time::Duration};

use sqlx::{MySql, MySqlConnection, MySqlPool, QueryBuilder};
use vidlog_events::{Envelope, UserId, VideoId};
use vidlog_schemas::batch;

use super::{
    outcomes::OutcomeError,
    retry::{Failure, History, MAX_BACKOFF, Reason},
};
use crate::{envelope_json::to_json, mysql::mysql_now_ms};

/// Maximum number of jobs that one statement enqueues or requeues.
pub const BATCH_SIZE: usize = 100;
/// Maximum length of a recorded error: that of its column.
const MAX_ERROR_CHARS: usize = 255;

const FINALIZED: &str = concat!(
    "SELECT video_id FROM ",
    batch!("video_id"),
    " STRAIGHT_JOIN media_outcomes USING (video_id) WHERE appended"
);
/// One lookup for each author. `MAX(turn)` would read all jobs of one.
const LAST_TURNS: &str = concat!(
    "SELECT author_id, (SELECT turn FROM media_jobs WHERE media_jobs.author_id = batch.author_id
        ORDER BY turn DESC LIMIT 1) FROM ",
    batch!("author_id")
);
/// The server filters by the batch, instead of looking the jobs of the batch up: they are to be skipped.
const QUEUED: &str =
    "SELECT video_id, event, turn, tries, interruptions, crashes, timeouts, missing, spent_ms
    FROM media_jobs WHERE due_ms IS NULL AND NOT JSON_CONTAINS(?, CAST(video_id AS CHAR))
    ORDER BY turn, video_id LIMIT ? FOR UPDATE SKIP LOCKED";
const BEGIN: &str = concat!(
    "UPDATE ",
    batch!("video_id"),
    " STRAIGHT_JOIN media_jobs USING (video_id) SET due_ms = ",
    mysql_now_ms!(),
    " + ?, worker = ?, tries = tries + 1, interruptions = interruptions + 1"
);
const RENEW: &str = concat!(
    "UPDATE ",
    batch!("video_id", "tries"),
    " STRAIGHT_JOIN media_jobs USING (video_id, tries) SET due_ms = ",
    mysql_now_ms!(),
    " + ? WHERE worker = ?"
);
const RELEASE: &str = concat!(
    "UPDATE ",
    batch!("video_id", "tries"),
    " STRAIGHT_JOIN media_jobs USING (video_id, tries)
     SET due_ms = NULL, worker = NULL, interruptions = interruptions - 1 WHERE worker = ?"
);
const RECORD_FAILURE: &str = concat!(
    "UPDATE media_jobs SET due_ms = ",
    mysql_now_ms!(),
    " + ?, worker = NULL, interruptions = ?, crashes = ?, timeouts = ?, missing = ?, spent_ms = ?, reason = ?,
     error = ? WHERE video_id = ? AND tries = ? AND worker = ?"
);
const DUE: &str = concat!(
    "SELECT video_id, author_id, worker IS NOT NULL FROM media_jobs WHERE due_ms <= ",
    mysql_now_ms!(),
    " ORDER BY due_ms LIMIT ? FOR UPDATE SKIP LOCKED"
);
/// Leases and waits that end later than any can: MySQL's clock was set back since they began. They keep a full lease, so
/// that a worker which is alive renews it.
const CAP_DUE: &str = concat!(
    "UPDATE media_jobs SET due_ms = ",
    mysql_now_ms!(),
    " + ? WHERE due_ms > ",
    mysql_now_ms!(),
    " + ? ORDER BY due_ms LIMIT ?"
);
const INTERRUPT: &str =
    concat!("UPDATE ", batch!("video_id"), " STRAIGHT_JOIN media_jobs USING (video_id) SET reason = ?");
const REQUEUE: &str = concat!(
    "UPDATE ",
    batch!("video_id", "next_turn"),
    " STRAIGHT_JOIN media_jobs USING (video_id) SET due_ms = NULL, worker = NULL, turn = next_turn"
);
const BACKLOG: &str = concat!(
    "SELECT reason, COUNT(*) AS count, GREATEST(0, ",
    mysql_now_ms!(),
    " - MIN(enqueued_ms)) DIV 1000 AS oldest_s FROM media_jobs GROUP BY reason"
);

/// A video and the number of its try.
pub type TryId = (i64, u32);

/// An upload that a worker has claimed.
#[derive(Clone, Debug)]
pub struct Job {
    /// The video.
    pub video_id: i64,
    /// The event of the upload, in the form of `envelope_json`.
    pub event: String,
    /// How earlier tries ended; the current one has begun.
    pub history: History,
}

impl Job {
    /// The current try.
    pub const fn try_id(&self) -> TryId {
        (self.video_id, self.history.tries)
    }
}

/// An upload to enqueue.
#[derive(Debug)]
pub struct NewJob {
    /// The video.
    pub video_id: VideoId,
    /// Its author, whose turns it takes.
    pub author_id: UserId,
    /// The event of the upload.
    pub envelope: Envelope,
}

/// Uploads without an outcome whose last try failed for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Backlog {
    /// Name of the [`Reason`]; empty for uploads that have not failed.
    pub reason: String,
    /// Their number.
    pub count: i64,
    /// Age of the oldest, seconds since it was enqueued; 0 if MySQL's clock was set back to before that.
    pub oldest_s: i64,
}

#[derive(sqlx::FromRow)]
struct JobRow {
    video_id: i64,
    event: String,
    turn: i64,
    tries: u32,
    interruptions: u32,
    crashes: u32,
    timeouts: u32,
    missing: u32,
    spent_ms: i64,
}

/// Access to the queue. Clones share the pool.
#[derive(Clone, Debug)]
pub struct JobStore {
    pool: MySqlPool,
    /// Name of this worker in its leases; unique per run.
    worker: String,
    lease: Duration,
}

impl JobStore {
    /// The queue in the pool's database, for a worker whose leases last for `lease` unless it renews them.
    pub const fn new(pool: MySqlPool, worker: String, lease: Duration) -> Self {
        Self { pool, worker, lease }
    }

    /// Enqueues up to [`BATCH_SIZE`] uploads, without those that are enqueued or finalized.
    pub async fn enqueue(&self, jobs: &[NewJob]) -> Result<(), OutcomeError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = jobs.iter().map(|job| job.video_id.get()).collect();
        let finalized: Vec<i64> =
            sqlx::query_scalar(FINALIZED).bind(batch::ids(&ids)).fetch_all(&self.pool).await?;
        let jobs: Vec<_> = jobs.iter().filter(|job| !finalized.contains(&job.video_id.get())).collect();
        if jobs.is_empty() {
            return Ok(());
        }
        let mut connection = self.pool.acquire().await?;
        let authors: Vec<_> = jobs.iter().map(|job| job.author_id.get()).collect();
        let turns = next_turns(&mut connection, &authors).await?;
        let mut rows = Vec::new();
        for (job, turn) in jobs.into_iter().zip(turns) {
            rows.push((job, turn, to_json(&job.envelope)?));
        }
        QueryBuilder::<MySql>::new(
            "INSERT IGNORE INTO media_jobs (video_id, author_id, event, turn, enqueued_ms) ",
        )
        .push_values(rows, |mut row, (job, turn, event)| {
            row.push_bind(job.video_id.get()).push_bind(job.author_id.get()).push_bind(event);
            row.push_bind(turn).push(mysql_now_ms!());
        })
        .build()
        .persistent(false)
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// Claims up to `count` queued jobs, whose tries begin with it.
    ///
    /// Skips the worker's `running` tries: one that has lost its lease may be queued again while it goes on.
    /// The try is counted before it starts: a job that kills its worker is not found uncounted by the next one.
    ///
    /// If the call fails or is cancelled, `unconfirmed` has the tries that may have begun: [`JobStore::release`] them
    /// before the next call, or they count as interrupted.
    pub async fn claim(
        &self,
        count: usize,
        running: &[TryId],
        unconfirmed: &mut Vec<TryId>,
    ) -> Result<Vec<Job>, OutcomeError> {
        let running: Vec<_> = running.iter().map(|(video_id, _)| *video_id).collect();
        let mut transaction = self.pool.begin().await?;
        let rows: Vec<JobRow> = sqlx::query_as(QUEUED)
            .bind(batch::ids(&running))
            .bind(u32::try_from(count).unwrap_or(u32::MAX))
            .fetch_all(&mut *transaction)
            .await?;
        let Some(turn) = rows.iter().map(|row| row.turn).max() else {
            // The query locks the rows that it skips.
            transaction.rollback().await?;
            return Ok(Vec::new());
        };
        let jobs: Vec<_> = rows.into_iter().map(Job::from).collect();
        *unconfirmed = jobs.iter().map(Job::try_id).collect();
        sqlx::query(BEGIN)
            .bind(batch::ids(jobs.iter().map(|job| &job.video_id)))
            .bind(millis(self.lease))
            .bind(&self.worker)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE media_queue SET turn = GREATEST(turn, ?) WHERE id = 1")
            .bind(turn)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        unconfirmed.clear();
        Ok(jobs)
    }

    /// Extends the leases of this worker's tries, except those that it has lost.
    pub async fn renew(&self, tries: &[TryId]) -> Result<(), OutcomeError> {
        sqlx::query(RENEW)
            .bind(batch_of(tries))
            .bind(millis(self.lease))
            .bind(&self.worker)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Queues the jobs of this worker's tries again, except those that it has lost. The tries do not count as
    /// interrupted.
    pub async fn release(&self, tries: &[TryId]) -> Result<(), OutcomeError> {
        sqlx::query(RELEASE).bind(batch_of(tries)).bind(&self.worker).execute(&self.pool).await?;
        Ok(())
    }

    /// Records a failed try; the job waits for `backoff`. No effect if the lease was lost.
    pub async fn record_failure(
        &self,
        job: &Job,
        failure: &Failure,
        backoff: Duration,
    ) -> Result<(), OutcomeError> {
        let history = job.history.after(failure);
        let error: String = failure.error.chars().take(MAX_ERROR_CHARS).collect();
        sqlx::query(RECORD_FAILURE)
            .bind(millis(backoff))
            .bind(history.interruptions)
            .bind(history.crashes)
            .bind(history.timeouts)
            .bind(history.missing)
            .bind(millis(history.spent))
            .bind(failure.reason.name())
            .bind(error)
            .bind(job.video_id)
            .bind(history.tries)
            .bind(&self.worker)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Removes a finalized upload.
    pub async fn remove(&self, job: &Job) -> Result<(), OutcomeError> {
        sqlx::query("DELETE FROM media_jobs WHERE video_id = ?")
            .bind(job.video_id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Queues up to [`BATCH_SIZE`] jobs whose wait or lease has ended; returns their number. After MySQL's clock was set
    /// back, first caps the waits and leases, which would last longer by that time.
    ///
    /// An interrupted try is not charged to the budget: the number of interruptions has its own limit.
    pub async fn requeue_due(&self) -> Result<usize, OutcomeError> {
        // Above both the longest lease and the longest wait.
        let max_wait_ms = millis(self.lease + MAX_BACKOFF);
        sqlx::query(CAP_DUE)
            .bind(max_wait_ms)
            .bind(max_wait_ms)
            .bind(u32::try_from(BATCH_SIZE).unwrap_or(u32::MAX))
            .execute(&self.pool)
            .await?;
        let mut transaction = self.pool.begin().await?;
        let due: Vec<(i64, i64, bool)> = sqlx::query_as(DUE)
            .bind(u32::try_from(BATCH_SIZE).unwrap_or(u32::MAX))
            .fetch_all(&mut *transaction)
            .await?;
        if due.is_empty() {
            // The query locks the rows that it reads. A dropped transaction would keep them locked for a while.
            transaction.rollback().await?;
            return Ok(0);
        }
        let interrupted = due.iter().filter(|(.., is_leased)| *is_leased).map(|(id, ..)| id);
        sqlx::query(INTERRUPT)
            .bind(batch::ids(interrupted))
            .bind(Reason::Interrupted.name())
            .execute(&mut *transaction)
            .await?;
        let authors: Vec<_> = due.iter().map(|(_, author, _)| *author).collect();
        let turns = next_turns(&mut transaction, &authors).await?;
        let requeued: Vec<_> = due.iter().map(|(id, ..)| *id).zip(turns).collect();
        sqlx::query(REQUEUE).bind(batch::pairs(&requeued)).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(due.len())
    }

    /// The uploads without an outcome, by the reason of their last failure.
    pub async fn backlog(&self) -> Result<Vec<Backlog>, OutcomeError> {
        Ok(sqlx::query_as(BACKLOG).fetch_all(&self.pool).await?)
    }
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        Self {
            video_id: row.video_id,
            event: row.event,
            history: History {
                tries: row.tries + 1,
                interruptions: row.interruptions + 1,
                crashes: row.crashes,
                timeouts: row.timeouts,
                missing: row.missing,
                spent: Duration::from_millis(u64::try_from(row.spent_ms).unwrap_or_default()),
            },
        }
    }
}

/// The next turns of authors, one for each time that an author is listed.
async fn next_turns(connection: &mut MySqlConnection, authors: &[i64]) -> Result<Vec<i64>, sqlx::Error> {
    let current: i64 =
        sqlx::query_scalar("SELECT turn FROM media_queue WHERE id = 1").fetch_one(&mut *connection).await?;
    let last: Vec<(i64, Option<i64>)> =
        sqlx::query_as(LAST_TURNS).bind(batch::ids(authors)).fetch_all(connection).await?;
    let last = last.into_iter().filter_map(|(author, turn)| Some((author, turn?)));
    let mut last: HashMap<_, _> = last.collect();
    let next = |author: &i64| {
        let turn = last.get(author).map_or(current, |last| current.max(last + 1));
        last.insert(*author, turn);
        turn
    };
    Ok(authors.iter().map(next).collect())
}

fn batch_of(tries: &[TryId]) -> String {
    let tries: Vec<_> = tries.iter().map(|(video_id, number)| (*video_id, i64::from(*number))).collect();
    batch::pairs(&tries)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
