//! Transactional outbox: events that are committed in MySQL together with a row, and then appended to the log.
//!
//! The writer of an entry appends it immediately. The relay appends entries that a crash or an unavailable broker
//! left behind. A crash between append and deletion repeats the event with the same id, which folds ignore.
//!
//! From before the commit until the append, the affected scopes hold a pending mark: a position that no projection
//! reaches. Reads of these scopes report that they may be stale, no matter which process crashes.

use std::time::Duration;

use metrics::counter;
use redis::cmd;
use sqlx::{Acquire, MySqlConnection, MySqlPool};
use thiserror::Error;
use tokio::time::{interval, timeout};
use tracing::{debug, error, info, warn};
use vidlog_contract::limits;
use vidlog_events::{Envelope, Event};
use vidlog_read_models::{Position, ReadModels};
use vidlog_schemas::keys::partition_field;
use vidlog_service_kit::{failpoint, shutdown::Shutdown};

use crate::{
    append::{Acknowledged, append, report_unrecorded, scopes},
    envelope_json::{EnvelopeJsonError, from_json, to_json},
    metrics::RELAYED_EVENTS,
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
    pub async fn run(self, shutdown: Shutdown) {
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
            let batch = with_timeout(select(&mut transaction, after, created_until_ms)).await?;
            let Some((last, _)) = batch.last() else {
                return Ok(relayed);
            };
            after = *last;
            let (appended, result) = self.append_batch(&batch).await;
            for id in &appended {
                let delete = sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id);
                with_timeout(delete.execute(&mut *transaction)).await?;
            }
            failpoint::pass("relay-commit-before");
            with_timeout(transaction.commit()).await?;
            failpoint::pass("relay-commit-after");
            counter!(RELAYED_EVENTS).increment(appended.len() as u64);
            relayed += appended.len() as u64;
            result?;
        }
    }

    /// Appends a batch until the log becomes unavailable; returns the ids of the appended entries.
    async fn append_batch(&self, batch: &[(Id, String)]) -> (Vec<Id>, Result<(), AppendError>) {
        let mut appended = Vec::with_capacity(batch.len());
        for (id, json) in batch {
            let envelope = match from_json(json) {
                Ok(envelope) => envelope,
                Err(error) => {
                    error!(id, %error, "outbox entry does not decode, skipped");
                    continue;
                }
            };
            match self.append_entry(&envelope).await {
                Ok(()) => appended.push(*id),
                // The publisher has logged it. The entry stays, and does not block later entries.
                Err(AppendError::Refused(_)) => {}
                Err(error) => {
                    // Marks expire; renew those of all entries that are still pending.
                    let events = batch.iter().filter_map(|(_, json)| Some(from_json(json).ok()?.event));
                    mark_pending(&self.state.read_models, &events.collect::<Vec<_>>()).await;
                    return (appended, Err(error));
                }
            }
        }
        (appended, Ok(()))
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
) -> Result<Vec<(Id, String)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT CAST(id AS UNSIGNED), event FROM outbox WHERE id > ? AND created_ms <= ? ORDER BY id LIMIT ? FOR UPDATE SKIP LOCKED",
    )
    .bind(after)
    .bind(created_until_ms)
    .bind(BATCH_SIZE)
    .fetch_all(connection)
    .await
}

/// Records a pending mark in the scopes of events of one stream: until it is cleared, reads of them may be stale.
pub async fn mark_pending(read_models: &ReadModels, events: &[Event]) {
    let Some(stream) = events.first().map(|event| event.stream().name()) else {
        return;
    };
    let (partition, next_offset) = PENDING_POSITION;
    let scopes: Vec<_> = events.iter().flat_map(scopes).collect();
    let position = Position { stream, partition, next_offset };
    if let Err(error) = read_models.freshness.record(&scopes, position).await {
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
