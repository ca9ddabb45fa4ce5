//! The steps that all commands share: reserve, decide, store, append, respond; with metrics and a deadline.

use std::time::Duration;

use metrics::{counter, histogram};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tracing::debug;
use vidlog_contract::{ApiError, ApiResponse, Empty};
use vidlog_events::Event;

use crate::{
    append::append,
    idempotency::{IdempotentAttempt, Outcome, Request, Reservation},
    metrics::{COMMAND_SECONDS, COMMANDS},
    reply::Reply,
    request_context::RequestContext,
    state::CommandState,
};

/// Deadline of a command: the client gives up after 5 s.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_millis(4900);

/// Runs a command with metrics and a deadline. An event that was appended before the deadline stays in the log.
///
/// Boxes the work, because its future is too large to move.
pub fn run_command<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, ApiError>>,
) -> impl Future<Output = Result<T, ApiError>> {
    with_metrics(command, with_deadline(Box::pin(work)))
}

/// Runs a command's work with a deadline.
pub(crate) async fn with_deadline<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    timeout(COMMAND_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(ApiError::unavailable(
            "the request timed out and may or may not have succeeded; check in a moment",
        ))
    })
}

/// Counts a command and records its duration.
pub(crate) async fn with_metrics<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let started = Instant::now();
    let result = work.await;
    let outcome = match &result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.code),
    };
    debug!(command, outcome, "command completed");
    counter!(COMMANDS, "command" => command, "outcome" => outcome).increment(1);
    histogram!(COMMAND_SECONDS, "command" => command).record(started.elapsed());
    result
}

/// Executes a command. `decide` returns its event; `content` reads what the response needs, concurrently, and returns
/// a function to the response's fields besides the status. That function gets the reservation of the appended event,
/// which is another attempt's if that stored its event first.
pub async fn execute<T: Serialize, Fields: FnOnce(Reservation) -> Result<T, ApiError>>(
    state: &CommandState,
    context: &RequestContext,
    outcome: Outcome,
    decide: impl AsyncFnOnce(Reservation) -> Result<Event, ApiError>,
    content: impl Future<Output = Result<Fields, ApiError>>,
) -> Result<Reply, ApiError> {
    let attempt = match outcome {
        Outcome::Replay(reply) => return Ok(reply),
        Outcome::New(attempt) => attempt,
    };
    let reservation = attempt.reservation;
    let stored = async {
        if attempt.event().is_some() {
            return Ok(Outcome::New(attempt));
        }
        let event = decide(reservation).await?;
        attempt.store_event(state, context.envelope(reservation.identity(), event)).await
    };
    let (stored, fields) = tokio::try_join!(stored, content)?;
    let attempt = match stored {
        Outcome::Replay(reply) => return Ok(reply),
        Outcome::New(attempt) => attempt,
    };
    let envelope = attempt.event().ok_or_else(ApiError::internal)?;
    let acknowledged = append(state.log.as_ref(), &state.read_models.freshness, envelope).await?;
    let reply = Reply::new(&ApiResponse::new(fields(attempt.reservation)?), &acknowledged)?;
    Ok(attempt.store_reply(state, reply).await)
}

/// Content of a response that has only a status.
pub async fn empty_content() -> Result<impl FnOnce(Reservation) -> Result<Empty, ApiError>, ApiError> {
    Ok(|_| Ok(Empty {}))
}

/// Begins a command that creates no entity.
pub async fn begin(state: &CommandState, request: &Request<'_>) -> Result<Outcome, ApiError> {
    IdempotentAttempt::begin(state, request, Ok(None)).await
}

/// Begins a command that creates an entity, and reserves an id for it.
pub async fn begin_with_id(state: &CommandState, request: &Request<'_>) -> Result<Outcome, ApiError> {
    IdempotentAttempt::begin(state, request, state.ids.next().map(Some)).await
}
