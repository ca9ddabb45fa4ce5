//! HTTP routes of the operator API, on the ops port, guarded by a bearer token.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use subtle::ConstantTimeEq;
use tokio::{runtime::Handle, task::spawn_blocking};
use vidlog_service_kit::config::Secret;

use super::{
    audits::{AuditResult, Audits},
    jobs::JobState,
    rebuilds::{RebuildResult, Rebuilds},
};
use crate::{projections, rebuild::IfDifferent, status::Status};
use vidlog_projection_engine::{dead_letters::NotParked, desired_state::view_lock::Taken, view::Projection};

/// State of the routes.
#[derive(Clone)]
pub(super) struct OperatorApi {
    pub(super) audits: Audits,
    pub(super) rebuilds: Rebuilds,
}

/// Returns all routes, each guarded by the token.
pub(super) fn router(api: OperatorApi, token: Option<Secret>) -> Router {
    Router::new()
        .route("/projections", get(all))
        .route("/projections/{name}", get(one))
        .route("/projections/{name}/pause", post(pause))
        .route("/projections/{name}/resume", post(resume))
        .route("/projections/{name}/audit", post(audit))
        .route("/projections/{name}/rebuild", post(rebuild).delete(drop_next))
        .route("/projections/{name}/dead-letters", get(dead_letters))
        .route("/projections/{name}/dead-letters/retry", post(retry))
        .route("/projections/{name}/dead-letters/{partition}/{offset}/discard", post(discard))
        .route_layer(middleware::from_fn_with_state(Arc::new(token), guard))
        .with_state(api)
}

/// Rejects requests without the token.
async fn guard(State(token): State<Arc<Option<Secret>>>, request: Request, next: Next) -> Response {
    let Some(token) = token.as_ref().as_ref().filter(|token| !token.reveal().is_empty()) else {
        let hint = "the operator API is disabled; set VIDLOG_OPS_TOKEN to enable it";
        return ApiError::new(StatusCode::FORBIDDEN, hint).into_response();
    };
    let presented = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let presented = presented.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    // Compares in constant time, which reveals nothing of the token.
    if bool::from(presented.ct_eq(token.reveal().as_bytes())) {
        next.run(request).await
    } else {
        let hint = "the header `Authorization: Bearer <token>` is missing or its token is wrong";
        let error = ApiError::new(StatusCode::UNAUTHORIZED, hint);
        ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
    }
}

/// Status as `projectors status --json` prints it, with the audits and rebuilds of this process.
#[derive(Serialize)]
struct StatusResponse {
    #[serde(flatten)]
    status: Status,
    audits: BTreeMap<&'static str, JobState<AuditResult>>,
    rebuilds: BTreeMap<&'static str, JobState<RebuildResult>>,
}

/// Response of a successful action.
#[derive(Serialize)]
struct ActionResult {
    done: String,
}

/// Response of a failed request.
#[derive(Serialize)]
struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    error: String,
}

impl ApiError {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self)).into_response()
    }
}

async fn all(State(api): State<OperatorApi>) -> Json<StatusResponse> {
    status_of(&api, &projections::ALL).await
}

async fn one(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<StatusResponse>, ApiError> {
    Ok(status_of(&api, &[find(&name)?]).await)
}

async fn status_of(api: &OperatorApi, projections: &[Projection]) -> Json<StatusResponse> {
    let status = api.audits.operator().status(projections).await;
    let (audits, rebuilds) = (api.audits.last(projections), api.rebuilds.last(projections));
    Json(StatusResponse { status, audits, rebuilds })
}

async fn pause(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    respond(api.audits.operator().pause(&find(&name)?).await)
}

async fn resume(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    respond(api.audits.operator().resume(&find(&name)?).await)
}

/// Starts an audit. It reads the whole log, so it runs in the background; GET returns its result.
async fn audit(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<ActionResult>), ApiError> {
    let projection = find(&name)?;
    if api.audits.begin(projection) {
        let done = format!("audit of {name} started; GET /projections/{name} returns its result");
        Ok((StatusCode::ACCEPTED, Json(ActionResult { done })))
    } else {
        Err(ApiError::new(StatusCode::CONFLICT, "an audit of this projection is running"))
    }
}

/// Query parameters of a rebuild. `take_over`: switch even if the generations differ.
#[derive(Deserialize)]
struct RebuildOptions {
    #[serde(default)]
    take_over: bool,
}

/// Starts a rebuild. It reads the whole log, so it runs in the background; GET returns its progress and its
/// result.
async fn rebuild(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
    options: Result<Query<RebuildOptions>, QueryRejection>,
) -> Result<(StatusCode, Json<ActionResult>), ApiError> {
    let projection = find(&name)?;
    let Query(options) =
        options.map_err(|error| ApiError::new(StatusCode::BAD_REQUEST, error.body_text()))?;
    let if_different = if options.take_over { IfDifferent::TakeOver } else { IfDifferent::Keep };
    if api.rebuilds.begin(projection, if_different) {
        let done = format!("rebuild of {name} started; GET /projections/{name} returns its progress");
        Ok((StatusCode::ACCEPTED, Json(ActionResult { done })))
    } else {
        Err(ApiError::new(StatusCode::CONFLICT, "a rebuild of this projection is running"))
    }
}

async fn drop_next(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    let dropped = api.rebuilds.drop_next(find(&name)?).await;
    respond(dropped.map(|()| format!("dropped all generations of {name} but the live one")))
}

async fn dead_letters(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let found = api.audits.operator().dead_letters(find(&name)?).await;
    found.map(Json).map_err(|error| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("{error:#}")))
}

async fn retry(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    let (operator, projection) = (api.audits.operator().clone(), find(&name)?);
    let retried = on_blocking_thread(move |runtime| runtime.block_on(operator.retry(projection))).await;
    respond(retried.map(|keys| if keys.is_empty() { "no parked keys".to_owned() } else { keys.join("; ") }))
}

async fn discard(
    State(api): State<OperatorApi>,
    path: Result<Path<(String, String, i64)>, PathRejection>,
) -> Result<Json<ActionResult>, ApiError> {
    let bad_request = |why: String| ApiError::new(StatusCode::BAD_REQUEST, why);
    let Path((name, partition, offset)) = path.map_err(|error| bad_request(error.body_text()))?;
    let (operator, projection) = (api.audits.operator().clone(), find(&name)?);
    let partition = partition.parse().map_err(bad_request)?;
    respond(
        on_blocking_thread(move |runtime| runtime.block_on(operator.discard(projection, partition, offset)))
            .await,
    )
}

/// Runs work on a blocking thread: a future that retries a store command through an async closure is not
/// `Send`.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce(Handle) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = Handle::current();
    spawn_blocking(move || work(runtime)).await?
}

fn find(name: &str) -> Result<Projection, ApiError> {
    projections::find(name).ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "unknown projection"))
}

fn respond(done: anyhow::Result<String>) -> Result<Json<ActionResult>, ApiError> {
    match done {
        Ok(done) => Ok(Json(ActionResult { done })),
        Err(error) => {
            let status = if error.is::<Taken>() {
                StatusCode::CONFLICT
            } else if error.is::<NotParked>() {
                StatusCode::NOT_FOUND
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            Err(ApiError::new(status, format!("{error:#}")))
        }
    }
}
