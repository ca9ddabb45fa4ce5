//! The outbox: events that must be in the log because of a row that was written in the same transaction.
//!
//! Whoever wrote one appends it at once where that works. What is still there after a while is left over from a
//! crash, or from a broker that was away: the relay appends it. A crash between append and deletion repeats the
//! event, with its own id, which every fold ignores.
//!
//! From before the row is committed until the event is in the log, readers of what it is about find a mark that no
//! projection passes: they are told that they may not see it yet, whoever dies when.

use std::time::Duration;

use metrics::counter;
use redis::cmd;
use sqlx::{Acquire, MySqlConnection, MySqlPool};
use thiserror::Error;
use tokio::time::{interval, timeout};
use tracing::{error, info, warn};
use vidlog_contract::limits;
use vidlog_events::{Envelope, Event};
use vidlog_read_models::{Position, ReadModels};
use vidlog_schemas::keys::partition_field;
use vidlog_service_kit::{failpoint, shutdown::Shutdown};

use crate::{
    append::{Acknowledged, append, note_unmarked, scopes},
    metrics::RELAYED_EVENTS,
    mysql::bounded,
    publisher::AppendError,
    state::CommandState,
    stored::{StoredError, from_text, to_text},
};

/// An entry's id, in the order of writing.
pub type Id = u64;

/// How long the writer of an entry has to append it. Then it is the relay's.
const RELAY_AFTER_MS: i64 = 6_000;
const RELAY_EVERY: Duration = Duration::from_secs(1);
/// Entries that one transaction locks.
const BATCH: u32 = 50;
/// How long an answer waits for the append of an event that is safe in the outbox.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);
/// A partition and an offset that no projection reaches: what is marked with it is not in the log yet.
const NOT_APPENDED: (i32, i64) = (i32::MAX, limits::MAX_ID);

/// An event as it is written to the outbox.
#[derive(Clone, Debug)]
pub struct Entry {
    text: String,
    created_ms: i64,
}

/// Why a pass of the relay did not reach its end.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The log is away: the rest waits for the next pass.
    #[error("failed to append from the outbox")]
    Log(#[from] AppendError),
    /// MySQL is away: what was appended in the last batch will be appended again.
    #[error("failed to read the outbox")]
    MySql(#[from] sqlx::Error),
}

impl Entry {
    /// The entry of an event.
    pub fn new(envelope: &Envelope) -> Result<Self, StoredError> {
        Ok(Self { text: to_text(envelope)?, created_ms: envelope.time_ms })
    }
}

/// Writes an entry, in the transaction of what it announces.
pub async fn insert(entry: &Entry, connection: &mut MySqlConnection) -> Result<Id, sqlx::Error> {
    let inserted = sqlx::query("INSERT INTO outbox (event, created_ms) VALUES (?, ?)")
        .bind(&entry.text)
        .bind(entry.created_ms)
        .execute(connection)
        .await?;
    Ok(inserted.last_insert_id())
}

/// Appends an entry that was just written, and marked by [`mark_not_appended`] before. `None` if that is left to the
/// relay.
pub async fn append_now(state: &CommandState, id: Id, envelope: &Envelope) -> Option<Acknowledged> {
    let attempt = append(state.log.as_ref(), &state.read_models.freshness, envelope);
    let Ok(Ok(acknowledged)) = timeout(FIRST_ATTEMPT, attempt).await else {
        return None;
    };
    failpoint::pass("outbox-delete-before");
    unmark_not_appended(&state.read_models, &envelope.event).await;
    let delete = sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id);
    if let Err(error) = bounded(delete.execute(&state.mysql)).await {
        warn!(%error, "failed to delete an appended event from the outbox; it will be repeated");
    }
    Some(acknowledged)
}

/// Appends what is left over in the outbox.
#[derive(Clone)]
pub struct Relay {
    state: CommandState,
}

impl Relay {
    /// A relay of a state's outbox.
    pub const fn new(state: CommandState) -> Self {
        Self { state }
    }

    /// Passes over the outbox again and again, until shutdown is given. Any number of instances may do so.
    pub async fn run(self, shutdown: Shutdown) {
        let mut tick = interval(RELAY_EVERY);
        let mut failing = false;
        let token = shutdown.token();
        while token.run_until_cancelled(tick.tick()).await.is_some() {
            let created_until_ms = self.state.clock.now_ms() - RELAY_AFTER_MS;
            match self.pass(created_until_ms).await {
                Ok(0) => failing = false,
                Ok(events) => {
                    failing = false;
                    info!(events, "appended what was left over in the outbox");
                }
                Err(error) if failing => tracing::debug!(%error, "the outbox still has to wait"),
                Err(error) => {
                    failing = true;
                    warn!(%error, "the outbox has to wait");
                }
            }
        }
    }

    /// Appends every entry that was written until a time, in order, and says how many.
    pub async fn pass(&self, created_until_ms: i64) -> Result<u64, RelayError> {
        let mut after: Id = 0;
        let mut relayed = 0;
        loop {
            let mut connection = bounded(self.pool().acquire()).await?;
            // Without gap locks, or new accounts would have to wait for the broker.
            let committed = sqlx::query("SET TRANSACTION ISOLATION LEVEL READ COMMITTED");
            bounded(committed.execute(&mut *connection)).await?;
            let mut transaction = bounded(connection.begin()).await?;
            let batch = bounded(select(&mut transaction, after, created_until_ms)).await?;
            let Some((last, _)) = batch.last() else {
                return Ok(relayed);
            };
            after = *last;
            let (appended, ended) = self.append_all(&batch).await;
            for id in &appended {
                let delete = sqlx::query("DELETE FROM outbox WHERE id = ?").bind(id);
                bounded(delete.execute(&mut *transaction)).await?;
            }
            failpoint::pass("relay-commit-before");
            bounded(transaction.commit()).await?;
            failpoint::pass("relay-commit-after");
            counter!(RELAYED_EVENTS).increment(appended.len() as u64);
            relayed += appended.len() as u64;
            ended?;
        }
    }

    /// Appends a batch until the log is away; the ids of those that are in the log.
    async fn append_all(&self, batch: &[(Id, String)]) -> (Vec<Id>, Result<(), AppendError>) {
        let mut appended = Vec::with_capacity(batch.len());
        for (id, text) in batch {
            let envelope = match from_text(text) {
                Ok(envelope) => envelope,
                Err(error) => {
                    error!(id, %error, "an event in the outbox can't be read; it stays there");
                    continue;
                }
            };
            match self.append_one(&envelope).await {
                Ok(()) => appended.push(*id),
                // Logged where it was refused. It stays, and what is behind it goes on.
                Err(AppendError::Refused(_)) => {}
                Err(away) => {
                    let waiting = batch.iter().filter_map(|(_, text)| Some(from_text(text).ok()?.event));
                    mark_not_appended(&self.state.read_models, &waiting.collect::<Vec<_>>()).await;
                    return (appended, Err(away));
                }
            }
        }
        (appended, Ok(()))
    }

    async fn append_one(&self, envelope: &Envelope) -> Result<(), AppendError> {
        let read_models = &self.state.read_models;
        append(self.state.log.as_ref(), &read_models.freshness, envelope).await?;
        unmark_not_appended(read_models, &envelope.event).await;
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
    .bind(BATCH)
    .fetch_all(connection)
    .await
}

/// Makes readers of events of one stream wait for them, and be told that they may not see them, though their positions
/// are not known yet.
pub async fn mark_not_appended(read_models: &ReadModels, events: &[Event]) {
    let Some(stream) = events.first().map(|event| event.stream().name()) else {
        return;
    };
    let (partition, next_offset) = NOT_APPENDED;
    let scopes: Vec<_> = events.iter().flat_map(scopes).collect();
    let position = Position { stream, partition, next_offset };
    if let Err(error) = read_models.freshness.record(&scopes, position).await {
        note_unmarked(&error);
    }
}

/// Takes that back, once the event is appended and marked where it is.
async fn unmark_not_appended(read_models: &ReadModels, event: &Event) {
    let field = partition_field(event.stream().name(), NOT_APPENDED.0);
    let commands: Vec<_> = scopes(event)
        .iter()
        .map(|scope| read_models.keys.recent_writes(&scope.to_string()))
        .map(|key| cmd("ZREM").arg(key).arg(&field).take())
        .collect();
    if let Err(error) = read_models.views.all(&commands).await {
        note_unmarked(&error);
    }
}
