//! The steps that all commands share: begin, decide, append, answer; watched, and within the time that they have.

use std::time::Duration;

use metrics::{counter, histogram};
use serde::Serialize;
use tokio::time::{Instant, timeout};
use tracing::debug;
use vidlog_contract::{Answer, ApiError};
use vidlog_events::Event;

use crate::{
    append::append,
    idempotency::{Attempt, Begun, Request, Reserved},
    metrics::{COMMAND_SECONDS, COMMANDS},
    origin::Origin,
    reply::Reply,
    state::CommandState,
};

/// The time in which a command answers, whatever is away: the client gives up after 5 s.
const TIME_LIMIT: Duration = Duration::from_millis(4900);

/// Watches a command and bounds its time. What it has appended when its time is over stays appended.
///
/// The work is boxed: it waits for several stores, and its future is too large to be moved about.
pub fn watched<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, ApiError>>,
) -> impl Future<Output = Result<T, ApiError>> {
    counted(command, within_time(Box::pin(work)))
}

/// Bounds the time of a command.
pub(crate) async fn within_time<T>(work: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    timeout(TIME_LIMIT, work).await.unwrap_or_else(|_| {
        Err(ApiError::unavailable("this took too long, and may be done or not; look in a moment"))
    })
}

/// Watches a command.
pub(crate) async fn counted<T>(
    command: &'static str,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let began = Instant::now();
    let result = work.await;
    let outcome = match &result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{:?}", error.code),
    };
    debug!(command, outcome, "answered a command");
    counter!(COMMANDS, "command" => command, "outcome" => outcome).increment(1);
    histogram!(COMMAND_SECONDS, "command" => command).record(began.elapsed());
    result
}

/// Carries a command out: `decide` says which event it is, `content` what is answered beside the status. Both get
/// what is reserved for the command, at the same time, before the event is appended.
pub async fn execute<T: Serialize>(
    state: &CommandState,
    origin: &Origin,
    begun: Begun,
    decide: impl AsyncFnOnce(Reserved) -> Result<Event, ApiError>,
    content: impl AsyncFnOnce(Reserved) -> Result<T, ApiError>,
) -> Result<Reply, ApiError> {
    let attempt = match begun {
        Begun::Answered(reply) => return Ok(reply),
        Begun::Open(attempt) => attempt,
    };
    let reserved = attempt.reserved;
    let event = async {
        if let Some(decided) = attempt.decided() {
            return Ok(decided.clone());
        }
        let event = decide(reserved).await?;
        attempt.decide(state, origin.envelope(reserved.stamp(), event)).await
    };
    let (envelope, content) = tokio::try_join!(event, content(reserved))?;
    let acknowledged = append(state.log.as_ref(), &state.read_models.freshness, &envelope).await?;
    let reply = Reply::new(&Answer::new(content), &acknowledged)?;
    Ok(attempt.answer(state, reply).await)
}

/// The content of an answer that has nothing to say but that it went well.
pub async fn nothing(_: Reserved) -> Result<vidlog_contract::Empty, ApiError> {
    Ok(vidlog_contract::Empty {})
}

/// Begins a command that makes no entity.
pub async fn begin(state: &CommandState, request: &Request<'_>) -> Result<Begun, ApiError> {
    Attempt::begin(state, request, None).await
}

/// Begins a command that makes an entity, with an id for it.
pub async fn begin_with_id(state: &CommandState, request: &Request<'_>) -> Result<Begun, ApiError> {
    let id = state.ids.next()?;
    Attempt::begin(state, request, Some(id)).await
}
