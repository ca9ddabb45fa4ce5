//! Transactional outbox: events that are committed in MySQL together with a row, and then appended to the log.
//!
//! The writer of an entry appends it immediately. The relay appends entries that a crash or an unavailable broker
//! left behind. A crash between append and deletion repeats the event with the same id, which folds ignore.
//!
//! An entry that can't be appended through no fault of the log, such as a refused or undecodable one, is recorded in
//! `outbox_failures`, reported in metrics and `/readyz`, and retried every minute: a newer version or a changed
//! permission may resolve it.
//!
//! From before the commit until the append, the affected scopes hold a pending mark: a position that no projection
//! reaches. Reads of these scopes report that they may be stale, no matter which process crashes.

use std::time::Duration;

use metrics::{counter, gauge};
use redis::cmd;
use sqlx::{Acquire, MySqlConnection, MySqlPool};
use thiserror::Error;
use tokio::time::{interval, timeout};
use tracing::{debug, error, info, warn};
use vidlog_contract::limits;
use vidlog_events::{Envelope, Event};
use vidlog_read_models::{Position, ReadModels};
use vidlog_schemas::keys::partition_field;
use vidlog_service_kit::{failpoint, ops::Readiness, shutdown::Shutdown};

use crate::{
    append::{Acknowledged, append, report_unrecorded, scopes},
    envelope_json::{EnvelopeJsonError, from_json, to_json},
    metrics::{OUTBOX_FAILED_ENTRIES, RELAYED_EVENTS},
    mysql::with_timeout,
    publisher::AppendError,
    state::CommandState,
};

/// Id of an entry; ids ascend in insertion order.
pub type Id = u64;

/// Time that the writer of an entry has for appending it; older entries belong to the relay.
const RELAY_AFTER_MS: i64 = 6_000;
const RELAY_EVERY: Duration = Duration::from_secs(1);
/// Number of entries that one transaction locks.
const BATCH_SIZE: u32 = 50;
/// Delay between attempts to append a failed entry.
const FAILED_RETRY_MS: i64 = 60_000;
/// Maximum length of a recorded failure: that of its column.
const MAX_FAILURE_CHARS: usize = 255;
/// Name in the readiness report.
const PART: &str = "outbox";
/// How long a response waits for the append of an event that is already in the outbox.
const WRITER_APPEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Partition and offset of a pending mark; no projection reaches it.
const PENDING_POSITION: (i32, i64) = (i32::MAX, limits::MAX_ID);

/// An outbox entry: a serialized event.
#[derive(Clone, Debug)]
pub struct Entry {
    json: String,
    created_ms: i64,
}

/// Why a run of the relay stopped early.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The log is unavailable: the next run appends the remaining entries.
    #[error("failed to append from the outbox")]
    Log(#[from] AppendError),
    /// MySQL is unavailable: the next run appends the last batch again.
    #[error("failed to read the outbox")]
    MySql(#[from] sqlx::Error),
}

impl Entry {
    /// Serializes an event into an entry.
    pub fn new(envelope: &Envelope) -> Result<Self, EnvelopeJsonError> {
        Ok(Self { json: to_json(envelope)?, created_ms: envelope.time_ms })
    }
}

/// Inserts an entry in the caller's transaction.
pub async fn insert(entry: &Entry, connection: &mut MySqlConnection) -> Result<Id, sqlx::Error> {
    let inserted = sqlx::query("INSERT INTO outbox (event, created_ms) VALUES (?, ?)")
        .bind(&entry.json)
        .bind(entry.created_ms)
        .execute(connection)
        .await?;
    Ok(inserted.last_insert_id())
}

/// Appends a committed entry whose scopes [`mark_pending`] has marked, and deletes it. `None` if that did not succeed
/// in time: then the relay does it.
pub async fn append_now(state: &CommandState, id: Id, envelope: &Envelope) -> Option<Acknowledged> {
    let attempt = append(state.log.as_ref(), &state.read_models.freshness, envelope);
    let Ok(Ok(acknowledged)) = timeout(WRITER_APPEND_TIMEOUT, attempt).await else {
        return None;
    };
    failpoint::pass("outbox-delete-before");
    clear_pending_mark(&state.read_models, &envelope.event).await;
    let delete = sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id);
    if let Err(error) = with_timeout(delete.execute(&state.mysql)).await {
        warn!(id, %error, "failed to delete appended outbox entry; the relay appends it again");
    }
    Some(acknowledged)
}

/// Results of a batch's appends.
#[derive(Default)]
struct BatchOutcome {
    appended: Vec<Id>,
    /// Entries that can't be appended, with the reason.
    failed: Vec<(Id, String)>,
    /// Set if the log became unavailable: later entries were not tried.
    error: Option<AppendError>,
}

/// Appends entries that their writers left behind.
#[derive(Clone)]
pub struct Relay {
    state: CommandState,
}

impl Relay {
    /// A relay of the outbox in the state's database.
    pub const fn new(state: CommandState) -> Self {
        Self { state }
    }

    /// Runs every second until shutdown. Any number of instances may run concurrently.
    pub async fn run(self, readiness: Readiness, shutdown: Shutdown) {
        let mut tick = interval(RELAY_EVERY);
        let mut failing = false;
        let token = shutdown.token();
        while token.run_until_cancelled(tick.tick()).await.is_some() {
            let created_until_ms = self.state.clock.now_ms() - RELAY_AFTER_MS;
            match self.run_once(created_until_ms).await {
                Ok(0) => failing = false,
                Ok(events) => {
                    failing = false;
                    info!(events, "outbox relayed");
                }
                Err(error) if failing => debug!(%error, "outbox relay failed"),
                Err(error) => {
                    failing = true;
                    warn!(%error, "outbox relay failed");
                }
            }
            if let Err(error) = self.report_failures(&readiness).await {
                debug!(%error, "failed to read outbox failures");
            }
        }
    }

    /// Appends all entries created until the given time, in order; returns their number.
    pub async fn run_once(&self, created_until_ms: i64) -> Result<u64, RelayError> {
        let mut after: Id = 0;
        let mut relayed = 0;
        loop {
            let mut connection = with_timeout(self.pool().acquire()).await?;
            // READ COMMITTED takes no gap locks, so new accounts need not wait for the broker.
            let isolation = sqlx::query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
            with_timeout(isolation.execute(&mut *connection)).await?;
            let mut transaction = with_timeout(connection.begin()).await?;
            let now_ms = self.state.clock.now_ms();
            let batch = with_timeout(select(&mut transaction, after, created_until_ms, now_ms)).await?;
            let Some((last, _)) = batch.last() else {
                return Ok(relayed);
            };
            after = *last;
            let BatchOutcome { appended, failed, error } = self.append_batch(&batch).await;
            for id in &appended {
                for delete in ["DELETE FROM outbox WHERE id = ?", "DELETE FROM outbox_failures WHERE id = ?"]
                {
                    with_timeout(sqlx::query(delete).bind(id).execute(&mut *transaction)).await?;
                }
            }
            for (id, failure) in &failed {
                with_timeout(record_failure(&mut transaction, *id, failure, now_ms + FAILED_RETRY_MS))
                    .await?;
            }
            failpoint::pass("relay-commit-before");
            with_timeout(transaction.commit()).await?;
            failpoint::pass("relay-commit-after");
            counter!(RELAYED_EVENTS).increment(appended.len() as u64);
            relayed += appended.len() as u64;
            if let Some(error) = error {
                return Err(error.into());
            }
        }
    }

    /// Appends a batch until the log becomes unavailable.
    async fn append_batch(&self, batch: &[(Id, String)]) -> BatchOutcome {
        let mut outcome = BatchOutcome::default();
        for (id, json) in batch {
            let envelope = match from_json(json) {
                Ok(envelope) => envelope,
                Err(error) => {
                    outcome.failed.push((*id, format!("does not decode: {error}")));
                    continue;
                }
            };
            match self.append_entry(&envelope).await {
                Ok(()) => outcome.appended.push(*id),
                Err(error @ AppendError::Refused(_)) => outcome.failed.push((*id, error.to_string())),
                Err(error) => {
                    // Marks expire; renew those of all entries that are still pending.
                    let events = batch.iter().filter_map(|(_, json)| Some(from_json(json).ok()?.event));
                    mark_pending(&self.state.read_models, &events.collect::<Vec<_>>()).await;
                    outcome.error = Some(error);
                    return outcome;
                }
            }
        }
        outcome
    }

    /// Reports the number of failed entries, and the first failure.
    async fn report_failures(&self, readiness: &Readiness) -> Result<(), sqlx::Error> {
        let query = sqlx::query_as(
            "SELECT COUNT(*), COALESCE(MIN(f.id), 0) FROM outbox_failures f JOIN outbox o ON o.id = f.id",
        );
        let (count, first): (i64, i64) = with_timeout(query.fetch_one(self.pool())).await?;
        gauge!(OUTBOX_FAILED_ENTRIES).set(u32::try_from(count).unwrap_or(u32::MAX));
        if count == 0 {
            readiness.set_warning(PART, None);
            return Ok(());
        }
        let query = sqlx::query_scalar("SELECT failure FROM outbox_failures WHERE id = ?").bind(first);
        let failure: Option<String> = with_timeout(query.fetch_optional(self.pool())).await?;
        let failure = failure.unwrap_or_default();
        readiness
            .set_warning(PART, Some(format!("{count} entries can't be appended; entry {first}: {failure}")));
        Ok(())
    }

    async fn append_entry(&self, envelope: &Envelope) -> Result<(), AppendError> {
        let read_models = &self.state.read_models;
        append(self.state.log.as_ref(), &read_models.freshness, envelope).await?;
        clear_pending_mark(read_models, &envelope.event).await;
        Ok(())
    }

    const fn pool(&self) -> &MySqlPool {
        &self.state.mysql
    }
}

async fn select(
    connection: &mut MySqlConnection,
    after: Id,
    created_until_ms: i64,
    now_ms: i64,
) -> Result<Vec<(Id, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT CAST(id AS UNSIGNED), event FROM outbox WHERE id > ? AND created_ms <= ? \
         AND NOT EXISTS (SELECT 1 FROM outbox_failures f WHERE f.id = outbox.id AND f.retry_ms > ?) \
         ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED",
    )
    .bind(after)
    .bind(created_until_ms)
    .bind(now_ms)
    .bind(BATCH_SIZE)
    .fetch_all(connection)
    .await
}

async fn record_failure(
    connection: &mut MySqlConnection,
    id: Id,
    failure: &str,
    retry_ms: i64,
) -> Result<(), sqlx::Error> {
    let failure: String = failure.chars().take(MAX_FAILURE_CHARS).collect();
    let recorded = sqlx::query(
        "INSERT INTO outbox_failures (id, failure, attempts, retry_ms) VALUES (?, ?, 1, ?) \
         ON DUPLICATE KEY UPDATE failure = ?, attempts = attempts + 1, retry_ms = ?",
    )
    .bind(id)
    .bind(&failure)
    .bind(retry_ms)
    .bind(&failure)
    .bind(retry_ms)
    .execute(connection)
    .await?;
    // 1 is an insert, 2 an update: logs an entry once.
    if recorded.rows_affected() == 1 {
        error!(id, failure, "outbox entry failed");
    }
    Ok(())
}

/// Records a pending mark in the scopes of events of one stream: until it is cleared, reads of them may be stale.
pub async fn mark_pending(read_models: &ReadModels, events: &[Event]) {
    let Some(stream) = events.first().map(|event| event.stream().name()) else {
        return;
    };
    let (partition, next_offset) = PENDING_POSITION;
    let scopes: Vec<_> = events.iter().flat_map(scopes).collect();
    let position = Position { stream, partition, next_offset };
    if let Err(error) = read_models.freshness.mark(&scopes, position).await {
        report_unrecorded(&error);
    }
}

/// Clears an event's pending mark, once its real position is recorded.
async fn clear_pending_mark(read_models: &ReadModels, event: &Event) {
    let field = partition_field(event.stream().name(), PENDING_POSITION.0);
    let commands: Vec<_> = scopes(event)
        .iter()
        .map(|scope| read_models.keys.recent_writes(&scope.to_string()))
        .map(|key| cmd("ZREM").arg(key).arg(&field).take())
        .collect();
    if let Err(error) = read_models.views.pipeline(&commands).await {
        report_unrecorded(&error);
    }
}
