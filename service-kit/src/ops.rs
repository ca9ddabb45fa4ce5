//! The ops port: liveness, readiness, metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::shutdown::Shutdown;

/// Interval at which the metrics recorder compacts its histograms, so that they do not grow between scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Readiness of a process by component, with a reason for each that is not ready. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// The reason by component; `None` if it is ready.
    components: Arc<Mutex<BTreeMap<String, Option<String>>>>,
    warnings: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Readiness {
    /// Creates a readiness without components: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Marks a component ready.
    pub fn ready(&self, component: &str) {
        self.set(component, None);
    }

    /// Marks a component not ready, with a reason that operators read.
    pub fn not_ready(&self, component: &str, reason: impl Into<String>) {
        self.set(component, Some(reason.into()));
    }

    /// Sets or clears a warning: a line in `/readyz` about a component that needs an operator but serves requests.
    pub fn set_warning(&self, component: &str, warning: Option<String>) {
        let mut warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        match warning {
            Some(warning) => warnings.insert(component.to_owned(), warning),
            None => warnings.remove(component),
        };
    }

    /// Returns the current warnings, one line each.
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        warnings.iter().map(|(component, warning)| format!("{component}: {warning}")).collect()
    }

    /// Returns the components that are not ready, one line each; `None` if all are ready.
    pub fn unready(&self) -> Option<String> {
        let components = self.components.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = components
            .iter()
            .filter_map(|(component, reason)| Some(format!("{component}: {}", reason.as_ref()?)))
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }

    /// Returns why a component is not ready; `None` if it is ready.
    pub fn reason(&self, component: &str) -> Option<String> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner).get(component).cloned().flatten()
    }

    fn set(&self, component: &str, reason: Option<String>) {
        self.components.lock().unwrap_or_else(PoisonError::into_inner).insert(component.to_owned(), reason);
    }
}

#[derive(Clone)]
struct Ops {
    readiness: Readiness,
    metrics: PrometheusHandle,
    shutdown: Shutdown,
}

/// Returns the router of the ops port, and starts the upkeep of the metrics until shutdown.
pub fn router(readiness: Readiness, metrics: PrometheusHandle, shutdown: Shutdown) -> Router {
    let upkeep = metrics.clone();
    let stop = shutdown.token();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
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
    if ops.shutdown.is_requested() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    let (status, state) = match ops.readiness.unready() {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(unready) => (StatusCode::SERVICE_UNAVAILABLE, unready),
    };
    let lines: Vec<_> = std::iter::once(state).chain(ops.readiness.warnings()).collect();
    (status, lines.join("\n") + "\n")
}
