//! Operator API: operates the projections of a process over HTTP, on the ops port.

mod audits;
mod jobs;
mod rebuilds;
mod routes;

use std::time::Duration;

use axum::Router;
use vidlog_service_kit::shutdown::Shutdown;

use self::{audits::Audits, rebuilds::Rebuilds, routes::OperatorApi};
use crate::{cli::Operation, operator::Operator, run::Plan};

/// Starts the periodic audits, if configured, and returns the routes for the ops port.
pub fn start(plan: &Plan<'_>, operation: &Operation, shutdown: &Shutdown) -> anyhow::Result<Router> {
    let audits = Audits::new(Operator::open(plan.log, plan.stores)?);
    if let Some(seconds) = operation.audit_every {
        let every = Duration::from_secs(seconds);
        tokio::spawn(audits.clone().run_periodically(every, plan.projections.to_vec(), shutdown.clone()));
    }
    let rebuilds = Rebuilds::new(plan.log, plan.stores);
    Ok(routes::router(OperatorApi { audits, rebuilds }, operation.ops_token.clone()))
}
