//! The same over HTTP, on the ops port, for those who have the token.

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
    audits::{Audit, Audits},
    rebuilds::{Rebuilds, Rebuilt},
};
use crate::{projections, rebuild::IfDifferent, status::Status};
use vidlog_projection_engine::{dead_letters::NotParked, desired_state::view_lock::Taken, view::Projection};

/// What the routes work on.
#[derive(Clone)]
pub(super) struct OperatorApi {
    pub(super) audits: Audits,
    pub(super) rebuilds: Rebuilds,
}

/// Every route. All are guarded.
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

/// Lets those pass who have the token.
async fn guard(State(token): State<Arc<Option<Secret>>>, request: Request, next: Next) -> Response {
    let Some(token) = token.as_ref().as_ref().filter(|token| !token.reveal().is_empty()) else {
        let hint = "operating over HTTP is off; give this process a token, VIDLOG_OPS_TOKEN, to turn it on";
        return ApiError::new(StatusCode::FORBIDDEN, hint).into_response();
    };
    let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let given = given.and_then(|value| value.strip_prefix(b"Bearer ")).unwrap_or_default();
    // In the same time however much of it is right.
    if bool::from(given.ct_eq(token.reveal().as_bytes())) {
        next.run(request).await
    } else {
        let hint = "the header Authorization: Bearer, with the token of this process, is missing or wrong";
        let error = ApiError::new(StatusCode::UNAUTHORIZED, hint);
        ([(header::WWW_AUTHENTICATE, "Bearer")], error).into_response()
    }
}

/// What `projectors status --json` prints, and the audits and rebuilds of this process.
#[derive(Serialize)]
struct StatusResponse {
    #[serde(flatten)]
    status: Status,
    audits: BTreeMap<&'static str, Audit>,
    rebuilds: BTreeMap<&'static str, Rebuilt>,
}

/// What was done, in words.
#[derive(Serialize)]
struct ActionResult {
    done: String,
}

/// What was not done, and why.
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
    shown(&api, &projections::ALL).await
}

async fn one(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<StatusResponse>, ApiError> {
    Ok(shown(&api, &[find(&name)?]).await)
}

async fn shown(api: &OperatorApi, projections: &[Projection]) -> Json<StatusResponse> {
    let status = api.audits.operator().status(projections).await;
    let (audits, rebuilds) = (api.audits.last(projections), api.rebuilds.last(projections));
    Json(StatusResponse { status, audits, rebuilds })
}

async fn pause(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    done(api.audits.operator().pause(&find(&name)?).await)
}

async fn resume(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    done(api.audits.operator().resume(&find(&name)?).await)
}

/// It takes as long as the log is: what came of it is in the answer of GET.
async fn audit(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<(StatusCode, Json<ActionResult>), ApiError> {
    let projection = find(&name)?;
    if api.audits.begin(projection) {
        let done = format!("an audit of {name} has begun; GET /projections/{name} tells what comes of it");
        Ok((StatusCode::ACCEPTED, Json(ActionResult { done })))
    } else {
        Err(ApiError::new(StatusCode::CONFLICT, "an audit of it goes on already"))
    }
}

/// What becomes of a generation that differs from the live one.
#[derive(Deserialize)]
struct RebuildOptions {
    #[serde(default)]
    take_over: bool,
}

/// It takes as long as the log is: how far it is, and what came of it, is in the answer of GET.
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
        let done = format!("a rebuild of {name} has begun; GET /projections/{name} tells how far it is");
        Ok((StatusCode::ACCEPTED, Json(ActionResult { done })))
    } else {
        Err(ApiError::new(StatusCode::CONFLICT, "a rebuild of it goes on already"))
    }
}

async fn drop_next(
    State(api): State<OperatorApi>,
    Path(name): Path<String>,
) -> Result<Json<ActionResult>, ApiError> {
    let dropped = api.rebuilds.drop_next(find(&name)?).await;
    done(dropped.map(|()| format!("all of {name} but the live generation is dropped")))
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
    done(retried.map(|keys| if keys.is_empty() { "nothing waits".to_owned() } else { keys.join("; ") }))
}

async fn discard(
    State(api): State<OperatorApi>,
    place: Result<Path<(String, String, i64)>, PathRejection>,
) -> Result<Json<ActionResult>, ApiError> {
    let not_a_place = |why: String| ApiError::new(StatusCode::BAD_REQUEST, why);
    let Path((name, partition, offset)) = place.map_err(|error| not_a_place(error.body_text()))?;
    let (operator, projection) = (api.audits.operator().clone(), find(&name)?);
    let partition = partition.parse().map_err(not_a_place)?;
    done(
        on_blocking_thread(move |runtime| runtime.block_on(operator.discard(projection, partition, offset)))
            .await,
    )
}

/// Works on a thread of its own: a future that asks a store again and again by an async closure can't change threads.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce(Handle) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let runtime = Handle::current();
    spawn_blocking(move || work(runtime)).await?
}

fn find(name: &str) -> Result<Projection, ApiError> {
    projections::find(name)
        .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no projection of this name"))
}

fn done(done: anyhow::Result<String>) -> Result<Json<ActionResult>, ApiError> {
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
