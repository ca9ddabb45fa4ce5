//! The queue of uploads, in the MySQL table `media_jobs`.
//!
//! A job is queued, running, or waiting for its next try. A running one has a lease, which its worker renews; once it
//! ends, the job is due again, as after a wait. So a waiting job costs its row only, and tries outlive their worker.
//! A try that has lost its lease is fenced: its renewal and its end match the worker and the number of the try.
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
    retry::{Failure, History, Reason},
};
use crate::envelope_json::to_json;

/// Maximum number of jobs that one statement enqueues or requeues.
pub const BATCH_SIZE: usize = 100;
/// Maximum length of a recorded error: that of its column.
const MAX_ERROR_CHARS: usize = 255;

const RENEW: &str = concat!(
    "UPDATE ",
    vidlog_schemas::batch!("video_id", "tries"),
    " STRAIGHT_JOIN media_jobs USING (video_id, tries) SET due_ms = ? WHERE worker = ?"
);
const RELEASE: &str = concat!(
    "UPDATE ",
    vidlog_schemas::batch!("video_id", "tries"),
    " STRAIGHT_JOIN media_jobs USING (video_id, tries)
     SET due_ms = NULL, worker = NULL, media_jobs.tries = media_jobs.tries - 1, interruptions = interruptions - 1
     WHERE worker = ?"
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
    /// When the oldest was enqueued, milliseconds since 1970.
    pub oldest_ms: i64,
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
}

impl JobStore {
    /// The queue in the pool's database, for a worker.
    pub const fn new(pool: MySqlPool, worker: String) -> Self {
        Self { pool, worker }
    }

    /// Enqueues up to [`BATCH_SIZE`] uploads, without those that are enqueued or finalized.
    pub async fn enqueue(&self, jobs: &[NewJob], now_ms: i64) -> Result<(), OutcomeError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let finalized: Vec<i64> =
            with_ids("SELECT video_id FROM media_outcomes WHERE appended AND video_id IN ", &video_ids(jobs))
                .build_query_scalar()
                .persistent(false)
                .fetch_all(&self.pool)
                .await?;
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
            "INSERT IGNORE INTO media_jobs (video_id, author_id, event, enqueued_ms, turn) ",
        )
        .push_values(rows, |mut row, (job, turn, event)| {
            row.push_bind(job.video_id.get()).push_bind(job.author_id.get()).push_bind(event);
            row.push_bind(now_ms).push_bind(turn);
        })
        .build()
        .persistent(false)
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// Claims up to `count` queued jobs, whose tries begin with it, until `lease_end_ms`.
    ///
    /// Skips the worker's `running` tries: one that has lost its lease may be queued again while it goes on.
    /// The try is counted before it starts: a job that kills its worker is not found uncounted by the next one.
    pub async fn claim(
        &self,
        count: usize,
        running: &[TryId],
        now_ms: i64,
        lease_end_ms: i64,
    ) -> Result<Vec<Job>, OutcomeError> {
        let mut transaction = self.pool.begin().await?;
        let mut select = QueryBuilder::<MySql>::new(
            "SELECT video_id, event, turn, tries, interruptions, crashes, timeouts, missing, spent_ms \
             FROM media_jobs WHERE due_ms IS NULL",
        );
        if !running.is_empty() {
            let ids: Vec<_> = running.iter().map(|(video_id, _)| *video_id).collect();
            push_ids(select.push(" AND video_id NOT IN "), &ids);
        }
        select.push(" ORDER BY turn, video_id LIMIT ").push_bind(u32::try_from(count).unwrap_or(u32::MAX));
        select.push(" FOR UPDATE SKIP LOCKED");
        let rows: Vec<JobRow> =
            select.build_query_as().persistent(false).fetch_all(&mut *transaction).await?;
        let Some(turn) = rows.iter().map(|row| row.turn).max() else {
            // The query locks the rows that it skips.
            transaction.rollback().await?;
            return Ok(Vec::new());
        };
        let ids: Vec<_> = rows.iter().map(|row| row.video_id).collect();
        let mut update = QueryBuilder::<MySql>::new("UPDATE media_jobs SET due_ms = ");
        update.push_bind(lease_end_ms).push(", started_ms = ").push_bind(now_ms);
        update.push(", worker = ").push_bind(&self.worker);
        update.push(", tries = tries + 1, interruptions = interruptions + 1 WHERE video_id IN ");
        push_ids(&mut update, &ids).build().persistent(false).execute(&mut *transaction).await?;
        sqlx::query("UPDATE media_queue SET turn = GREATEST(turn, ?) WHERE id = 1")
            .bind(turn)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(rows.into_iter().map(Job::from).collect())
    }

    /// Extends the leases of this worker's tries, except those that it has lost.
    pub async fn renew(&self, tries: &[TryId], lease_end_ms: i64) -> Result<(), OutcomeError> {
        sqlx::query(RENEW)
            .bind(batch_of(tries))
            .bind(lease_end_ms)
            .bind(&self.worker)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Queues the jobs of this worker's tries again, as if these had not begun, except those that it has lost.
    pub async fn release(&self, tries: &[TryId]) -> Result<(), OutcomeError> {
        sqlx::query(RELEASE).bind(batch_of(tries)).bind(&self.worker).execute(&self.pool).await?;
        Ok(())
    }

    /// Records a failed try; the job waits until `due_ms`. No effect if the lease was lost.
    pub async fn record_failure(
        &self,
        job: &Job,
        failure: &Failure,
        due_ms: i64,
    ) -> Result<(), OutcomeError> {
        let history = job.history.after(failure);
        let error: String = failure.error.chars().take(MAX_ERROR_CHARS).collect();
        sqlx::query(
            "UPDATE media_jobs SET due_ms = ?, worker = NULL, interruptions = ?, crashes = ?, timeouts = ?, \
             missing = ?, spent_ms = ?, reason = ?, error = ? WHERE video_id = ? AND tries = ? AND \
             worker = ?",
        )
        .bind(due_ms)
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

    /// Queues up to [`BATCH_SIZE`] jobs whose wait or lease has ended; returns their number.
    ///
    /// An interrupted try is not charged to the budget: the number of interruptions has its own limit.
    pub async fn requeue_due(&self, now_ms: i64) -> Result<usize, OutcomeError> {
        let mut transaction = self.pool.begin().await?;
        let due: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT video_id, author_id FROM media_jobs WHERE due_ms <= ? ORDER BY due_ms LIMIT ? \
             FOR UPDATE SKIP LOCKED",
        )
        .bind(now_ms)
        .bind(u32::try_from(BATCH_SIZE).unwrap_or(u32::MAX))
        .fetch_all(&mut *transaction)
        .await?;
        if due.is_empty() {
            // The query locks the rows that it reads. A dropped transaction would keep them locked for a while.
            transaction.rollback().await?;
            return Ok(0);
        }
        let (ids, authors): (Vec<_>, Vec<_>) = due.into_iter().unzip();
        let turns = next_turns(&mut transaction, &authors).await?;
        // MySQL evaluates the assignments in this order.
        let mut update =
            QueryBuilder::<MySql>::new("UPDATE media_jobs SET reason = IF(worker IS NULL, reason, ");
        update.push_bind(Reason::Interrupted.name());
        update.push("), due_ms = NULL, worker = NULL, turn = CASE video_id ");
        for (id, turn) in ids.iter().zip(turns) {
            update.push("WHEN ").push_bind(id).push(" THEN ").push_bind(turn).push(" ");
        }
        push_ids(update.push("END WHERE video_id IN "), &ids)
            .build()
            .persistent(false)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(ids.len())
    }

    /// The uploads without an outcome, by the reason of their last failure.
    pub async fn backlog(&self) -> Result<Vec<Backlog>, OutcomeError> {
        Ok(sqlx::query_as(
            "SELECT reason, COUNT(*) AS count, MIN(enqueued_ms) AS oldest_ms FROM media_jobs GROUP BY reason",
        )
        .fetch_all(&self.pool)
        .await?)
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
    let last: Vec<(i64, i64)> =
        with_ids("SELECT author_id, MAX(turn) FROM media_jobs WHERE author_id IN ", authors)
            .push(" GROUP BY author_id")
            .build_query_as()
            .persistent(false)
            .fetch_all(connection)
            .await?;
    let mut last: HashMap<_, _> = last.into_iter().collect();
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

fn video_ids(jobs: &[NewJob]) -> Vec<i64> {
    jobs.iter().map(|job| job.video_id.get()).collect()
}

fn with_ids(sql: &'static str, ids: &[i64]) -> QueryBuilder<MySql> {
    let mut query = QueryBuilder::new(sql);
    push_ids(&mut query, ids);
    query
}

fn push_ids<'a>(query: &'a mut QueryBuilder<MySql>, ids: &[i64]) -> &'a mut QueryBuilder<MySql> {
    query.push("(");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")")
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
