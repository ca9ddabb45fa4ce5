//! The ops port: liveness, readiness, metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::shutdown::Shutdown;

/// How often the metrics recorder folds its histograms, so that they do not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// What a process needs to be ready, by name. Clones share it. A part that is not ready says why.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    parts: Arc<Mutex<BTreeMap<String, Option<String>>>>,
    warnings: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Readiness {
    /// A readiness of no parts: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that a part is ready.
    pub fn ready(&self, part: &str) {
        self.set(part, None);
    }

    /// Says that a part is not ready, and why, in words for an operator.
    pub fn not_ready(&self, part: &str, why: impl Into<String>) {
        self.set(part, Some(why.into()));
    }

    /// Sets or clears a warning: a line in `/readyz` about a part that needs an operator but serves requests.
    pub fn set_warning(&self, part: &str, warning: Option<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        match warning {
            Some(warning) => warnings.insert(part.to_owned(), warning),
            None => warnings.remove(part),
        };
    }

    /// The current warnings, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.iter().map(|(part, warning)| format!("{part}: {warning}")).collect()
    }

    /// The parts that are not ready, a line each; `None` if all are.
    pub fn missing(&self) -> Option<String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> =
            parts.iter().filter_map(|(part, why)| why.as_ref().map(|why| format!("{part}: {why}"))).collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Why a part is not ready; `None` if it is.
    pub fn why(&self, part: &str) -> Option<String> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).get(part).cloned().flatten()
    }

    fn set(&self, part: &str, why: Option<String>) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(part.to_owned(), why);
    }
}

#[derive(Clone)]
struct Ops {
    readiness: Readiness,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

/// The router of the ops port.
pub fn router(readiness: Readiness, metrics: PrometheusHandle, shutdown: Shutdown) -> Router {
    let upkeep = metrics.clone();
    let stopped = shutdown.token();
    tokio::spawn(stopped.run_until_cancelled_owned(async move {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            upkeep.run_upkeep();
        }
    }));
    Router::new()
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(async |State(ops): State<Ops>| ops.metrics.render()))
        .with_state(Ops { readiness, metrics, shutdown })
}

async fn readyz(State(ops): State<Ops>) -> impl IntoResponse {
    if ops.shutdown.is_given() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    let (status, state) = match ops.readiness.missing() {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing),
    };
    let lines: Vec<_> = std::iter::once(state).chain(ops.readiness.warnings()).collect();
    (status, lines.join("\n") + "\n")
}
