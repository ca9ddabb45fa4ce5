//! An HTTP server with graceful shutdown.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use tokio::net::TcpListener;

use crate::shutdown::Shutdown;

/// Binds an address. The error names it.
pub async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}; is the port taken?"))
}

/// Serves until shutdown is requested, then drains the requests in flight.
pub async fn serve(listener: TcpListener, router: Router, shutdown: Shutdown) -> anyhow::Result<()> {
    let signal = shutdown.clone();
    let serving = axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(async move { signal.wait().await })
        .into_future();
    match shutdown.drain("http server", serving).await {
        Some(served) => served.context("the HTTP server failed"),
        None => Ok(()),
    }
}
